"""Score a folder of DICOM studies, and write the objects that go back to the PACS about each series.

folder -> scored series -> OUT/dicom: Structured Report, Secondary Capture, Parametric Map
                        -> OUT/fhir, results.csv
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medtl.core import __version__
from medtl.core.files import check_apart, write_csv
from medtl.core.progress import Watcher
from medtl.errors import ReadError
from medtl.evaluation.conformal import in_sets
from medtl.explain import METHODS, check_method, default_method
from medtl.explain.explanation import explain
from medtl.imaging.dicom.patient import read_sources
from medtl.imaging.dicom.reader import SHARED_UID
from medtl.imaging.reader import scan
from medtl.imaging.series import Scan, Series
from medtl.inference.contract import calibration_words
from medtl.inference.predictor import Prediction, Scored, score_series
from medtl.pacs.objects import KINDS
from medtl.pacs.objects.result import ModelIdentity, StudyResult
from medtl.pacs.objects.write import object_path, write_object
from medtl.training.checkpoint import Checkpoint

COLUMNS = ("sample_id", "source", "status", "code", "reason", "predicted")
# Parts of a checkpoint's header that decide how scores become results.
SETTINGS = {"task_kind", "classes", "preprocessing", "thresholds", "calibration", "conformal", "ood"}


@dataclass(frozen=True)
class ResultRow:
    """The files written about one series, as paths within OUT by kind, and why one is missing."""

    prediction: Prediction
    files: dict[str, str]

    @property
    def refused(self) -> bool:
        """Whether the study, or one of its objects, was refused."""
        return self.prediction.status == "refused" or bool(self.prediction.fix)


@dataclass(frozen=True)
class ResultsOutcome:
    """The table of a folder's results, and its rows."""

    table: Path
    rows: tuple[ResultRow, ...]


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

    An object is named by its UID, and an existing one is left as it is. method: of saliency; by default the
    one that suits the network. Raises ConfigError saliency-method; OutputError output-unwritable, also if
    `out` lies in `folder`.
    """
    check_apart(out, folder)
    method = method or default_method(checkpoint.classifier)
    check_method(method, checkpoint.classifier)
    model = model_identity(checkpoint)
    reading = checkpoint.preprocessing.reading
    studies = _refuse_others(scan(folder, reading=reading, watcher=watcher))
    total, rows = len(studies.series) + len(studies.refusals), list[ResultRow]()
    for done, scored in enumerate(score_series(checkpoint, studies, folder, batch_size=1), start=1):
        rows.append(_write_results(scored, checkpoint, model, method, kinds, out))
        watcher.progress("writing results", done, total)
    flat = sum(bool(row.files) and "map" not in row.files and not row.refused for row in rows)
    if "map" in kinds and flat:
        watcher.note("note", f"{flat} images are not volumes: a Parametric Map needs a volume")
    written = {Path(path).name for row in rows for path in row.files.values()}
    others = sum(path.name not in written for path in (out / "dicom").glob("*.dcm"))
    if others:
        text = f"{out} holds {others} more objects of earlier results: medtl pacs push would send them too"
        watcher.note("note", text)
    table = out / "results.csv"
    write_csv(table, [[*COLUMNS, *KINDS], *map(_cells, rows)])
    return ResultsOutcome(table, tuple(rows))


def model_identity(checkpoint: Checkpoint) -> ModelIdentity:
    """Return the identity of a model, as its objects state it."""
    header = checkpoint.header
    acceptance = {"preprocessing": {"modalities", "body_parts"}}  # what is scored, not how
    settings = header.model_dump_json(include=SETTINGS, exclude=acceptance)
    settings = settings.replace('"ood":', '"screening":')  # as 0.1.0 hashed it: what was sent stays sent
    return ModelIdentity(
        backbone=header.backbone,
        weights=(header.weights or {}).get("source", "none, trained from random weights"),
        sha256=checkpoint.sha256,
        settings_sha256=hashlib.sha256(settings.encode()).hexdigest(),
        medtl=__version__,
        calibration=calibration_words(checkpoint),
        thresholds=checkpoint.thresholds,
    )


def _refuse_others(studies: Scan) -> Scan:
    """Refuse, before anything is scored, the series to which no result can refer."""
    accepted, refusals = list[Series](), [*studies.refusals]
    for series in studies.series:
        where = f"{series.path}#{series.item}" if series.item else series.path
        if series.format != "dicom":
            reason = f"is not DICOM but {series.format}, so there is no study for the result to go back to"
            refusals.append(ReadError("result-no-study", reason, where=where, fix="use medtl score"))
        elif SHARED_UID in series.notes:  # a reference by UID would name both
            reason = "shares its SOPInstanceUID with a file of other content"
            fix = "keep the correct one of them"
            refusals.append(ReadError("result-ambiguous", reason, where=where, fix=fix))
        else:
            accepted.append(series)
    return replace(studies, series=tuple(accepted), refusals=tuple(refusals))


def _write_results(
    scored: Scored, checkpoint: Checkpoint, model: ModelIdentity, method: str, kinds: Sequence[str], out: Path
) -> ResultRow:
    row, files = scored.prediction, dict[str, str]()
    if scored.image is None:
        return ResultRow(row, files)
    assert scored.series and scored.prepared
    try:
        sources = read_sources(scored.series)
        explanation = explain(checkpoint, scored.image, scored.prepared, row.probabilities, method)
    except ReadError as error:
        return ResultRow(_with_error(row, error, "refused"), files)
    result = StudyResult(
        sources=sources,
        image=scored.image,
        task=checkpoint.task,
        probabilities=row.probabilities,
        predicted=tuple(row.predicted.split("|")) if row.predicted else (),
        prediction_set=_prediction_set(checkpoint, row.probabilities),
        ood=row.ood,
        target_class=explanation.target_class,
        method=METHODS[method].name,
        heatmap=explanation.heatmap,
        model=model,
    )
    for kind in kinds:
        if kind == "map" and result.image.affine is None:
            continue  # not a volume, so there is no grid of slices
        path = object_path(result, kind)
        try:
            write_object(out / path, result, kind)
        except ReadError as error:
            row = _with_error(row, error, row.status)
        else:
            files[kind] = path
    return ResultRow(row, files)


def _prediction_set(checkpoint: Checkpoint, probabilities: Sequence[float]) -> tuple[str, ...] | None:
    """Return the classes of the prediction set; in multilabel those that may be present."""
    floors, task = checkpoint.header.conformal, checkpoint.task
    if floors is None:
        return None
    members = in_sets(np.array([probabilities]), floors)[0]
    present = members[:, 1] if task.kind == "multilabel" else members
    return tuple(name for name, member in zip(task.classes, present, strict=True) if member)


def _with_error(row: Prediction, error: ReadError, status: str) -> Prediction:
    return replace(row, status=status, code=error.code, reason=error.reason, fix=error.fix)


def _cells(row: ResultRow) -> list[str]:
    cells = [str(getattr(row.prediction, column)) for column in COLUMNS]
    return [*cells, *(row.files.get(kind, "") for kind in KINDS)]
