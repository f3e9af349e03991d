"""Labels are read beside small files of images, which the tests of imaging write."""

from tests.imaging.conftest import make_archive, make_nifti, make_radiograph, make_series

__all__ = ["make_archive", "make_nifti", "make_radiograph", "make_series"]
