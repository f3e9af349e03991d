"""Write pages with saliency maps for the studies of a folder, and say what the maps are worth.

folder -> scored studies -> maps -> findings -> pages
                         -> cases -> an audit of each method, in words
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medtl.core.files import check_apart, read_json
from medtl.core.progress import Watcher
from medtl.data.manifest import load_manifest, targets
from medtl.data.naming import sample_key, source_name
from medtl.data.task import Task
from medtl.errors import CODES, CheckpointError, OutputError, ReadError
from medtl.evaluation.metrics import predict_classes
from medtl.evaluation.predictions import FILE, Predictions, read_predictions
from medtl.explain import METHODS, check_method, default_method
from medtl.explain.audit import AuditSettings, Case, audit, find_case, to_json
from medtl.explain.explanation import Explanation, explain
from medtl.imaging.dicom.patient import read_identifiers
from medtl.imaging.dicom.terms import shown_body_part, shown_modality, shown_view
from medtl.imaging.display import Display, make_display
from medtl.imaging.image import Image
from medtl.imaging.reader import read_series, scan
from medtl.imaging.series import Scan, Series
from medtl.inference.predictor import Scored, score_series
from medtl.report.findings import MapCheck, Names, Refusal, SaliencyMap, StudyFinding
from medtl.report.formatting import words_of_audit
from medtl.report.model_card import model_card
from medtl.report.run_page import WrongAnswer, write_run_page
from medtl.report.site import WrittenReport, write_report
from medtl.training.checkpoint import Checkpoint, load_finished
from medtl.training.run_folder import RunFolder
from medtl.workflows.evaluate import task_config

LONGEST_SIDE = 512  # px that are kept of an image
LARGEST_VOLUME = 8_000_000  # voxels that a page holds; the slices of a larger volume are shrunk

# The checks of a report are the cheap part of an audit: half of what medtl explain --audit does.
QUICK = AuditSettings(map_cases=3, noise_draws=1)
NOTHING_TO_CHECK = MapCheck(
    "unchecked",
    "It was not checked whether its maps mean anything: in no image did the model find what is explained.",
)
WRONG_SHOWN = 12


@dataclass(frozen=True)
class ReportOptions:
    """What a report shows.

    methods: names of METHODS, side by side; by default the one that suits the network. audit: what
    `medtl explain --audit` wrote, to be quoted; otherwise check_images of the report's own images serve a
    quick audit, 0 is none. labels: a label table, to show where the labels differ. with_identifiers: name
    the patients.
    """

    methods: tuple[str, ...] = ()
    audit: Path | None = None
    check_images: int = 6
    labels: Path | None = None
    any_modality: bool = False
    with_identifiers: bool = False


@dataclass(frozen=True)
class _Job:
    """What every study of a report needs. labels: by sample id."""

    checkpoint: Checkpoint
    options: ReportOptions
    methods: tuple[str, ...]
    labels: dict[str, Names]
    cases: list[Case] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


def report_run(
    run: Path, source: Path, out: Path, watcher: Watcher, options: ReportOptions = ReportOptions()
) -> WrittenReport:
    """Write a page for each study of a folder (or of a scored OUT), and an index.

    Raises ConfigError saliency-method; CheckpointError run-changed, scores-damaged; LabelError.
    """
    checkpoint = load_finished(run, any_modality=options.any_modality)
    methods = options.methods or (default_method(checkpoint.classifier),)
    for method in methods:
        check_method(method, checkpoint.classifier)
    checks = {} if options.audit is None else _read_audit(options.audit, checkpoint)
    folder = _scored_folder(source, checkpoint)
    check_apart(out, folder)
    if out.resolve() == run.resolve():
        raise OutputError(
            "output-unwritable", "is the run itself", where=out, fix="choose a folder elsewhere"
        )
    found = scan(folder)
    labels = {} if options.labels is None else _read_labels(folder, options.labels, run, checkpoint.task)
    job = _Job(checkpoint, options, methods, labels)
    findings = _findings(job, found, folder, checks, watcher)
    return write_report(out, findings, job.refusals, model_card(run, checkpoint), checks)


def _scored_folder(source: Path, checkpoint: Checkpoint) -> Path:
    """Return the folder whose scores lie in `source`, or `source` itself where it is a folder of studies."""
    record = source / "scores.json"
    if not record.is_file():
        return source
    try:
        facts = read_json(record)
        folder, model = Path(facts["folder"]), facts["model_sha256"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(
            "scores-damaged", "is no record of medtl score", where=record, fix="score again"
        ) from error
    if model != checkpoint.sha256:
        reason = "was scored by another model than this run's"
        raise CheckpointError("run-changed", reason, where=source, fix="score again, or name that run")
    return folder


def _read_labels(folder: Path, table: Path, run: Path, task: Task) -> dict[str, Names]:
    """Return the label of each sample by its id; in multilabel only where every finding is labelled."""
    samples = load_manifest(folder, table, task_config(run, task)).samples
    pairs = zip([sample.sample_id for sample in samples], targets(task, samples), strict=True)
    if task.kind != "multilabel":
        return {sample_id: task.classes[int(target)] for sample_id, target in pairs}
    return {
        sample_id: tuple(name for name, present in zip(task.classes, row, strict=True) if present)
        for sample_id, row in pairs
        if np.isfinite(row).all()
    }


def _read_audit(source: Path, checkpoint: Checkpoint) -> dict[str, MapCheck]:
    """Return what an audit that was kept says of each method, by the name that pages use."""
    record = source / "audit.json" if source.is_dir() else source
    try:
        facts = read_json(record)
        basis = f"By medtl explain --audit: {facts['notes'][0]}."
        checks = {METHODS[row["method"]].name: words_of_audit(row, basis) for row in facts["methods"]}
        model = facts["model_sha256"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError) as error:
        reason, fix = "is no audit of medtl explain", "run medtl explain --audit"
        raise CheckpointError("scores-damaged", reason, where=record, fix=fix) from error
    if model != checkpoint.sha256:
        reason = "is the audit of another model than this run's"
        raise CheckpointError("run-changed", reason, where=record, fix="audit this run")
    return checks


def _findings(
    job: _Job, found: Scan, folder: Path, checks: dict[str, MapCheck], watcher: Watcher
) -> Iterator[StudyFinding]:
    """Yield a finding for each scored study; what is refused, or checked, on the way is added to lists.

    A page tells what the code means; the reason itself may name a file, and stays in scores.csv.
    """
    total = len(found.series) + len(found.refusals)
    for done, scored in enumerate(score_series(job.checkpoint, found, folder, batch_size=1), start=1):
        row = scored.prediction
        if scored.image is None:
            name = row.source if job.options.with_identifiers else row.sample_id
            job.refusals.append(Refusal(name, row.code, CODES[row.code], row.fix))
            watcher.note("refused", f"[{row.code}] {row.source}: {row.reason}: {row.fix}")
        else:
            _keep_case(job, scored)
            yield _finding(job, scored)
        watcher.progress("explaining", done, total)
    if job.options.audit is None and job.options.check_images:
        checks |= _audit(job, watcher)


def _keep_case(job: _Job, scored: Scored) -> None:
    """Keep what an audit needs of a study, one of each patient, until there are enough."""
    if job.options.audit is not None or len(job.cases) >= job.options.check_images:
        return
    known = {case.patient for case in job.cases}
    job.cases.extend(case for case in find_case(job.checkpoint, scored) if case.patient not in known)


def _audit(job: _Job, watcher: Watcher) -> dict[str, MapCheck]:
    if not job.cases:
        return {METHODS[method].name: NOTHING_TO_CHECK for method in job.methods}
    audits = audit(
        job.checkpoint.classifier,
        job.cases,
        job.methods,
        QUICK,
        lambda done, total: watcher.progress("checking the maps", done, total),
    )
    count = len(job.cases)
    basis = (
        f"Checked on {count} image{'s' if count > 1 else ''} of this report, each of another patient, in "
        "which the model found what is explained. Without masks it is not known whether maps lie on the "
        "finding."
    )
    return {METHODS[row["method"]].name: words_of_audit(row, basis) for row in to_json(audits)}


def _finding(job: _Job, scored: Scored) -> StudyFinding:
    assert scored.series and scored.image
    row, image, task = scored.prediction, scored.image, job.checkpoint.task
    explained = _explain(job, scored)
    shown = {method: _display(image, found) for method, found in explained.items()}
    first = next(iter(shown.values()))
    answers = tuple(row.prediction_set.split("|")) if row.prediction_set else ()
    promised = job.checkpoint.header.conformal is not None
    named = job.options.with_identifiers
    return StudyFinding(
        sample_id=row.sample_id,
        image=first.values,
        window=first.window,
        maps=tuple(SaliencyMap(METHODS[name].name, _heatmap(display)) for name, display in shown.items()),
        spacing_mm=first.spacing_mm,
        target_class=next(iter(explained.values())).target_class,
        probabilities=dict(zip(task.classes, row.probabilities, strict=True)),
        predicted=tuple(row.predicted.split("|")) if task.kind == "multilabel" else row.predicted,
        label=job.labels.get(row.sample_id),
        prediction_set=answers if promised else None,
        ood=row.ood,
        warning=row.reason,
        facts=_facts(image),
        notes=image.facts.notes,
        identifiers=read_identifiers(scored.series, row.source) if named else {},
        oriented=image.affine is not None,
    )


def _explain(job: _Job, scored: Scored) -> dict[str, Explanation]:
    assert scored.image is not None and scored.prepared is not None
    image, prepared, probabilities = scored.image, scored.prepared, scored.prediction.probabilities
    return {method: explain(job.checkpoint, image, prepared, probabilities, method) for method in job.methods}


def _display(image: Image, explained: Explanation) -> Display:
    depth = min(image.pixels.shape[1:]) if image.spatial_dims == 3 else 1
    side = min(LONGEST_SIDE, math.isqrt(LARGEST_VOLUME // depth))
    return make_display(image, explained.heatmap, side)


def _heatmap(display: Display) -> NDArray[np.float32]:
    assert display.heatmap is not None
    return display.heatmap


def _facts(image: Image) -> dict[str, str]:
    """Return what a page may show of an image: nothing that identifies a patient."""
    facts, matrix = image.facts, " x ".join(map(str, image.pixels.shape[1:]))
    spacing = (
        "" if image.spacing_mm is None else " x ".join(f"{step:.4g}" for step in image.spacing_mm) + " mm"
    )
    shown = {
        "format": facts.format,
        "modality": shown_modality(facts.modality),
        "body part": shown_body_part(facts.body_part),
        "view": shown_view(facts.view),
        "matrix": matrix,
        "spacing": spacing,
        "photometric": facts.photometric,
        "decoder": facts.decoder,
        "SHA-256": facts.sha256[:16],
    }
    return {name: text for name, text in shown.items() if text}


def report_training(run: Path, out: Path, watcher: Watcher, data: Path | None = None) -> Path:
    """Write the page of a run, and return it. data: the folder it was trained on, to show images from."""
    checkpoint = load_finished(run)
    folder = RunFolder(run)
    metrics = folder.read_json(folder.metrics)
    wrong = None
    if (run / FILE).is_file():
        kept = read_predictions(run / FILE, checkpoint.task)
        wrong = find_wrong(kept, checkpoint.task, checkpoint.header.thresholds or ())[:WRONG_SHOWN]
        if data is not None:
            wrong = list(_with_images(wrong, data, watcher))
    evaluation = metrics.get("split", {}).get("val", {})
    seconds = metrics.get("seconds", {}).get("total")
    return write_run_page(out, model_card(run, checkpoint), evaluation, seconds, wrong)


def find_wrong(kept: Predictions, task: Task, thresholds: Sequence[float]) -> list[WrongAnswer]:
    """Return the validation samples that were answered wrongly, most confident first.

    Confidence is how far the probability of what was said exceeds that of the truth; in multilabel it is that
    of the finding which is furthest off.
    """
    answers = predict_classes(kept.probabilities, thresholds, task.kind)
    judge = _wrong_findings if task.kind == "multilabel" else _wrong_class
    found = [
        judge(kept, task, row, answers[row]) for row, part in enumerate(kept.split) if part in ("", "val")
    ]
    ranked = sorted((pair for pair in found if pair), key=lambda pair: (-pair[0], pair[1].sample_id))
    return [case for _, case in ranked]


def _wrong_class(
    kept: Predictions, task: Task, row: int, answer: NDArray[np.int64]
) -> tuple[float, WrongAnswer] | None:
    said, truth, values = int(answer), int(kept.targets[row]), kept.probabilities[row]
    if said == truth:
        return None
    case = WrongAnswer(kept.sample_ids[row], task.classes[said], task.classes[truth], float(values[said]))
    return float(values[said] - values[truth]), case


def _wrong_findings(
    kept: Predictions, task: Task, row: int, answers: NDArray[np.int64]
) -> tuple[float, WrongAnswer] | None:
    values, truth = kept.probabilities[row], kept.targets[row]
    wrong = np.isfinite(truth) & (answers != truth)
    if not wrong.any():
        return None
    worst = int(np.where(wrong, np.abs(values - truth), -1.0).argmax())
    name, present = task.classes[worst], bool(answers[worst])
    said, label = (name, f"no {name}") if present else (f"no {name}", name)
    sure = float(values[worst] if present else 1 - values[worst])
    return abs(float(values[worst] - truth[worst])), WrongAnswer(kept.sample_ids[row], said, label, sure)


def _with_images(wrong: Sequence[WrongAnswer], data: Path, watcher: Watcher) -> Iterator[WrongAnswer]:
    """Yield each case with its image where it is found in the data; what cannot be read stays without."""
    series = _series_by_id(data)
    for done, case in enumerate(wrong, start=1):
        yield _with_image(case, series.get(case.sample_id))
        watcher.progress("reading", done, len(wrong))


def _with_image(case: WrongAnswer, series: Series | None) -> WrongAnswer:
    if series is None:
        return case
    try:
        display = make_display(read_series(series), longest_side=240)
    except ReadError:
        return case
    return replace(case, image=display.grey, spacing_mm=display.spacing_mm)


def _series_by_id(data: Path) -> dict[str, Series]:
    return {sample_key(source_name(series, data)): series for series in scan(data).series}
