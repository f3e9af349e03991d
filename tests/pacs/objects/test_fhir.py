"""The FHIR Bundle: valid resources that point at each other, the study and the patient's id."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from medtl.pacs.objects.fhir import fhir_bundle, holds_bundle
from medtl.pacs.objects.result import StudyResult
from tests.pacs.objects.conftest import IDENTITY, make_result

__all__ = ["make_result"]


def resources(result: StudyResult, kind: str) -> list[dict]:
    entries = fhir_bundle(result)["entry"]
    return [one["resource"] for one in entries if one["resource"]["resourceType"] == kind]


@pytest.mark.parametrize("silent", [False, True])
def test_every_resource_is_valid(silent: bool, make_result: Callable) -> None:
    models = pytest.importorskip("fhir.resources.R4B.bundle", reason="fhir.resources is not installed")
    absent = dict.fromkeys(("PatientID", "IssuerOfPatientID", "StudyDate", "AccessionNumber"))
    bundle = fhir_bundle(make_result(**(absent if silent else {})))
    assert models.Bundle.model_validate_json(json.dumps(bundle)).entry


def test_the_report_leads_to_an_observation_for_each_class(make_result: Callable) -> None:
    result = make_result(classes=("normal", "<script>", "lesion"))
    (report,) = resources(result, "DiagnosticReport")
    observations = resources(result, "Observation")
    assert [one["reference"] for one in report["result"]] == [f"urn:uuid:{one['id']}" for one in observations]
    assert [one["valueQuantity"]["value"] for one in observations] == list(result.probabilities)
    assert [one["component"][0]["valueBoolean"] for one in observations] == [False, False, True]
    codings = [one["code"]["coding"][0] for one in observations]
    assert codings[2] == {"system": "http://snomed.info/sct", "code": "52988006", "display": "Lesion"}
    assert codings[1]["system"].startswith("urn:oid:2.25.")
    assert "lesion" in report["conclusion"] and "Research use only" in report["conclusion"]


def test_the_verdict_on_the_image_is_read_along_with_the_answer(make_result: Callable) -> None:
    said = "No, far from the training images."
    for verdict, told in (("far from the training images", True), ("", False)):
        result = replace(make_result(), ood=verdict)
        (report,) = resources(result, "DiagnosticReport")
        assert (said in report["conclusion"]) is told and "Research use only" in report["conclusion"]
        for observation in resources(result, "Observation"):
            notes = [note["text"] for note in observation["note"]]
            assert any(said in note for note in notes) is told and len(notes) == 1 + told


def test_patient_study_and_order_are_those_of_the_source(make_result: Callable) -> None:
    result = make_result()
    for resource in (*resources(result, "DiagnosticReport"), *resources(result, "Observation")):
        assert resource["status"] == "preliminary"
        assert resource["subject"]["identifier"] == {"value": "P 7", "assigner": {"display": "Ward"}}
        assert resource["effectiveDateTime"] == "2001-09-11"
        study = (resource.get("imagingStudy") or resource["derivedFrom"])[0]["identifier"]["value"]
        assert study == f"urn:oid:{IDENTITY['StudyInstanceUID']}"
    (report,) = resources(result, "DiagnosticReport")
    assert report["basedOn"][0]["identifier"]["value"] == "A-12"
    assert "Çelik" not in json.dumps(fhir_bundle(result), ensure_ascii=False)


@pytest.mark.parametrize("day", ["20011341", "2001", "2001W011", "2001-09-11", "", None])
def test_a_date_that_is_none_is_left_out(day: str | None, make_result: Callable) -> None:
    assert "effectiveDateTime" not in resources(make_result(StudyDate=day), "DiagnosticReport")[0]


def test_the_device_is_the_model(make_result: Callable) -> None:
    result = make_result()
    (device,) = resources(result, "Device")
    assert {one["device"]["reference"] for one in resources(result, "Observation")} == {
        f"urn:uuid:{device['id']}"
    }
    assert f"model SHA-256: {'ab' * 32}" in [note["text"] for note in device["note"]]


def test_a_file_holds_the_bundle_of_its_own_result_alone(make_result: Callable, tmp_path) -> None:
    path = tmp_path / "bundle.json"
    one, other = make_result(), make_result("series")
    assert not holds_bundle(path, one)
    path.write_text(json.dumps(fhir_bundle(one)))
    assert holds_bundle(path, one) and not holds_bundle(path, other)
    path.write_text("[]")
    assert not holds_bundle(path, one)
