"""Turn a study's result into a FHIR R4 Bundle: a DiagnosticReport, an Observation a class, and the Device."""

import re
import uuid
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from medtl.core.files import read_json
from medtl.imaging.dicom.patient import SourceFile
from medtl.pacs.objects.concepts import PREDICTED, PROBABILITY, SCHEME, class_concept, ood_text
from medtl.pacs.objects.result import RESEARCH_ONLY, StudyResult, derived_uid

Resource = dict[str, Any]

SYSTEMS = {
    "SCT": "http://snomed.info/sct",
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    SCHEME: f"urn:oid:{derived_uid(SCHEME)}",
}
URI = "urn:ietf:rfc:3986"
TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
# No person has verified it (DiagnosticReport.status, Observation.status).
STATUS = "preliminary"


def fhir_bundle(result: StudyResult) -> Resource:
    """Return a model's result as plain data; the patient is identified by the id alone."""
    observations = [_observation(result, name) for name in result.task.classes]
    resources = [_report(result, observations), *observations, _device(result)]
    return {
        "resourceType": "Bundle",
        "id": bundle_id(result),
        "identifier": {"system": URI, "value": f"urn:oid:{result.uid('fhir')}"},
        "type": "collection",
        "timestamp": _now(),
        "entry": [{"fullUrl": f"urn:uuid:{one['id']}", "resource": one} for one in resources],
    }


def bundle_id(result: StudyResult) -> str:
    """Return the id of the Bundle for a result."""
    return _id(result.uid("fhir"))


def holds_bundle(path: Path, result: StudyResult) -> bool:
    """Return whether a file already holds the Bundle for this result."""
    try:
        return bool(read_json(path)["id"] == bundle_id(result))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _report(result: StudyResult, observations: list[Resource]) -> Resource:
    source = result.sources[0]
    predicted = ", ".join(result.predicted) or "none of the findings"
    return {
        "resourceType": "DiagnosticReport",
        "id": _id(result.uid("fhir", "report")),
        "status": STATUS,
        "category": [{"coding": [_coding(f"{TERMINOLOGY}/v2-0074", "RAD", "Radiology")]}],
        "code": {"coding": [_coding("http://loinc.org", "18748-4", "Diagnostic imaging study")]},
        **_context(source),
        **_request(source),
        "issued": _now(),
        "result": [{"reference": f"urn:uuid:{one['id']}"} for one in observations],
        "imagingStudy": [_study(source)],
        "conclusion": " ".join([f"Predicted by the model: {predicted}.", *_remarks(result)]),
    }


def _observation(result: StudyResult, name: str) -> Resource:
    source, model, place = result.sources[0], result.model, result.task.classes.index(name)
    probability = round(result.probabilities[place], 6)
    predicted = _coding(SYSTEMS[SCHEME], PREDICTED.value, PREDICTED.meaning)
    concept = class_concept(name)
    coded = _coding(SYSTEMS[concept.scheme_designator], concept.value, concept.meaning)
    return {
        "resourceType": "Observation",
        "id": _id(result.uid("fhir", "observation", name)),
        "status": STATUS,
        "category": [{"coding": [_coding(f"{TERMINOLOGY}/observation-category", "imaging", "Imaging")]}],
        "code": {"coding": [coded], "text": f"{PROBABILITY.meaning} of {name}"},
        **_context(source),
        "issued": _now(),
        "valueQuantity": {"value": probability, "system": "http://unitsofmeasure.org", "code": "1"},
        "component": [{"code": {"coding": [predicted]}, "valueBoolean": name in result.predicted}],
        "method": {"text": f"medtl {model.medtl}, {model.backbone}, {model.calibration}"},
        "device": {"reference": f"urn:uuid:{_id(model.uid)}"},
        "derivedFrom": [_study(source)],
        "note": [{"text": text} for text in _remarks(result)],
    }


def _remarks(result: StudyResult) -> list[str]:
    """Return the caveats of a result: the out-of-distribution check, if any, and its intended use."""
    return [*filter(None, [ood_text(result.ood)]), RESEARCH_ONLY]


def _device(result: StudyResult) -> Resource:
    return {
        "resourceType": "Device",
        "id": _id(result.model.uid),
        "identifier": [{"system": URI, "value": f"urn:oid:{result.model.uid}"}],
        "manufacturer": "medtl",
        "modelNumber": result.model.backbone,
        "deviceName": [{"name": "medtl", "type": "manufacturer-name"}],
        "version": [{"value": result.model.medtl}],
        "note": [{"text": text} for text in result.model.parameters()],
    }


def _context(source: SourceFile) -> Resource:
    """Return the patient and the date of the study, as far as the source states them."""
    context: Resource = {}
    if patient := str(source.header.get("PatientID") or ""):
        identifier: Resource = {"value": patient}
        if issuer := str(source.header.get("IssuerOfPatientID") or ""):
            identifier["assigner"] = {"display": issuer}
        context["subject"] = {"type": "Patient", "identifier": identifier}
    day = str(source.header.get("StudyDate") or "")
    with suppress(ValueError):  # not a date
        if re.fullmatch("[0-9]{8}", day):  # the only form that DICOM has; ISO 8601 has others
            context["effectiveDateTime"] = date.fromisoformat(day).isoformat()
    return context


def _request(source: SourceFile) -> Resource:
    accession = str(source.header.get("AccessionNumber") or "")
    if not accession:
        return {}
    kind = {"coding": [{"system": f"{TERMINOLOGY}/v2-0203", "code": "ACSN"}]}
    return {"basedOn": [{"type": "ServiceRequest", "identifier": {"type": kind, "value": accession}}]}


def _study(source: SourceFile) -> Resource:
    identifier = {"system": "urn:dicom:uid", "value": f"urn:oid:{source.header.StudyInstanceUID}"}
    return {"type": "ImagingStudy", "identifier": identifier}


def _coding(system: str, code: str, display: str) -> Resource:
    return {"system": system, "code": code, "display": display}


def _id(uid: str) -> str:
    """Return the UUID from which a UID of medtl was derived."""
    return str(uuid.UUID(int=int(uid.removeprefix("2.25."))))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
