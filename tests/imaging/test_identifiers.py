"""Who a series is of, where it is asked for."""

from pathlib import Path

import numpy as np
from PIL import Image as Picture
from pydicom.uid import ComputedRadiographyImageStorage

from medtl.imaging.identifiers import read_identifiers
from medtl.imaging.series import scan
from tests.imaging.conftest import build_dataset, save


def test_what_the_header_says_is_named(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8), np.uint16)
    elements = {"PatientName": "Doe^Jane", "PatientID": "P 1", "AccessionNumber": ""}
    save(build_dataset(pixels, ComputedRadiographyImageStorage, **elements), tmp_path / "a.dcm")
    (series,) = scan(tmp_path).series
    found = read_identifiers(series, "a.dcm")
    assert (found["source"], found["name"], found["patient ID"]) == ("a.dcm", "Doe^Jane", "P 1")
    assert "accession number" not in found


def test_header_that_went_away_adds_nothing(tmp_path: Path) -> None:
    path = save(
        build_dataset(np.zeros((8, 8), np.uint16), ComputedRadiographyImageStorage), tmp_path / "a.dcm"
    )
    (series,) = scan(tmp_path).series
    path.write_bytes(b"no DICOM any more")
    assert read_identifiers(series, "a.dcm") == {"source": "a.dcm"}
    path.unlink()
    assert read_identifiers(series, "a.dcm") == {"source": "a.dcm"}


def test_other_formats_have_their_source_alone(tmp_path: Path) -> None:
    Picture.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    (series,) = scan(tmp_path).series
    assert read_identifiers(series, "a.png") == {"source": "a.png"}
