"""The Structured Report: what highdicom's own parser and dcmtk read out of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from highdicom.sr import EnhancedSR, MeasurementReport, srread
from highdicom.sr.utils import find_content_items
from pydicom.sr.codedict import codes

from medtl.inference.ood import OodVerdict
from medtl.pacs.objects.concepts import (
    OOD_CHECK,
    OOD_VERDICTS,
    PREDICTED,
    PROBABILITY,
    SCHEME,
    THRESHOLD,
    class_concept,
)
from medtl.pacs.objects.result import StudyResult
from medtl.pacs.objects.structured_report import structured_report
from tests.pacs.objects.conftest import KINDS, referenced, run_tool


def read_again(result: StudyResult, path: Path) -> EnhancedSR:
    structured_report(result).save_as(path, enforce_file_format=True)
    return srread(path)


def groups_of(report: EnhancedSR) -> list:
    assert isinstance(report.content, MeasurementReport)
    return report.content.get_image_measurement_groups()


def test_each_class_is_a_group_with_its_probability(make_result: Callable, tmp_path: Path) -> None:
    result = make_result(classes=("normal", "glioma", "lesion"))
    groups = groups_of(read_again(result, tmp_path / "sr.dcm"))
    found = {group.finding_type.meaning: group for group in groups}
    assert list(found) == ["Normal", "glioma", "Lesion"]
    values = [group.get_measurements(PROBABILITY)[0].value for group in groups]
    assert values == pytest.approx(result.probabilities)
    answers = [group.get_qualitative_evaluations(PREDICTED)[0].value.meaning for group in groups]
    assert answers == ["No", "No", "Yes"]
    assert found["Lesion"].get_measurements(THRESHOLD)[0].value == 0.4
    assert not found["Normal"].get_measurements(THRESHOLD)


@pytest.mark.parametrize("verdict", get_args(OodVerdict))
def test_each_group_says_whether_the_model_may_judge_the_image(
    verdict: str, make_result: Callable, tmp_path: Path
) -> None:
    result = replace(make_result(), ood=verdict)
    for group in groups_of(read_again(result, tmp_path / "sr.dcm")):
        said = [item.value for item in group.get_qualitative_evaluations(OOD_CHECK)]
        assert [code.meaning for code in said] == ([OOD_VERDICTS[verdict].meaning] if verdict else [])
        assert all(len(code.value) <= 16 and len(code.meaning) <= 64 for code in said)
    said = run_tool("dciodvfy", tmp_path / "sr.dcm")
    assert "Error" not in said, said


def test_a_class_without_a_code_has_one_of_the_private_scheme() -> None:
    own, known = class_concept("Glioma, grade II"), class_concept("Pleural_Effusion")
    assert own.scheme_designator == SCHEME and own.meaning == "Glioma, grade II"
    assert own == class_concept("Glioma, grade II") != class_concept("glioma, grade II")
    assert (known.scheme_designator, known.value) == ("SCT", "60046008")


@pytest.mark.parametrize("kind", KINDS)
def test_the_images_that_were_judged_are_referenced(kind: str, make_result: Callable, tmp_path: Path) -> None:
    result = make_result(kind)
    report = read_again(result, tmp_path / "sr.dcm")
    for group in groups_of(report):
        images = find_content_items(group[0], name=codes.DCM.SourceOfMeasurement, recursive=True)
        frames = [
            tuple(image.referenced_frame_numbers) if image.referenced_frame_numbers else None
            for image in images
        ]
        uids = [str(image.referenced_sop_instance_uid) for image in images]
        assert set(zip(uids, frames, strict=True)) == referenced(result)
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == report.StudyInstanceUID == result.sources[0].header.StudyInstanceUID
    evidence = [item for one in study.ReferencedSeriesSequence for item in one.ReferencedSOPSequence]
    assert {str(item.ReferencedSOPInstanceUID) for item in evidence} == {uid for uid, _ in referenced(result)}


def test_the_model_is_named_and_the_report_is_unverified(make_result: Callable, tmp_path: Path) -> None:
    result = make_result("series")
    report = read_again(result, tmp_path / "sr.dcm")
    texts = [item.value for item in find_content_items(report, recursive=True, value_type="TEXT")]
    assert f"model SHA-256: {'ab' * 32}" in texts and "backbone: resnet18" in texts
    assert "Research use only. Not for diagnosis." in texts
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")


def test_the_procedure_is_the_sources_own_where_it_names_one(make_result: Callable, tmp_path: Path) -> None:
    from pydicom import Dataset

    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "CXR2", "99WARD", "Göğüs"
    report = read_again(make_result(ProcedureCodeSequence=[code]), tmp_path / "sr.dcm")
    (named,) = find_content_items(report, name=codes.DCM.ProcedureReported)
    assert (named.value.value, named.value.meaning) == ("CXR2", "Göğüs")


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "=cmd()", "a\\b\n\0c", "異常" * 50, " "])
def test_odd_class_names_stay_text(name: str, make_result: Callable, tmp_path: Path) -> None:
    groups = groups_of(read_again(make_result(classes=("normal", name)), tmp_path / "sr.dcm"))
    meaning = groups[1].finding_type.meaning
    assert 0 < len(meaning) <= 64 and "\\" not in meaning and meaning.isprintable()


def test_dcmtk_reads_the_report(make_result: Callable, tmp_path: Path) -> None:
    read_again(make_result("enhanced"), tmp_path / "sr.dcm")
    said = run_tool("dsrdump", "+U8", tmp_path / "sr.dcm")
    assert "Imaging Measurement Report" in said and 'NUM:(,,"Probability")="0.75"' in said
    assert "E: " not in said
