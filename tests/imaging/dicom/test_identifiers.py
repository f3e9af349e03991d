"""Who a series is of, where it is asked for."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from pydicom.uid import ComputedRadiographyImageStorage

from medtl.imaging.dicom.patient import read_identifiers
from medtl.imaging.reader import scan
from tests.imaging.conftest import build_dataset, mangle, save


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


def test_a_malformed_element_adds_nothing_and_is_quoted_nowhere(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    elements = {"PatientAge": "061Y", "SpecificCharacterSet": "ISO_IR 192"}
    dataset = build_dataset(np.zeros((8, 8), np.uint16), ComputedRadiographyImageStorage, **elements)
    save(dataset, tmp_path / "a.dcm")
    (series,) = scan(tmp_path).series
    mangle(series, b"ISO_IR 192", b"CANARY 192")
    warnings.resetwarnings()
    assert read_identifiers(series, "a.dcm")["patient ID"] == "CANARY-7"
    mangle(series, b"\x10\x00\x20\x00LO\x08\x00", b"\x10\x00\x20\x00FD\x04\x00")
    assert read_identifiers(series, "a.dcm") == {"source": "a.dcm"}
    assert not recwarn.list and not caplog.records


def test_other_formats_have_their_source_alone(tmp_path: Path) -> None:
    Picture.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    (series,) = scan(tmp_path).series
    assert read_identifiers(series, "a.png") == {"source": "a.png"}
