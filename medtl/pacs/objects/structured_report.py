"""Turn a study's result into a Structured Report: one measurement group a class (PS3.16 TID 1500, 1501)."""

from collections.abc import Iterator

from highdicom import sr
from pydicom import Dataset
from pydicom.sr.codedict import codes

from medtl.pacs.objects import concepts
from medtl.pacs.objects.result import StudyResult

DECIMALS = 6


def structured_report(result: StudyResult) -> sr.EnhancedSR:
    """Return the classification with its probabilities, the model, and references to the images scored.

    It is preliminary and unverified: no person has reviewed it.
    """
    headers = result.headers()
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=result.model.uid,
        name="medtl",
        manufacturer_name="medtl",
        model_name=result.model.backbone,
        serial_number=result.model.sha256[:16],
    )
    observer = sr.ObserverContext(codes.DCM.Device, device)
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=_procedures(headers[0]),
        imaging_measurements=list(_groups(result)),
        title=codes.DCM.ImagingMeasurementReport,
        language_of_content_item_and_descendants=sr.LanguageOfContentItemAndDescendants(
            sr.CodedConcept("en", "RFC5646", "English")
        ),
    )
    return sr.EnhancedSR(
        evidence=headers,
        content=report,
        is_complete=True,
        is_final=False,
        coding_schemes=[concepts.SCHEME_ITEM],
        **result.identity("sr"),
    )


def _procedures(header: Dataset) -> list[sr.CodedConcept]:
    """Return the procedures coded in the source; otherwise the one that its modality implies."""
    keywords = ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")
    coded = [[item.get(key) for key in keywords] for item in header.get("ProcedureCodeSequence") or ()]
    named = [sr.CodedConcept(*map(str, parts)) for parts in coded if all(parts)]
    implied = concepts.PROCEDURES.get(str(header.get("Modality") or ""), concepts.IMAGING)
    return named or [sr.CodedConcept.from_code(implied)]


def _groups(result: StudyResult) -> Iterator[sr.MeasurementsAndQualitativeEvaluations]:
    algorithm = sr.AlgorithmIdentification(
        name="medtl",
        version=result.model.medtl,
        family=concepts.ARTIFICIAL_INTELLIGENCE,
        parameters=list(result.model.parameters()),
    )
    images = [
        sr.SourceImageForMeasurementGroup(
            str(one.header.SOPClassUID),
            str(one.header.SOPInstanceUID),
            None if one.frames is None else list(one.frames),
        )
        for one in result.sources
    ]
    for name, probability in zip(result.task.classes, result.probabilities, strict=True):
        values = {concepts.PROBABILITY: probability}
        if name in result.model.thresholds:
            values[concepts.THRESHOLD] = result.model.thresholds[name]
        yield sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(result.uid("class", name), name),
            finding_type=concepts.class_concept(name),
            algorithm_id=algorithm,
            measurements=[
                sr.Measurement(concept, round(value, DECIMALS), concepts.NO_UNITS)
                for concept, value in values.items()
            ],
            qualitative_evaluations=_evaluations(result, name),
            source_images=images,
        )


def _evaluations(result: StudyResult, name: str) -> list[sr.QualitativeEvaluation]:
    said = {True: concepts.YES, False: concepts.NO}
    answers = {concepts.PREDICTED: said[name in result.predicted]}
    if result.prediction_set is not None:
        answers[concepts.IN_PREDICTION_SET] = said[name in result.prediction_set]
    if result.ood:
        answers[concepts.OOD_CHECK] = concepts.OOD_VERDICTS[result.ood]
    return [sr.QualitativeEvaluation(question, answer) for question, answer in answers.items()]
