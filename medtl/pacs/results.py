"""Score a folder of DICOM studies, and write what goes back to the PACS about each of them.

folder -> scored series -> OUT/dicom: Structured Report, Secondary Capture, Parametric Map
                        -> OUT/fhir, results.csv
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medtl import __version__
from medtl.core.files import check_apart, write_csv, write_json
from medtl.core.progress import Watcher
from medtl.errors import ReadError
from medtl.evaluation.conformal import in_sets
from medtl.explain import METHODS, check_method, default_method
from medtl.explain.explanation import explain
from medtl.imaging.dicom.patient import read_sources
from medtl.imaging.dicom.reader import SHARED_UID
from medtl.imaging.reader import scan
from medtl.imaging.series import Scan, Series
from medtl.inference.contract import calibration_words, thresholds
from medtl.inference.predictor import Prediction, Scored, score_series
from medtl.pacs.objects.fhir import bundle_id, fhir_bundle, holds_bundle
from medtl.pacs.objects.headers import instance_uid
from medtl.pacs.objects.result import ModelIdentity, StudyResult
from medtl.pacs.objects.write import BUILDERS, write_object
from medtl.training.checkpoint import Checkpoint

KINDS = (*BUILDERS, "fhir")
COLUMNS = ("sample_id", "source", "status", "code", "reason", "predicted", *KINDS)


@dataclass(frozen=True)
class ResultRow:
    """What was written about one series: paths within OUT by kind; and why something was not."""

    prediction: Prediction
    files: dict[str, str]

    @property
    def refused(self) -> bool:
        """Whether something that was asked for is not there, the study or one object."""
        return self.prediction.status == "refused" or bool(self.prediction.fix)


@dataclass(frozen=True)
class ResultsOutcome:
    """What a folder's results came to."""

    table: Path
    rows: tuple[ResultRow, ...]


@dataclass(frozen=True, eq=False)
class _Job:
    """What is the same for all series of a folder."""

    checkpoint: Checkpoint
    model: ModelIdentity
    method: str


def write_results(
    checkpoint: Checkpoint,
    folder: Path,
    out: Path,
    watcher: Watcher,
    *,
    kinds: Sequence[str] = KINDS,
    method: str | None = None,
) -> ResultsOutcome:
    """Write the objects of `kinds` about each DICOM series of a folder below `out`, and results.csv.

    An object is named by its UID: one that is there stays as it is, whatever its series is called now.
    method: of saliency; by default the one that suits the network. Raises ConfigError saliency-method;
    OutputError output-unwritable, also where `out` lies in `folder`.
    """
    check_apart(out, folder)
    method = method or default_method(checkpoint.classifier)
    check_method(method, checkpoint.classifier)
    job = _Job(checkpoint, model_identity(checkpoint), method)
    found = _refuse_others(scan(folder))
    total, rows = len(found.series) + len(found.refusals), []
    for done, scored in enumerate(score_series(checkpoint, found, folder, batch_size=1), start=1):
        rows.append(_write_results(job, scored, kinds, out))
        watcher.progress("writing results", done, total)
    flat = sum(bool(row.files) and "map" not in row.files and not row.refused for row in rows)
    if "map" in kinds and flat:
        watcher.note("note", f"{flat} images are no volumes: a map is for volumes alone")
    others = _count_others(out, rows)
    if others:
        text = f"{out} holds {others} more objects, of earlier results: medtl pacs push would send them, too"
        watcher.note("note", text)
    table = out / "results.csv"
    write_csv(table, [COLUMNS, *map(_cells, rows)])
    return ResultsOutcome(table, tuple(rows))


def _count_others(out: Path, rows: Sequence[ResultRow]) -> int:
    """Return how many DICOM objects in `out` are of none of the rows."""
    written = {Path(path).name for row in rows for path in row.files.values()}
    return sum(path.name not in written for path in (out / "dicom").glob("*.dcm"))


def model_identity(checkpoint: Checkpoint) -> ModelIdentity:
    """Return what objects say of the model that made them."""
    header = checkpoint.header
    lenient = {"modalities", "body_parts"}
    settings = header.model_dump_json(
        include={
            "task_kind",
            "classes",
            "preprocessing",
            "thresholds",
            "calibration",
            "conformal",
            "ood",
        },
        exclude={"preprocessing": lenient},
    )
    return ModelIdentity(
        backbone=header.backbone,
        weights=(header.weights or {}).get("source", "nothing: from random weights"),
        sha256=checkpoint.sha256,
        settings_sha256=hashlib.sha256(settings.encode()).hexdigest(),
        medtl=__version__,
        calibration=calibration_words(checkpoint),
        thresholds=thresholds(checkpoint),
    )


def _refuse_others(found: Scan) -> Scan:
    """Refuse before it is scored what no result could go back to, or not to it alone."""
    errors = [_no_way_back(series) for series in found.series]
    kept = tuple(series for series, error in zip(found.series, errors, strict=True) if error is None)
    return replace(found, series=kept, refusals=(*found.refusals, *filter(None, errors)))


def _no_way_back(series: Series) -> ReadError | None:
    where = f"{series.path}#{series.item}" if series.item else series.path
    if series.format != "dicom":
        reason = f"is no DICOM ({series.format}), so no study is there for a result to go back to"
        return ReadError("result-no-study", reason, where=where, fix="use medtl score")
    if SHARED_UID in series.notes:  # a reference by UID would name both
        reason = "shares its SOPInstanceUID with a file of another content"
        return ReadError("result-ambiguous", reason, where=where, fix="keep the right one of them")
    return None


def _write_results(job: _Job, scored: Scored, kinds: Sequence[str], out: Path) -> ResultRow:
    row, files = scored.prediction, dict[str, str]()
    if scored.image is None:
        return ResultRow(row, files)
    try:
        result = _study_result(job, scored)
    except ReadError as error:
        return ResultRow(_with_error(row, error, "refused"), files)
    for kind in kinds:
        if kind == "map" and result.image.affine is None:
            continue  # an image that is no volume has no grid of slices
        path = _path_of(result, kind)
        try:
            _write(out / path, result, kind)
        except ReadError as error:
            row = _with_error(row, error, row.status)
        else:
            files[kind] = path
    return ResultRow(row, files)


def _study_result(job: _Job, scored: Scored) -> StudyResult:
    assert scored.series and scored.image and scored.prepared
    checkpoint, row = job.checkpoint, scored.prediction
    sources = read_sources(scored.series)
    explanation = explain(checkpoint, scored.image, scored.prepared, row.probabilities, job.method)
    return StudyResult(
        sources=sources,
        image=scored.image,
        task=checkpoint.task,
        probabilities=row.probabilities,
        predicted=tuple(row.predicted.split("|")) if row.predicted else (),
        prediction_set=_prediction_set(checkpoint, row.probabilities),
        ood=row.ood,
        target_class=explanation.target_class,
        method=METHODS[job.method].name,
        heatmap=explanation.heatmap,
        model=job.model,
    )


def _prediction_set(checkpoint: Checkpoint, probabilities: Sequence[float]) -> tuple[str, ...] | None:
    """Return the classes of the prediction set; in multilabel those that may be present."""
    floors, task = checkpoint.header.conformal, checkpoint.task
    if floors is None:
        return None
    members = in_sets(np.array([probabilities]), floors)[0]
    present = members[:, 1] if task.kind == "multilabel" else members
    return tuple(name for name, member in zip(task.classes, present, strict=True) if member)


def _path_of(result: StudyResult, kind: str) -> str:
    if kind == "fhir":
        return f"fhir/{bundle_id(result)}.json"
    return f"dicom/{instance_uid(result, kind)}-{kind}.dcm"


def _write(path: Path, result: StudyResult, kind: str) -> None:
    if kind != "fhir":
        write_object(path, result, kind)
    elif not holds_bundle(path, result):
        write_json(path, fhir_bundle(result))


def _with_error(row: Prediction, error: ReadError, status: str) -> Prediction:
    return replace(row, status=status, code=error.code, reason=error.reason, fix=error.fix)


def _cells(row: ResultRow) -> list[str]:
    said = row.prediction
    facts = [said.sample_id, said.source, said.status, said.code, said.reason, said.predicted]
    return [*facts, *(row.files.get(kind, "") for kind in KINDS)]
