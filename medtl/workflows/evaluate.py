"""Judge a run on labelled samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medtl.config import load_config
from medtl.core.files import write_json
from medtl.core.progress import Watcher, note_all
from medtl.data.attributes import attribute_names, identifying_attributes
from medtl.data.labels import compared_name
from medtl.data.manifest import load_manifest, targets
from medtl.data.prepared import PreparedDataset, all_refusals, prepare_samples, warning_notes
from medtl.data.splits import read_splits
from medtl.data.task import Sample, Task, TaskConfig
from medtl.errors import CheckpointError, ConfigError, LabelError, ReadError
from medtl.evaluation import subgroups
from medtl.evaluation.conformal import coverage_json, measure_coverage, set_texts
from medtl.evaluation.evaluate import Evaluation, evaluate, to_json
from medtl.evaluation.metrics import predict_classes
from medtl.evaluation.predictions import FILE, predictions_of, read_predictions, write_predictions
from medtl.evaluation.subgroups import Grouping, evaluate_subgroups, write_metrics, write_subgroups
from medtl.evaluation.thresholds import ThresholdRule, choose_thresholds
from medtl.imaging.dicom.patient import read_group_facts
from medtl.inference.predictor import predict
from medtl.report.evaluation_page import write_evaluation_page
from medtl.report.model_card import model_card
from medtl.training.checkpoint import Checkpoint, load_finished
from medtl.training.run_folder import RunFolder

# Columns that a table names as DICOM does, and what the same fact is called here.
DICOM_NAMES = {"patientsex": "sex", "patientage": "age"}

EvaluationPart = Literal["unseen", "train", "val", "test", "all"]


@dataclass(frozen=True)
class EvaluateOptions:
    """How to judge.

    part: `unseen` leaves out what the run was trained on; `train`, `val` and `test` are the parts of the
    run's own split, `all` is every sample. rule: how to choose thresholds on the run's validation data anew;
    None keeps those of the checkpoint. prevalence: by class, "" is the positive one of a binary task.
    attributes: columns of the label table to form subgroups by; None is all of them.
    """

    part: EvaluationPart = "unseen"
    rule: ThresholdRule | None = None
    prevalence: Mapping[str, float] = field(default_factory=dict)
    attributes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class EvaluateOutcome:
    """What an evaluation came to."""

    evaluation: Evaluation
    groupings: tuple[Grouping, ...]
    page: Path
    refusals: tuple[ReadError, ...]


def evaluate_run(
    run: Path,
    data: Path,
    labels: Path | None,
    out: Path,
    watcher: Watcher,
    *,
    part: EvaluationPart = "unseen",
    any_modality: bool = False,
    options: EvaluateOptions | None = None,
) -> EvaluateOutcome:
    """Evaluate a run on labelled samples: metrics with intervals as JSON and CSV, predictions, and a page.

    part, where no options are given, is theirs. Raises MedtlError in one of its kinds.
    """
    options = options or EvaluateOptions(part)
    checkpoint = load_finished(run, any_modality=any_modality)
    task, prevalence = checkpoint.task, _prevalence(options.prevalence, checkpoint.task)
    thresholds = _thresholds(checkpoint, run, options.rule)
    opened = _open(checkpoint, run, data, labels, options.part, watcher)
    attributes, withheld = _attributes(opened.samples, options.attributes)
    rows = opened.prepared.rows_of(opened.samples)
    probabilities = _predict_rows(checkpoint, opened.prepared, rows, watcher)
    judged = probabilities, targets(task, opened.samples), task, opened.patients
    evaluation = evaluate(*judged, thresholds, prevalence=prevalence)
    groupings, notes = evaluate_subgroups(*judged, thresholds, attributes)
    note_all(watcher, withheld, notes)
    answers = {"predicted": [_answer(task, row, thresholds) for row in probabilities]}
    content = {
        **_about(checkpoint, run, options),
        **to_json(evaluation),
        "subgroups": subgroups.to_json(groupings),
        "notes": [*opened.notes, *notes],
    }
    floors = checkpoint.header.conformal
    if floors is not None:
        content["conformal"] = coverage_json(measure_coverage(*judged, floors))
        answers["set"] = set_texts(probabilities, floors, task)
    _write(out, content, evaluation, groupings)
    write_predictions(out / FILE, task, predictions_of(opened.samples, task, probabilities), answers)
    page = write_evaluation_page(out, content, model_card(run, checkpoint))
    return EvaluateOutcome(evaluation, tuple(groupings), page, opened.refusals)


@dataclass(frozen=True, eq=False)
class _Opened:
    """The samples that are judged, prepared, and what is to be said of them."""

    samples: Sequence[Sample]
    prepared: PreparedDataset
    notes: Sequence[str]
    refusals: tuple[ReadError, ...]

    @property
    def patients(self) -> list[str]:
        return [sample.patient_id for sample in self.samples]


def _open(
    checkpoint: Checkpoint, run: Path, data: Path, labels: Path | None, part: EvaluationPart, watcher: Watcher
) -> _Opened:
    """Read and prepare a labelled folder, and choose the part of it that is judged."""
    manifest = load_manifest(data, labels, task_config(run, checkpoint.task))
    prepared = prepare_samples(
        manifest.samples,
        checkpoint.preprocessing,
        progress=lambda done, total: watcher.progress("reading", done, total),
    )
    kept, notes = _select_part(manifest.samples, prepared, run, part)
    note_all(watcher, manifest.notes, notes, warning_notes(prepared))
    return _Opened(kept, prepared, notes[1:], all_refusals(manifest, prepared))


def _about(checkpoint: Checkpoint, run: Path, options: EvaluateOptions) -> dict[str, Any]:
    """Return what metrics.json says of the model and of how it is judged."""
    task, calibration = checkpoint.task, checkpoint.header.calibration
    about = {
        "run": run.name,
        "task": {"kind": task.kind, "classes": list(task.classes)},
        "recipe": _recipe(run),
        "part": options.part,
        "model_sha256": checkpoint.sha256,
        "threshold_rule": str(options.rule or ThresholdRule()),
    }
    if calibration is not None:
        about["calibration"] = f"probabilities are calibrated by {calibration.method} on validation data"
    return about


def _recipe(run: Path) -> dict[str, Any]:
    """Return what tells the run from others on the same data; nothing where it did not keep it."""
    folder = RunFolder(run)
    return dict(folder.read_json(folder.metrics).get("recipe", {}))


def _write(
    out: Path, content: Mapping[str, Any], evaluation: Evaluation, groupings: Sequence[Grouping]
) -> None:
    write_json(out / "metrics.json", content)
    write_metrics(out / "metrics.csv", evaluation)
    write_subgroups(out / "subgroups.csv", groupings)


def _prevalence(stated: Mapping[str, float], task: Task) -> dict[str, float]:
    """Return how common each class is said to be. Raises ConfigError config-value."""
    asked = task.asked_classes
    found = {(name or (asked[-1] if task.kind == "binary" else "")): share for name, share in stated.items()}
    for name, share in found.items():
        if name not in asked:
            reason = f"{name or 'a share without a class'} is for no class that is judged"
            fix = f"write CLASS=SHARE with one of {', '.join(asked)}"
            raise ConfigError("config-value", reason, where="--prevalence", fix=fix)
        if not 0 < share < 1:
            raise ConfigError(
                "config-value", f"{share:g} is no share", where="--prevalence", fix="between 0 and 1"
            )
    return found


def _thresholds(checkpoint: Checkpoint, run: Path, rule: ThresholdRule | None) -> tuple[float, ...]:
    """Return the checkpoint's thresholds, or those that a rule gives on the run's validation data."""
    if rule is None:
        return checkpoint.header.thresholds or ()
    path = run / FILE
    if not path.is_file():
        reason = "the run kept no validation predictions to choose a threshold on"
        fix = "train again, or leave --threshold out"
        raise CheckpointError("predictions-missing", reason, where=run, fix=fix)
    kept = read_predictions(path, checkpoint.task)
    rows = np.array([part == "val" for part in kept.split])
    return choose_thresholds(kept.probabilities[rows], kept.targets[rows], checkpoint.task, rule)


def _attributes(
    samples: Sequence[Sample], asked: Sequence[str] | None
) -> tuple[dict[str, list[str]], list[str]]:
    """Return the values of each attribute to form subgroups by, and a note on those held back.

    Those of the table come first; what it does not name is taken from DICOM headers. Raises LabelError
    label-table for a column that is absent, or may say who a patient is.
    """
    cells = [cell for sample in samples for cell in sample.attributes.items()]
    filled = {_attribute_key(name) for name, value in cells if value.strip()}
    samples = [_with_header_facts(sample, filled) for sample in samples]
    known, withheld = attribute_names(samples), identifying_attributes(samples)
    shown = [name for name in known if name not in withheld]
    called = {_attribute_key(name): name for name in reversed(shown)}
    asked = asked and [name if name in shown else called.get(_attribute_key(name), name) for name in asked]
    for name in asked or ():
        if name not in shown:
            reason = f"column {name} may say who a patient is" if name in known else f"no column {name}"
            fix = f"one of {', '.join(shown)}" if shown else "add a column that patients share"
            raise LabelError("label-table", f"{reason}: no subgroups", where="--subgroup", fix=fix)
    names = shown if asked is None else asked
    notes = [f"no subgroups by {', '.join(withheld)}: they may say who a patient is"] if withheld else []
    return {name: [sample.attributes.get(name, "") for sample in samples] for name in names}, notes


def _with_header_facts(sample: Sample, filled: set[str]) -> Sample:
    """Add what the header says where no column of the table says anything of the kind."""
    facts = {name: value for name, value in read_group_facts(sample.series).items() if name not in filled}
    told = {name: value for name, value in sample.attributes.items() if _attribute_key(name) not in facts}
    return replace(sample, attributes={**told, **facts})


def _attribute_key(name: str) -> str:
    """Return a name as attributes are compared: a table's "Patient Age" is the header's "age"."""
    key = compared_name(name)
    return DICOM_NAMES.get(key, key)


def _answer(task: Task, probabilities: NDArray[np.float64], thresholds: Sequence[float]) -> str:
    """Name what is answered at the thresholds; in multilabel all classes that are."""
    answers = predict_classes(probabilities[None], thresholds, task.kind)
    if task.kind == "multilabel":
        return "|".join(name for name, flag in zip(task.classes, answers[0], strict=True) if flag)
    return task.classes[int(answers[0])]


def task_config(run: Path, task: Task) -> TaskConfig:
    """Return how the run read its label table, with the classes that it came to know."""
    recipe = RunFolder(run).config
    config = load_config(None, recipe).task if recipe.is_file() else TaskConfig()
    return config.model_copy(update={"kind": task.kind, "classes": task.classes})


def _select_part(
    samples: Sequence[Sample], prepared: PreparedDataset, run: Path, part: EvaluationPart
) -> tuple[list[Sample], list[str]]:
    """Return the samples to evaluate on, and a line for each thing the user should know of the choice.

    Samples are recognised by their pixels, so that a training image is known under any name, and by their id.
    """
    folder = RunFolder(run)
    pixels, splits = folder.read_json(folder.pixels), read_splits(folder.splits)
    named = {sample_id: row.split for sample_id, row in splits.items()}
    part_of = {
        sample_id: pixels.get(content) or named.get(sample_id)
        for sample_id, content in zip(prepared.sample_ids, prepared.content_hashes, strict=True)
    }
    readable = [sample for sample in samples if sample.sample_id in part_of]
    chosen = [s for s in readable if part == "all" or _is_in(part_of[s.sample_id], part)]
    if not chosen:
        raise LabelError("split-empty", f"no sample is {part}", where=run, fix="choose another --part")
    notes = [f"{len(chosen)} of {len(readable)} samples evaluated ({part})"]
    for name, effect in (("train", "taught the model"), ("val", "chose the checkpoint and its threshold")):
        known = sum(part_of[sample.sample_id] == name for sample in chosen)
        if known and part != name:
            notes.append(f"{known} of them {effect}: the numbers flatter")
    return chosen, notes


def _is_in(known: str | None, part: EvaluationPart) -> bool:
    return known != "train" if part == "unseen" else known == part


def _predict_rows(
    checkpoint: Checkpoint,
    prepared: PreparedDataset,
    rows: NDArray[np.int64],
    watcher: Watcher,
    batch_size: int = 32,
) -> NDArray[np.float64]:
    batches = np.array_split(rows, -(-len(rows) // batch_size))
    found = []
    for number, batch in enumerate(batches, start=1):
        found.append(predict(checkpoint, prepared.read(batch)))
        watcher.progress("scoring", number, len(batches))
    return np.concatenate(found)
