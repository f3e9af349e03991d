"""What a header says about the patient: sex, age and scanner for subgroups, and identifiers for pages."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from pydicom.uid import ComputedRadiographyImageStorage

from medtl.imaging.dicom.patient import read_group_facts, read_identifiers
from medtl.imaging.reader import scan
from medtl.imaging.series import Series
from tests.imaging.conftest import build_dataset, malformed, mangle, save


def series_of(folder: Path, **elements: str) -> Series:
    pixels, elements = np.zeros((8, 8), np.uint16), {"SpecificCharacterSet": "ISO_IR 192", **elements}
    save(build_dataset(pixels, ComputedRadiographyImageStorage, **elements), folder / "a.dcm")
    (series,) = scan(folder).series
    return series


def test_sex_age_and_scanner_are_those_of_the_header(tmp_path: Path) -> None:
    stated = {
        "PatientSex": "F",
        "PatientAge": "062Y",
        "Manufacturer": "Maker",
        "ManufacturerModelName": "Seven",
    }
    found = read_group_facts(series_of(tmp_path, **stated))
    assert found == {"sex": "F", "age": "62", "scanner": "Maker Seven"}


@pytest.mark.parametrize(
    ("stated", "age"),
    [
        ({"PatientAge": "018M"}, "1"),
        ({"PatientAge": "003W"}, "0"),
        ({"PatientAge": "62"}, ""),
        ({"PatientAge": "", "PatientBirthDate": "19600501", "StudyDate": "20200430"}, "59"),
        ({"PatientAge": "", "PatientBirthDate": "19600501", "StudyDate": "20200501"}, "60"),
        ({"PatientAge": "", "PatientBirthDate": "20210501", "StudyDate": "20200501"}, ""),
        ({"PatientAge": "", "PatientBirthDate": "19601350", "StudyDate": "20200501"}, ""),
    ],
)
def test_age_is_stated_or_follows_from_dates(stated: dict[str, str], age: str, tmp_path: Path) -> None:
    assert read_group_facts(series_of(tmp_path, **stated))["age"] == age


def test_a_sex_that_the_standard_does_not_know_is_none(tmp_path: Path) -> None:
    assert read_group_facts(series_of(tmp_path, PatientSex="W"))["sex"] == ""


def test_a_malformed_element_gives_no_facts_and_is_quoted_nowhere(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    series = malformed(series_of(tmp_path, PatientSex="F", PatientAge="061Y", Manufacturer="Maker"))
    assert read_group_facts(series) == {}
    assert not recwarn.list and not caplog.records


def test_pydicom_warns_of_nothing_that_a_header_holds(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    series = series_of(tmp_path, PatientSex="F", Manufacturer="Maker")
    mangle(series, b"ISO_IR 192", b"CANARY 192")
    warnings.resetwarnings()
    assert read_group_facts(series)["scanner"] == "Maker"
    assert not recwarn.list


def test_a_file_without_preamble_gives_the_same_facts(tmp_path: Path) -> None:
    series = series_of(tmp_path, PatientSex="F")
    series.path.write_bytes(series.path.read_bytes()[132:])
    assert read_group_facts(series)["sex"] == "F"


def test_files_without_a_header_give_no_facts(tmp_path: Path) -> None:
    series = series_of(tmp_path / "dicom")
    series.path.unlink()
    assert read_group_facts(series) == {}
    (tmp_path / "png").mkdir()
    Picture.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "png/a.png")
    (picture,) = scan(tmp_path / "png").series
    assert read_group_facts(picture) == {}


def test_identifiers_of_the_header_are_named(tmp_path: Path) -> None:
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


def test_a_malformed_element_adds_no_identifier_and_is_quoted_nowhere(
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
