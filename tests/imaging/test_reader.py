"""read_images: the one call that a script needs."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from medtl.errors import ReadError
from medtl.imaging.reader import read_images


def test_a_file_a_folder_and_a_list_give_the_same_image(make_series: Callable) -> None:
    paths = make_series()
    folder = paths[0].parent
    by_folder, by_list, by_text = (read_images(source)[0] for source in (folder, paths, str(folder)))
    np.testing.assert_array_equal(by_folder.pixels, by_list.pixels)
    np.testing.assert_array_equal(by_folder.pixels, by_text.pixels)
    assert by_folder.facts == by_list.facts


def test_the_first_refusal_is_raised(make_radiograph: Callable, tmp_path: Path) -> None:
    make_radiograph(name="in/a.dcm")
    make_radiograph(name="in/b.dcm", NumberOfFrames=3)
    with pytest.raises(ReadError) as caught:
        read_images(tmp_path / "in")
    assert caught.value.code == "dicom-multiframe"


def test_refusals_are_collected_and_the_rest_is_read(make_radiograph: Callable, tmp_path: Path) -> None:
    for number in range(5):
        make_radiograph(name=f"in/{number}.dcm")
    (tmp_path / "in" / "1.dcm").write_bytes(b"")
    damaged = tmp_path / "in" / "3.dcm"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    refusals: list[ReadError] = []
    images = read_images(tmp_path / "in", refusals=refusals)
    assert [Path(image.facts.source).name for image in images] == ["0.dcm", "2.dcm", "4.dcm"]
    assert [error.code for error in refusals] == ["file-empty", "dicom-truncated"]


def test_a_missing_source_is_raised_even_when_refusals_are_collected(tmp_path: Path) -> None:
    with pytest.raises(ReadError):
        read_images(tmp_path / "absent", refusals=[])


HEAVY = {"torch", "monai", "pandas", "scipy", "pydicom", "gdcm", "nibabel", "PIL"}


def loaded_after(code: str) -> set[str]:
    """Return which of HEAVY a fresh process has imported after some code."""
    code = f"import sys\n{code}\nprint(*{HEAVY} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    return set(done.stdout.decode().split())


def test_importing_the_reader_loads_no_library_of_a_format_and_none_of_training() -> None:
    assert loaded_after("import medtl.imaging.reader") == set()


def test_the_library_of_a_format_is_loaded_with_its_first_file(
    make_radiograph: Callable, make_nifti: Callable, tmp_path: Path
) -> None:
    PillowImage.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    read = "from medtl.imaging.reader import read_images; assert len(read_images({!r})) == 1"
    assert loaded_after(read.format(str(tmp_path / "a.png"))) == {"PIL"}
    after_dicom = loaded_after(read.format(str(make_radiograph())))
    assert "pydicom" in after_dicom and not {"torch", "monai", "pandas", "nibabel"} & after_dicom
    after_nifti = loaded_after(read.format(str(make_nifti())))
    assert "nibabel" in after_nifti and not {"torch", "monai", "pandas"} & after_nifti
