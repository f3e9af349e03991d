"""What all objects owe the standard: attributes by their type, the source's patient, UIDs that stay."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from medtl.errors import ReadError
from medtl.imaging.dicom.patient import read_sources
from medtl.imaging.reader import scan
from medtl.pacs.objects.result import PATIENT_AND_STUDY
from medtl.pacs.objects.write import BUILDERS, write_object
from tests.pacs.objects.conftest import IDENTITY, KINDS, run_tool, write_source

# Type 1: there with a value; type 2: there. By module (PS3.3: C.7.1.1, C.7.2.1, C.12.1 for all objects).
COMMON = {
    "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality SpecificCharacterSet": 1,
    " ".join(PATIENT_AND_STUDY): 2,
    "SeriesNumber Manufacturer InstanceNumber": 2,
}
PIXELS = "SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated BitsStored HighBit PixelData"
TYPES = {
    "sr": {
        # C.17.1, C.17.2, C.17.3
        "SeriesNumber InstanceNumber CompletionFlag VerificationFlag ContentDate ContentTime": 1,
        "ValueType ConceptNameCodeSequence ContinuityOfContent ContentSequence": 1,
        "CurrentRequestedProcedureEvidenceSequence": 1,
        "ReferencedPerformedProcedureStepSequence PerformedProcedureCodeSequence": 2,
    },
    "sc": {
        # C.8.6.1, C.7.6.1, C.7.6.3
        f"ConversionType PixelRepresentation PlanarConfiguration ImageType {PIXELS}": 1,
        "PatientOrientation Laterality": 2,
    },
    "map": {
        # C.8.32.2, C.7.6.16, C.7.6.17, C.7.5.2, C.7.4.1
        f"ImageType ContentLabel ContentQualification PresentationLUTShape ContentDate {PIXELS}": 1,
        "LossyImageCompression BurnedInAnnotation RecognizableVisualFeatures NumberOfFrames": 1,
        "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence DimensionOrganizationSequence": 1,
        "DimensionIndexSequence FrameOfReferenceUID ContentTime": 1,
        "ManufacturerModelName DeviceSerialNumber SoftwareVersions": 1,
        "ContentDescription ContentCreatorName PositionReferenceIndicator AcquisitionContextSequence": 2,
    },
}
CASES = [(kind, source) for kind in BUILDERS for source in KINDS if (kind, source) != ("map", "radiograph")]


def faults(dataset: Dataset, kind: str) -> list[str]:
    """Return the attributes that the standard demands and the object lacks."""
    found = []
    for keywords, demanded in [*COMMON.items(), *TYPES[kind].items()]:
        for keyword in keywords.split():
            element = dataset.get_item(keyword)
            if element is None or (demanded == 1 and dataset[keyword].is_empty):
                found.append(keyword)
    return found


@pytest.fixture
def written(make_result: Callable, tmp_path: Path) -> Callable[..., Dataset]:
    """Return a writer of one object, which is read again."""

    def write(kind: str, source: str = "series", **elements: object) -> Dataset:
        path = tmp_path / f"{kind}.dcm"
        write_object(path, make_result(source, **elements), kind)
        return dcmread(path)

    return write


@pytest.mark.parametrize(("kind", "source"), CASES)
def test_what_the_standard_demands_is_there(kind: str, source: str, written: Callable) -> None:
    assert faults(written(kind, source), kind) == []


def test_the_check_finds_what_is_missing(written: Callable) -> None:
    broken = written("sc")
    del broken.ConversionType, broken.PatientID
    broken.Rows = None
    assert faults(broken, "sc") == ["PatientID", "ConversionType", "Rows"]


@pytest.mark.parametrize(("kind", "source"), CASES)
def test_dciodvfy_finds_no_error(kind: str, source: str, written: Callable, tmp_path: Path) -> None:
    written(kind, source)
    said = run_tool("dciodvfy", tmp_path / f"{kind}.dcm")
    assert "Error" not in said, said


@pytest.mark.parametrize("kind", BUILDERS)
def test_dcmtk_parses_it_to_the_end(kind: str, written: Callable, tmp_path: Path) -> None:
    written(kind)
    said = run_tool("dcmdump", "--search", "SOPInstanceUID", tmp_path / f"{kind}.dcm")
    assert "E: " not in said and "W: " not in said
    assert f"[{dcmread(tmp_path / f'{kind}.dcm').SOPInstanceUID}]" in said


@pytest.mark.parametrize("kind", BUILDERS)
def test_patient_and_study_are_those_of_the_source(kind: str, written: Callable) -> None:
    dataset = written(kind)
    for keyword in (*PATIENT_AND_STUDY, "IssuerOfPatientID", "StudyDescription", "StudyInstanceUID"):
        assert str(dataset[keyword].value) == str(IDENTITY[keyword]), keyword
    assert dataset.SeriesInstanceUID != IDENTITY["SeriesInstanceUID"]
    assert dataset.SeriesNumber // 100 == IDENTITY["SeriesNumber"]


@pytest.mark.parametrize("kind", BUILDERS)
def test_nothing_is_invented_where_the_source_is_silent(kind: str, written: Callable) -> None:
    dataset = written(kind, **dict.fromkeys([*PATIENT_AND_STUDY, "SpecificCharacterSet"]))
    assert [keyword for keyword in PATIENT_AND_STUDY if dataset[keyword].value] == []
    assert faults(dataset, kind) == []


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize(
    "odd",
    [
        {"PatientSex": "X"},
        {"SeriesNumber": "2147483647"},
        {"PatientAge": "62"},
        {"StudyDate": "2001-09-11"},
        {"PatientName": "one", "PatientID": "<script>=cmd()" * 6},
        {"SliceThickness": None, "InstanceNumber": None},
    ],
)
def test_odd_headers_give_an_object_or_one_line(odd: dict, kind: str, written: Callable) -> None:
    try:
        assert faults(written(kind, **odd), kind) == []
    except ReadError as error:
        assert error.code == "result-header" and not any(str(value) in str(error) for value in odd.values())


def test_a_source_that_is_gone_and_an_object_that_cannot_be_read_are_refused(
    make_result: Callable, tmp_path: Path
) -> None:
    result = make_result("radiograph")
    (tmp_path / "sr.dcm").mkdir()
    with pytest.raises(ReadError, match="file-unreadable"):
        write_object(tmp_path / "sr.dcm", result, "sr")
    (series,) = scan(write_source(tmp_path / "in", "radiograph")).series
    series.files[0].unlink()
    with pytest.raises(ReadError, match="file-missing"):
        read_sources(series)


def test_no_warning_quotes_the_patient(written: Callable, caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for kind in BUILDERS:
            written(kind, PatientName="CanaryWithoutComponents")
    assert "Canary" not in "".join(str(one.message) for one in told) + caplog.text


@pytest.mark.parametrize("kind", BUILDERS)
def test_the_same_result_has_the_same_uids_and_another_has_others(
    kind: str, written: Callable, make_result: Callable, tmp_path: Path
) -> None:
    first = written(kind)
    path = tmp_path / "again.dcm"
    write_object(path, make_result("series"), kind)
    again = dcmread(path)
    write_object(tmp_path / "other.dcm", make_result("enhanced"), kind)
    other = dcmread(tmp_path / "other.dcm")
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert first[keyword].value == again[keyword].value != other[keyword].value
        assert first[keyword].value.startswith("2.25.") and len(first[keyword].value) <= 64


def test_an_object_that_is_there_stays_and_another_is_replaced(make_result: Callable, tmp_path: Path) -> None:
    path = tmp_path / "sr.dcm"
    write_object(path, make_result("series"), "sr")
    before = path.read_bytes()
    write_object(path, make_result("series"), "sr")
    assert path.read_bytes() == before
    for damaged in (before[:200], b"", b"no DICOM"):
        path.write_bytes(damaged)
        write_object(path, make_result("series"), "sr")
        assert dcmread(path).SOPInstanceUID == result_uid(before, tmp_path)


def result_uid(content: bytes, folder: Path) -> str:
    (folder / "kept.dcm").write_bytes(content)
    return str(dcmread(folder / "kept.dcm").SOPInstanceUID)


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SOPInstanceUID", "SeriesInstanceUID"])
def test_images_that_name_no_study_are_refused(keyword: str, tmp_path: Path) -> None:
    folder = write_source(tmp_path / "source", "radiograph", **{keyword: ""})
    with pytest.raises(ReadError, match=r"\[result-no-study\]"):
        read_sources(scan(folder).series[0])


def test_reports_and_maps_are_not_read_as_images(make_result: Callable, tmp_path: Path) -> None:
    folder = write_source(tmp_path / "source", "radiograph")
    for kind in ("sr", "map"):
        write_object(folder / f"{kind}.dcm", make_result("series"), kind)
    found = scan(folder)
    assert [one.files for one in found.series] == [(folder / "cr.dcm",)] and not found.refusals


@pytest.mark.parametrize("kind", BUILDERS)
def test_the_header_of_the_source_stays_as_it_was_read(kind: str, make_result: Callable) -> None:
    result = make_result("series", PatientID=None, PatientSex="X")
    before = [str(one.header) for one in result.sources]
    BUILDERS[kind](result)
    assert [str(one.header) for one in result.sources] == before


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize(("age", "kept"), [("062Y", "062Y"), ("62", None)])
def test_an_age_that_is_none_is_not_passed_on(
    age: str, kept: str | None, kind: str, written: Callable, tmp_path: Path
) -> None:
    assert written(kind, PatientAge=age, ImageLaterality="U").get("PatientAge") == kept
    assert "Error" not in run_tool("dciodvfy", tmp_path / f"{kind}.dcm")


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("ISO_IR 144", "Люкceмбypг"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
    ],
)
def test_names_in_other_scripts_stay_the_same_name(
    character_set: str | list[str], name: str, written: Callable
) -> None:
    for kind in BUILDERS:
        dataset = written(kind, SpecificCharacterSet=character_set, PatientName=name, StudyDescription=None)
        assert dataset.SpecificCharacterSet == "ISO_IR 192" and str(dataset.PatientName) == name


@pytest.mark.parametrize(
    ("sop_class", "modality"),
    [
        ("1.2.840.10008.5.1.4.1.1.7", "OT"),  # Secondary Capture, as of scanned films
        ("1.2.840.10008.5.1.4.1.1.1.1", "DX"),
        ("1.2.840.10008.5.1.4.1.1.1.2", "MG"),
        ("1.2.840.10008.5.1.4.1.1.6.1", "US"),
    ],
)
def test_other_kinds_of_images_have_objects_too(
    sop_class: str, modality: str, written: Callable, tmp_path: Path
) -> None:
    for kind in ("sr", "sc"):
        dataset = written(kind, "radiograph", SOPClassUID=sop_class, Modality=modality)
        assert faults(dataset, kind) == []
        assert "Error" not in run_tool("dciodvfy", tmp_path / f"{kind}.dcm")
