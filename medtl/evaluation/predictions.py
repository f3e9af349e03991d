"""Predictions with their truth as a table without patient identifiers, to be evaluated again later.

One row a sample: sample_id and patient (salted hashes), split, the truth (`target`, or target_<class> with 1,
0 or nothing), logit_<class> if they are saved, p_<class>, predicted, set. A run saves those of its validation
data as predictions.csv, and an evaluation those of its samples.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medtl.core.files import safe_cell, write_csv
from medtl.core.ids import hash_identifier
from medtl.data.manifest import targets
from medtl.data.task import Sample, Task
from medtl.errors import CheckpointError
from medtl.evaluation.metrics import Floats

FILE = "predictions.csv"


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of labelled samples.

    patients: (N,) keys, equal for samples of one patient. targets: int (N,), or float (N, K) with NaN in
    multilabel. probabilities: (N, K). logits: (N, K), or None if they were not saved.
    """

    sample_ids: tuple[str, ...]
    patients: tuple[str, ...]
    split: tuple[str, ...]
    targets: NDArray
    probabilities: Floats
    logits: Floats | None = None


def predictions_of(
    samples: Sequence[Sample], task: Task, probabilities: Floats, logits: Floats | None = None
) -> Predictions:
    """Join the predictions of samples with their truth; patients become salted keys."""
    return Predictions(
        tuple(sample.sample_id for sample in samples),
        tuple("p" + hash_identifier(sample.patient_id) for sample in samples),
        tuple(sample.split or "" for sample in samples),
        targets(task, samples),
        probabilities,
        logits,
    )


def write_predictions(
    path: Path, task: Task, predictions: Predictions, more: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Write predictions atomically, in full precision; more: further columns of text (N,) by name."""
    table: dict[str, Sequence[str | float]] = {
        "sample_id": predictions.sample_ids,
        "patient": predictions.patients,
        "split": predictions.split,
    }
    if task.kind == "multilabel":
        for name, column in zip(task.classes, predictions.targets.T, strict=True):
            table[f"target_{name}"] = ["" if np.isnan(value) else f"{value:.0f}" for value in column]
    else:
        table["target"] = [task.classes[int(value)] for value in predictions.targets]
    for prefix, values in (("logit", predictions.logits), ("p", predictions.probabilities)):
        if values is not None:
            names = (f"{prefix}_{name}" for name in task.classes)
            table |= zip(names, values.T.tolist(), strict=True)
    table |= more or {}
    write_csv(path, [table, *zip(*table.values(), strict=True)])


def read_predictions(path: Path, task: Task) -> Predictions:
    """Read what write_predictions wrote. Raises CheckpointError checkpoint-damaged for anything else."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        has_logits = f"logit_{task.classes[0]}" in rows[0]
        return Predictions(
            tuple(row["sample_id"] for row in rows),
            tuple(row["patient"] for row in rows),
            tuple(row["split"] for row in rows),
            _read_targets(rows, task),
            _read_numbers(rows, "p", task),
            _read_numbers(rows, "logit", task) if has_logits else None,
        )
    except (OSError, UnicodeDecodeError, LookupError, TypeError, ValueError, csv.Error) as error:
        reason, fix = "the predictions are absent or damaged", "train or evaluate again"
        raise CheckpointError("checkpoint-damaged", reason, where=path, fix=fix) from error


def _read_targets(rows: Sequence[Mapping[str, str]], task: Task) -> NDArray:
    if task.kind != "multilabel":
        places = {safe_cell(name): place for place, name in enumerate(task.classes)}
        return np.array([places[row["target"]] for row in rows], dtype=np.int64)
    cells = [[row[f"target_{name}"] for name in task.classes] for row in rows]
    return np.array([[float(cell) if cell else np.nan for cell in row] for row in cells], dtype=np.float32)


def _read_numbers(rows: Sequence[Mapping[str, str]], kind: str, task: Task) -> Floats:
    values = np.array([[float(row[f"{kind}_{name}"]) for name in task.classes] for row in rows])
    if not np.isfinite(values).all():
        raise ValueError
    return values
