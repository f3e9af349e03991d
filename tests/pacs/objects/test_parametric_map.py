"""The Parametric Map: the heatmap where it was, read back from the file alone."""

from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pytest
from pydicom import Dataset

from medtl.errors import ReadError
from medtl.pacs.objects.parametric_map import RAS_TO_LPS, parametric_map
from medtl.pacs.objects.result import StudyResult
from tests.pacs.objects.conftest import KINDS, referenced, run_tool

VOLUMES = KINDS[1:]


def write(result: StudyResult, path: Path) -> highdicom.Image:
    parametric_map(result).save_as(path, enforce_file_format=True)
    return highdicom.imread(path)


@pytest.mark.parametrize("kind", VOLUMES)
def test_values_and_places_come_back(kind: str, make_result: Callable, tmp_path: Path) -> None:
    result = make_result(kind)
    found = write(result, tmp_path / "map.dcm").get_volume()
    assert result.image.affine is not None
    expected = highdicom.Volume(
        result.heatmap, affine=RAS_TO_LPS @ result.image.affine, coordinate_system="PATIENT"
    ).match_geometry(found)
    np.testing.assert_allclose(found.array, expected.array, atol=1e-4)
    assert found.array.max() == pytest.approx(1.0)


@pytest.mark.parametrize("kind", VOLUMES)
def test_it_refers_to_the_images_judged_in_their_frame(
    kind: str, make_result: Callable, tmp_path: Path
) -> None:
    result = make_result(kind)
    found = write(result, tmp_path / "map.dcm")
    assert found.FrameOfReferenceUID == result.sources[0].header.FrameOfReferenceUID
    items = [item for one in found.ReferencedSeriesSequence for item in one.ReferencedInstanceSequence]
    assert {str(item.ReferencedSOPInstanceUID) for item in items} == {uid for uid, _ in referenced(result)}


@pytest.mark.parametrize("kind", ["series", "enhanced", "second echo"])
def test_each_frame_refers_to_its_slice(kind: str, make_result: Callable, tmp_path: Path) -> None:
    result = make_result(kind)
    frames = write(result, tmp_path / "map.dcm").PerFrameFunctionalGroupsSequence
    found = {_reference(frame) for frame in frames}
    assert len(found) == len(frames)
    for uid, numbers in referenced(result):
        own = {frame for instance, frame in found if instance == uid}
        assert own == ({None} if numbers is None else set(numbers))


def _reference(frame: Dataset) -> tuple[str, int | None]:
    (item,) = frame.DerivationImageSequence[0].SourceImageSequence
    number = item.get("ReferencedFrameNumber")
    return str(item.ReferencedSOPInstanceUID), None if number is None else int(number)


def test_its_values_say_what_they_are(make_result: Callable, tmp_path: Path) -> None:
    found = write(make_result("series"), tmp_path / "map.dcm")
    (mapping,) = found.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
    quantity = mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0]
    assert quantity.CodeValue == "130404"
    assert mapping.RealWorldValueSlope * 65535 == pytest.approx(1.0)
    assert found.ContentQualification == "RESEARCH" and "Research use only" in found.ImageComments


def test_slices_without_a_frame_of_reference_get_no_map(make_result: Callable) -> None:
    with pytest.raises(ReadError, match=r"\[result-no-frame\]"):
        parametric_map(make_result("series", FrameOfReferenceUID=None))


def test_dcmtk_renders_a_frame(make_result: Callable, tmp_path: Path) -> None:
    write(make_result("series"), tmp_path / "map.dcm")
    run_tool("dcm2pnm", "--write-raw-pnm", "--frame", "2", tmp_path / "map.dcm", tmp_path / "map.pgm")
    assert (tmp_path / "map.pgm").read_bytes().startswith(b"P5")
