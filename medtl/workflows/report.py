"""Write pages with saliency maps for the studies of a folder, and whether the maps can be trusted.

folder -> scored studies -> maps -> findings -> pages
                         -> cases -> an audit of each method, in words
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from medtl.core.files import PathLike, check_apart, read_json
from medtl.core.progress import SILENT, Watcher
from medtl.data.manifest import load_manifest, targets
from medtl.data.naming import sample_key, source_name
from medtl.data.task import Task
from medtl.errors import CODES, CheckpointError, OutputError, ReadError
from medtl.evaluation.metrics import predict_classes
from medtl.evaluation.predictions import FILE, Predictions, read_predictions
from medtl.explain import METHODS, check_method, default_method
from medtl.explain.audit import AuditSettings, Case, find_case, to_json
from medtl.explain.audit import audit as audit_methods
from medtl.explain.explanation import explain
from medtl.imaging.dicom.patient import read_identifiers
from medtl.imaging.dicom.terms import shown_body_part, shown_modality, shown_view
from medtl.imaging.display import make_display
from medtl.imaging.image import Image
from medtl.imaging.reader import read_series, scan
from medtl.imaging.series import Scan
from medtl.inference.predictor import Scored, score_series
from medtl.report.findings import MapCheck, Refusal, StudyFinding
from medtl.report.formatting import words_of_audit
from medtl.report.model_card import model_card
from medtl.report.run_page import WrongAnswer, write_run_page
from medtl.report.site import WrittenReport, write_report
from medtl.training.checkpoint import Checkpoint, load_finished
from medtl.training.run_folder import RunFolder
from medtl.workflows.evaluate import task_config

T = TypeVar("T")
LONGEST_SIDE = 512  # px that are kept of an image
LARGEST_VOLUME = 8_000_000  # voxels that a page holds; the slices of a larger volume are shrunk

# The checks of a report are the cheap part of an audit: half of what medtl explain --audit does.
QUICK = AuditSettings(map_cases=3, noise_draws=1)
NOTHING_TO_CHECK = MapCheck(
    "unchecked", "Its maps were not checked: the model predicted the explained class for no image."
)
WRONG_SHOWN = 12


@dataclass(frozen=True)
class _Job:
    """What every study of a report needs. labels: by sample id. check_images: how many for the audit."""

    checkpoint: Checkpoint
    methods: Sequence[str]
    labels: Mapping[str, tuple[str, ...]]
    check_images: int
    with_identifiers: bool
    cases: list[Case] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


def report_folder(
    run: PathLike,
    source: PathLike,
    out: PathLike,
    *,
    methods: Sequence[str] = (),
    check_images: int = 6,
    audit: PathLike | None = None,
    labels: PathLike | None = None,
    with_identifiers: bool = False,
    any_modality: bool = False,
    watcher: Watcher = SILENT,
) -> WrittenReport:
    """Write a page for each study of a folder, or of what score_folder wrote, and an index.

    methods: names of METHODS, shown side by side; by default the one that suits the network. check_images:
    audit the methods on this many images of the report, 0 for none; audit: quote this audit by
    explain_folder instead. labels: a label table, to show where predictions differ from it.

    Raises ConfigError saliency-method; CheckpointError run-changed, scores-damaged; LabelError.

    >>> import medtl
    >>> images = medtl.sample_data("unlabelled") / "xray"
    >>> medtl.report_folder("runs/xray", images, "report", check_images=0).index.name
    'index.html'
    """
    run, out = Path(run), Path(out)
    checkpoint = load_finished(run, any_modality=any_modality)
    methods = methods or (default_method(checkpoint.classifier),)
    for method in methods:
        check_method(method, checkpoint.classifier)
    checks = {} if audit is None else _read_audit(Path(audit), checkpoint)
    folder = _scored_folder(Path(source), checkpoint)
    check_apart(out, folder)
    if out.resolve() == run.resolve():
        reason, fix = "is the run itself", "choose a folder elsewhere"
        raise OutputError("output-unwritable", reason, where=out, fix=fix)
    found = scan(folder, reading=checkpoint.preprocessing.reading, watcher=watcher)
    named = {} if labels is None else _read_labels(folder, Path(labels), run, checkpoint)
    job = _Job(checkpoint, methods, named, 0 if audit else check_images, with_identifiers)
    findings = _findings(job, found, folder, checks, watcher)
    return write_report(out, findings, job.refusals, model_card(run, checkpoint), checks)


def _scored_folder(source: Path, checkpoint: Checkpoint) -> Path:
    """Return the folder whose scores are in `source`, or `source` itself if it is a folder of studies."""
    record = source / "scores.json"
    if not record.is_file():
        return source
    return _read_record(record, checkpoint, lambda facts: Path(facts["folder"]), "medtl score")


def _read_audit(source: Path, checkpoint: Checkpoint) -> dict[str, MapCheck]:
    """Return the verdict of a stored audit on each method, by the name that pages use."""

    def read(facts: Any) -> dict[str, MapCheck]:
        basis = f"By medtl explain --audit: {facts['notes'][0]}."
        return {METHODS[row["method"]].name: words_of_audit(row, basis) for row in facts["methods"]}

    record = source / "audit.json" if source.is_dir() else source
    return _read_record(record, checkpoint, read, "medtl explain --audit")


def _read_record(record: Path, checkpoint: Checkpoint, read: Callable[[Any], T], command: str) -> T:
    """Return what `read` finds in the record that a command wrote about this model."""
    fix = f"run {command} again"
    try:
        facts = read_json(record)
        found, model = read(facts), facts["model_sha256"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError) as error:
        reason = f"was not written by {command}"
        raise CheckpointError("scores-damaged", reason, where=record, fix=fix) from error
    if model != checkpoint.sha256:
        reason = "is about another model"
        raise CheckpointError("run-changed", reason, where=record, fix=f"{fix}, or name that run")
    return found


def _read_labels(folder: Path, table: Path, run: Path, checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    """Return the label of each sample by its id; in multilabel only where every finding is labelled."""
    task, reading = checkpoint.task, checkpoint.preprocessing.reading
    samples = load_manifest(folder, table, task_config(run, task), reading).samples
    pairs = zip([sample.sample_id for sample in samples], targets(task, samples), strict=True)
    if task.kind != "multilabel":
        return {sample_id: (task.classes[int(target)],) for sample_id, target in pairs}
    return {
        sample_id: tuple(name for name, present in zip(task.classes, row, strict=True) if present)
        for sample_id, row in pairs
        if np.isfinite(row).all()
    }


def _findings(
    job: _Job, found: Scan, folder: Path, checks: dict[str, MapCheck], watcher: Watcher
) -> Iterator[StudyFinding]:
    """Yield a finding for each scored study; add refusals and cases to the job, and audits to `checks`.

    A page explains the code of a refusal; the reason itself may name a file, and stays in scores.csv.
    """
    total = len(found.series) + len(found.refusals)
    for done, scored in enumerate(score_series(job.checkpoint, found, folder, batch_size=1), start=1):
        row = scored.prediction
        if scored.image is None:
            name = row.source if job.with_identifiers else row.sample_id
            job.refusals.append(Refusal(name, row.code, CODES[row.code], row.fix))
            watcher.note("refused", f"[{row.code}] {row.source}: {row.reason}: {row.fix}")
        else:
            if len(job.cases) < job.check_images:  # one of each patient
                known = {case.patient for case in job.cases}
                job.cases.extend(c for c in find_case(job.checkpoint, scored) if c.patient not in known)
            yield _finding(job, scored)
        watcher.progress("explaining", done, total)
    if job.check_images:
        checks |= _audit(job, watcher)


def _audit(job: _Job, watcher: Watcher) -> dict[str, MapCheck]:
    if not job.cases:
        return {METHODS[method].name: NOTHING_TO_CHECK for method in job.methods}
    audits = audit_methods(
        job.checkpoint.classifier,
        job.cases,
        job.methods,
        QUICK,
        lambda done, total: watcher.progress("checking the maps", done, total),
    )
    count = len(job.cases)
    basis = (
        f"Checked on {count} image{'s' if count > 1 else ''} of this report, each of another patient, for "
        "which the model predicted the explained class. Without masks it is not known whether maps lie on "
        "the finding."
    )
    return {METHODS[row["method"]].name: words_of_audit(row, basis) for row in to_json(audits)}


def _finding(job: _Job, scored: Scored) -> StudyFinding:
    assert scored.series and scored.image and scored.prepared
    row, image, task = scored.prediction, scored.image, job.checkpoint.task
    maps: dict[str, NDArray[np.float32]] = {}
    depth = min(image.pixels.shape[1:]) if image.spatial_dims == 3 else 1
    longest_side = min(LONGEST_SIDE, math.isqrt(LARGEST_VOLUME // depth))
    for method in job.methods:
        explained = explain(job.checkpoint, image, scored.prepared, row.probabilities, method)
        shown = make_display(image, explained.heatmap, longest_side)
        if shown.heatmap is not None:
            maps[METHODS[method].name] = shown.heatmap
    answers = tuple(row.prediction_set.split("|")) if row.prediction_set else ()
    promised = job.checkpoint.header.conformal is not None
    return StudyFinding(
        sample_id=row.sample_id,
        image=shown.values,
        window=shown.window,
        maps=maps,
        spacing_mm=shown.spacing_mm,
        target_class=explained.target_class,
        probabilities=dict(zip(task.classes, row.probabilities, strict=True)),
        predicted=tuple(row.predicted.split("|")) if row.predicted else (),
        label=job.labels.get(row.sample_id),
        prediction_set=answers if promised else None,
        ood=row.ood,
        warning=row.reason,
        facts=_facts(image),
        notes=image.facts.notes,
        identifiers=read_identifiers(scored.series, row.source) if job.with_identifiers else {},
        oriented=image.affine is not None,
    )


def _facts(image: Image) -> dict[str, str]:
    """Return what a page may show of an image: nothing that identifies a patient."""
    facts, spacing = image.facts, ""
    if image.spacing_mm is not None:
        spacing = " x ".join(f"{step:.4g}" for step in image.spacing_mm) + " mm"
    shown = {
        "format": facts.format,
        "modality": shown_modality(facts.modality),
        "body part": shown_body_part(facts.body_part),
        "view": shown_view(facts.view),
        "matrix": " x ".join(map(str, image.pixels.shape[1:])),
        "spacing": spacing,
        "photometric": facts.photometric,
        "decoder": facts.decoder,
        "SHA-256": facts.sha256[:16],
    }
    return {name: text for name, text in shown.items() if text}


def report_training(
    run: PathLike, out: PathLike, *, data: PathLike | None = None, watcher: Watcher = SILENT
) -> Path:
    """Write the page about a run's training, and return it. data: the training folder, to show images from.

    >>> import medtl
    >>> medtl.report_training("runs/xray", "training").name
    'index.html'
    """
    run = Path(run)
    checkpoint, folder = load_finished(run), RunFolder(run)
    metrics = folder.read_json(folder.metrics)
    wrong = None
    if (run / FILE).is_file():
        predictions = read_predictions(run / FILE, checkpoint.task)
        wrong = find_wrong(predictions, checkpoint.task, checkpoint.header.thresholds or ())[:WRONG_SHOWN]
        if data is not None:
            found = scan(Path(data), reading=checkpoint.preprocessing.reading, watcher=watcher)
            wrong = list(_with_images(wrong, found, Path(data), watcher))
    evaluation = metrics.get("split", {}).get("val", {})
    seconds = metrics.get("seconds", {}).get("total")
    return write_run_page(Path(out), model_card(run, checkpoint), evaluation, seconds, wrong)


def find_wrong(predictions: Predictions, task: Task, thresholds: Sequence[float]) -> list[WrongAnswer]:
    """Return the validation samples that were predicted wrongly, most confident first.

    Confidence is how far the probability of the predicted class exceeds that of the true one; in multilabel
    it is that of the finding which is furthest off.
    """
    answers = predict_classes(predictions.probabilities, thresholds, task.kind)
    find = _wrong_finding if task.kind == "multilabel" else _wrong_class
    rows = zip(predictions.sample_ids, predictions.probabilities, predictions.targets, answers, strict=True)
    found = [
        find(task, *row) for part, row in zip(predictions.split, rows, strict=True) if part in ("", "val")
    ]
    ranked = sorted((pair for pair in found if pair), key=lambda pair: (-pair[0], pair[1].sample_id))
    return [case for _, case in ranked]


def _wrong_class(
    task: Task, sample_id: str, values: NDArray[np.float64], truth: int, answer: int
) -> tuple[float, WrongAnswer] | None:
    if answer == truth:
        return None
    case = WrongAnswer(sample_id, task.classes[answer], task.classes[int(truth)], float(values[answer]))
    return float(values[answer] - values[int(truth)]), case


def _wrong_finding(
    task: Task, sample_id: str, values: NDArray[np.float64], truth: NDArray[Any], answers: NDArray[np.int64]
) -> tuple[float, WrongAnswer] | None:
    wrong = np.isfinite(truth) & (answers != truth)
    if not wrong.any():
        return None
    worst = int(np.where(wrong, np.abs(values - truth), -1.0).argmax())
    present, absent = task.classes[worst], f"no {task.classes[worst]}"
    predicted, label = (present, absent) if answers[worst] else (absent, present)
    probability = float(values[worst] if answers[worst] else 1 - values[worst])
    return abs(float(values[worst] - truth[worst])), WrongAnswer(sample_id, predicted, label, probability)


def _with_images(
    wrong: Sequence[WrongAnswer], found: Scan, data: Path, watcher: Watcher
) -> Iterator[WrongAnswer]:
    """Yield each case with its image where the data have it and it can be read."""
    series = {sample_key(source_name(one, data)): one for one in found.series}
    for done, case in enumerate(wrong, start=1):
        try:
            display = make_display(read_series(series[case.sample_id]), longest_side=240)
            case = replace(case, image=display.grey, spacing_mm=display.spacing_mm)
        except (KeyError, ReadError):
            pass
        yield case
        watcher.progress("reading", done, len(wrong))
