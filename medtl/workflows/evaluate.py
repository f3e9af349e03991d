"""Evaluate a run: labelled studies -> predictions -> metrics with intervals, subgroups, a page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medtl.config import load_config
from medtl.core.files import PathLike, write_json
from medtl.core.progress import SILENT, Watcher, never, note_all, stopped
from medtl.data.attributes import attribute_names, identifying_attributes
from medtl.data.labels import compared_name
from medtl.data.manifest import load_manifest, targets
from medtl.data.prepared import PreparedDataset, all_refusals, prepare_samples, warning_notes
from medtl.data.splits import read_splits
from medtl.data.task import Sample, Task, TaskConfig
from medtl.errors import CheckpointError, ConfigError, LabelError, ReadError
from medtl.evaluation.conformal import measure_coverage, set_texts
from medtl.evaluation.evaluate import Evaluation, to_json
from medtl.evaluation.evaluate import evaluate as evaluate_predictions
from medtl.evaluation.metrics import Questions, name_answer
from medtl.evaluation.predictions import FILE, predictions_of, read_predictions, write_predictions
from medtl.evaluation.subgroups import evaluate_subgroups, write_metrics, write_subgroups
from medtl.evaluation.thresholds import ThresholdRule, choose_thresholds, parse_rule
from medtl.imaging.dicom.patient import read_group_facts
from medtl.inference.predictor import predict
from medtl.report.evaluation_page import write_evaluation_page
from medtl.report.model_card import model_card
from medtl.training.checkpoint import Checkpoint, load_finished
from medtl.training.run_folder import RunFolder

# Columns that a table names as DICOM does, and what the same fact is called here.
DICOM_NAMES = {"patientsex": "sex", "patientage": "age"}

EvaluationPart = Literal["unseen", "train", "val", "test", "all"]
BATCH = 32


@dataclass(frozen=True)
class EvaluateOutcome:
    """Metrics, the content of metrics.json, and refused inputs. page: None where `out` is."""

    evaluation: Evaluation
    content: Mapping[str, Any]
    page: Path | None
    refusals: tuple[ReadError, ...]


def evaluate(
    run: PathLike,
    data: PathLike,
    labels: PathLike | None = None,
    *,
    out: PathLike | None = None,
    part: EvaluationPart = "unseen",
    threshold: str | None = None,
    prevalence: Mapping[str, float] | None = None,
    subgroups: Sequence[str] | None = None,
    any_modality: bool = False,
    watcher: Watcher = SILENT,
    stop: Callable[[], bool] = never,
) -> EvaluateOutcome:
    """Evaluate a run on labelled studies; write metrics, predictions and a page to `out`, if it is given.

    part: `unseen` leaves out what the run was trained on; `train`, `val` and `test` are the parts of the
    run's own split, `all` is every sample. threshold: a rule, such as `sensitivity=0.95`, by which new
    thresholds are chosen on the run's validation data; by default those of the run are used. prevalence: the
    share of patients with each class where the model will be used; "" is the positive class of a binary task.
    subgroups: columns of the label table; by default all. stop: asked before each batch; when it returns
    True, StoppedError is raised. Raises MedtlError.

    >>> import medtl
    >>> outcome = medtl.evaluate("runs/xray", medtl.sample_data("xray"), part="val")
    >>> auroc = outcome.evaluation.metrics["auroc"]
    >>> auroc.low <= auroc.value <= auroc.high
    True
    """
    run, data = Path(run), Path(data)
    checkpoint = load_finished(run, any_modality=any_modality)
    task, rule = checkpoint.task, parse_rule(threshold) if threshold else None
    shares = _prevalence(prevalence or {}, task)
    thresholds = _thresholds(checkpoint, run, rule)
    table, reading = Path(labels) if labels else None, checkpoint.preprocessing.reading
    manifest = load_manifest(data, table, task_config(run, task), reading, watcher)
    prepared = prepare_samples(
        manifest.samples,
        checkpoint.preprocessing,
        progress=lambda done, total: watcher.progress("reading", done, total),
    )
    samples, chosen = _select_part(manifest.samples, prepared, run, part)
    note_all(watcher, manifest.notes, chosen, warning_notes(prepared))
    attributes, withheld = _attributes(samples, subgroups)
    probabilities = _predict_rows(checkpoint, prepared, prepared.rows_of(samples), watcher, stop)
    patients = [sample.patient_id for sample in samples]
    questions = Questions(probabilities, targets(task, samples), task, patients)
    evaluation = evaluate_predictions(questions, thresholds, prevalence=shares)
    groupings, notes = evaluate_subgroups(questions, thresholds, attributes)
    note_all(watcher, withheld, notes)
    content = {
        **_describe_run(run, checkpoint),
        "part": part,
        "threshold_rule": str(rule or ThresholdRule()),
        **to_json(evaluation),
        "subgroups": groupings,
        "notes": [*chosen[1:], *notes],
    }
    answers = {"predicted": [name_answer(row, thresholds, task) for row in probabilities]}
    floors = checkpoint.header.conformal
    if floors is not None:
        content["conformal"] = measure_coverage(questions, floors)
        answers["set"] = set_texts(probabilities, floors, task)
    page = None
    if out is not None:
        out = Path(out)
        write_json(out / "metrics.json", content)
        write_metrics(out / "metrics.csv", evaluation)
        write_subgroups(out / "subgroups.csv", groupings)
        write_predictions(out / FILE, task, predictions_of(samples, task, probabilities), answers)
        page = write_evaluation_page(out, content, model_card(run, checkpoint))
    return EvaluateOutcome(evaluation, content, page, all_refusals(manifest, prepared))


def _describe_run(run: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what metrics.json says of the run."""
    folder, task, calibration = RunFolder(run), checkpoint.task, checkpoint.header.calibration
    facts = {
        "run": run.name,
        "task": {"kind": task.kind, "classes": list(task.classes)},
        "recipe": dict(folder.read_json(folder.metrics).get("recipe", {})),
        "model_sha256": checkpoint.sha256,
    }
    if calibration is not None:
        facts["calibration"] = f"probabilities are calibrated by {calibration.method} on validation data"
    return facts


def _prevalence(stated: Mapping[str, float], task: Task) -> dict[str, float]:
    """Return the stated share of each class. Raises ConfigError config-value."""
    asked = task.asked_classes
    shares = {(name or (asked[-1] if task.kind == "binary" else "")): share for name, share in stated.items()}
    for name, share in shares.items():
        if name not in asked:
            reason = f"{name or 'a share without a class'} is for no class of this model"
            fix = f"write CLASS=SHARE with one of {', '.join(asked)}"
            raise ConfigError("config-value", reason, where="--prevalence", fix=fix)
        if not 0 < share < 1:
            reason, fix = f"{share:g} is not a share", "give a number between 0 and 1"
            raise ConfigError("config-value", reason, where="--prevalence", fix=fix)
    return shares


def _thresholds(checkpoint: Checkpoint, run: Path, rule: ThresholdRule | None) -> tuple[float, ...]:
    """Return the checkpoint's thresholds, or those that a rule gives on the run's validation data."""
    if rule is None:
        return checkpoint.header.thresholds or ()
    path = run / FILE
    if not path.is_file():
        reason = "the run has no validation predictions to choose a threshold on"
        fix = "train again, or omit --threshold"
        raise CheckpointError("predictions-missing", reason, where=run, fix=fix)
    predictions = read_predictions(path, checkpoint.task)
    rows = np.array([part == "val" for part in predictions.split])
    questions = Questions(predictions.probabilities[rows], predictions.targets[rows], checkpoint.task)
    return choose_thresholds(questions, rule)


def _attributes(
    samples: Sequence[Sample], asked: Sequence[str] | None
) -> tuple[dict[str, list[str]], list[str]]:
    """Return the values of each attribute to form subgroups by, and a note on those withheld.

    The table comes first; what it lacks is taken from DICOM headers. Raises LabelError label-table for a
    column that is absent, or may identify a patient.
    """
    cells = [cell for sample in samples for cell in sample.attributes.items()]
    filled = {_attribute_key(name) for name, value in cells if value.strip()}
    samples = [_with_header_facts(sample, filled) for sample in samples]
    known, withheld = attribute_names(samples), identifying_attributes(samples)
    shown = [name for name in known if name not in withheld]
    called = {_attribute_key(name): name for name in reversed(shown)}
    names = shown
    if asked is not None:
        names = [name if name in shown else called.get(_attribute_key(name), name) for name in asked]
    for name in names:
        if name not in shown:
            reason = f"column {name} may identify a patient" if name in known else f"no column {name}"
            fix = f"one of {', '.join(shown)}" if shown else "add a column that patients share"
            raise LabelError("label-table", f"{reason}: no subgroups", where="--subgroup", fix=fix)
    notes = [f"no subgroups by {', '.join(withheld)}: they may identify a patient"] if withheld else []
    return {name: [sample.attributes.get(name, "") for sample in samples] for name in names}, notes


def _with_header_facts(sample: Sample, filled: set[str]) -> Sample:
    """Add the header's values of the attributes that the table leaves empty."""
    facts = {name: value for name, value in read_group_facts(sample.series).items() if name not in filled}
    own = {name: value for name, value in sample.attributes.items() if _attribute_key(name) not in facts}
    return replace(sample, attributes={**own, **facts})


def _attribute_key(name: str) -> str:
    """Return a name as attributes are compared: a table's "Patient Age" is the header's "age"."""
    key = compared_name(name)
    return DICOM_NAMES.get(key, key)


def task_config(run: Path, task: Task) -> TaskConfig:
    """Return how the run read its label table, with the classes that it found there."""
    recipe = RunFolder(run).config
    config = load_config(None, recipe).task if recipe.is_file() else TaskConfig()
    return config.model_copy(update={"kind": task.kind, "classes": task.classes})


def _select_part(
    samples: Sequence[Sample], prepared: PreparedDataset, run: Path, part: EvaluationPart
) -> tuple[list[Sample], list[str]]:
    """Return the samples to evaluate on, and a line for each thing the user should know about them.

    Samples are recognised by their pixels, so that a renamed training image is found, and by their id.
    """
    folder = RunFolder(run)
    pixels, splits = folder.read_json(folder.pixels), read_splits(folder.splits)
    named = {sample_id: row.split for sample_id, row in splits.items()}
    part_of = {
        sample_id: pixels.get(content) or named.get(sample_id)
        for sample_id, content in zip(prepared.sample_ids, prepared.content_hashes, strict=True)
    }
    readable = chosen = [sample for sample in samples if sample.sample_id in part_of]
    if part == "unseen":
        chosen = [sample for sample in readable if part_of[sample.sample_id] != "train"]
    elif part != "all":
        chosen = [sample for sample in readable if part_of[sample.sample_id] == part]
    if not chosen:
        raise LabelError("split-empty", f"no sample is {part}", where=run, fix="choose another --part")
    notes = [f"{len(chosen)} of {len(readable)} samples evaluated ({part})"]
    for name, effect in (("train", "trained the model"), ("val", "chose its checkpoint and thresholds")):
        known = sum(part_of[sample.sample_id] == name for sample in chosen)
        if known and part != name:
            notes.append(f"{known} of them {effect}: metrics are too optimistic")
    return chosen, notes


def _predict_rows(
    checkpoint: Checkpoint,
    prepared: PreparedDataset,
    rows: NDArray[np.int64],
    watcher: Watcher,
    stop: Callable[[], bool],
) -> NDArray[np.float64]:
    """Return probabilities (N, K)."""
    batches = np.array_split(rows, -(-len(rows) // BATCH))
    parts = []
    for number, batch in enumerate(batches, start=1):
        if stop():
            raise stopped("while it was evaluated", prepared.folder)
        parts.append(predict(checkpoint, prepared.read(batch)))
        watcher.progress("scoring", number, len(batches))
    return np.concatenate(parts)
