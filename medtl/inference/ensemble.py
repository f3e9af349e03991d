"""Ask one or several checkpoints for one answer: the mean of their probabilities.

Checkpoints -> Ensemble; series -> rows in which all members have had their say.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medtl import __version__
from medtl.errors import CheckpointError, ConfigError, ReadError
from medtl.imaging.image import Image
from medtl.imaging.reader import read_series
from medtl.imaging.series import Series
from medtl.inference.onnx_graph import Graph
from medtl.inference.predictor import PLAIN, Forward, Precision, Prediction, predicted_class, score_batch
from medtl.models.folding import fold_groups
from medtl.training.checkpoint import Checkpoint


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Members of the same classes, and how images go through each of them.

    Of several members the thresholds are the means of theirs, and there are no conformal sets: nobody has
    tried the mean on validation data.
    """

    members: tuple[Checkpoint, ...]
    forwards: tuple[Forward, ...]

    @property
    def lead(self) -> Checkpoint:
        """The checkpoint whose header judges the mean: a single member itself."""
        first = self.members[0]
        cuts = [member.header.thresholds for member in self.members]
        if len(cuts) == 1:
            return first
        means = tuple(map(float, np.mean(cuts, axis=0))) if all(cuts) else None  # type: ignore[arg-type]
        changes = {"thresholds": means, "conformal": None, "calibration": None}
        return replace(first, header=first.header.model_copy(update=changes))

    def with_precision(self, precision: Precision) -> "Ensemble":
        """Return the same ensemble, computing in that precision."""
        forwards = tuple(replace(forward, precision=precision) for forward in self.forwards)
        return Ensemble(self.members, forwards)

    def with_graphs(self, graphs: Sequence[Graph | None]) -> "Ensemble":
        """Return the same ensemble, each member run by its graph; by PyTorch where that is None."""
        both = zip(self.forwards, graphs, strict=True)
        return Ensemble(self.members, tuple(replace(forward, graph=graph) for forward, graph in both))

    @property
    def facts(self) -> dict[str, Any]:
        """Return all that a row depends on but its image, as plain data."""
        return {
            "medtl": __version__,
            "torch": torch.__version__,
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "row": [one.name for one in fields(Prediction)],
            "members": [
                {"model": member.sha256, "header": _header_digest(member), **asdict(forward)}
                for member, forward in zip(self.members, self.forwards, strict=True)
            ],
        }


def make_ensemble(checkpoints: Sequence[Checkpoint], *, flips: bool = False) -> Ensemble:
    """Put checkpoints together, each in evaluation mode, with its batch norm folded into convolutions.

    flips: members that were trained on mirror images judge the mirror image, too. Raises CheckpointError
    ensemble-mixed, and ConfigError config-value where flips are asked for and no member knows them.
    """
    first = checkpoints[0]
    for other in checkpoints[1:]:
        if other.task != first.task:
            reason = f"tells apart {_shown(other)}, the first run {_shown(first)}"
            fix = "put together runs of the same classes, in one order"
            raise CheckpointError("ensemble-mixed", reason, where=other.folder, fix=fix)
    mirrored = [flips and one.header.augmentation.flip for one in checkpoints]
    if flips and not any(mirrored):
        reason = "was trained without mirror images, which are all that is averaged"
        raise ConfigError("config-value", reason, where="--tta", fix="score without it")
    forwards = tuple(replace(PLAIN, filled=True, flips=flip) for flip in mirrored)
    return Ensemble(tuple(map(_folded, checkpoints)), forwards)


def _folded(checkpoint: Checkpoint) -> Checkpoint:
    config = checkpoint.preprocessing
    classifier = fold_groups(checkpoint.classifier, (1, config.channels, *config.size))
    return replace(checkpoint, classifier=classifier)


def predict_batch(
    ensemble: Ensemble,
    batch: Sequence[Series],
    root: Path,
    size: int,
    read: Callable[[Series], Image] = read_series,
) -> list[Prediction]:
    """Score series in one batch that is filled up to `size`, each read once. Rows are in their order."""
    if len(ensemble.members) > 1:
        read = _once(read)
    by_member = [
        [scored.prediction for scored in score_batch(member, batch, root, read=read, forward=how, size=size)]
        for member, how in zip(ensemble.members, ensemble.forwards, strict=True)
    ]
    return [_agree(ensemble, rows) for rows in zip(*by_member, strict=True)]


def _once(read: Callable[[Series], Image]) -> Callable[[Series], Image]:
    """Return a reading that keeps what it has read, refusals included."""

    @cache
    def outcome(series: Series) -> Image | ReadError:
        try:
            return read(series)
        except ReadError as error:
            return error

    def again(series: Series) -> Image:
        found = outcome(series)
        if isinstance(found, ReadError):
            raise found.with_traceback(None)
        return found

    return again


def _agree(ensemble: Ensemble, rows: Sequence[Prediction]) -> Prediction:
    """Return one row of one image: that of a member that refuses it, or the mean."""
    if len(rows) == 1:
        return rows[0]
    refused = next((row for row in rows if row.status == "refused"), None)
    if refused is not None:
        return refused
    mean = np.mean([row.probabilities for row in rows], axis=0)
    predicted = predicted_class(ensemble.lead, mean)
    ood = next((row.ood for row in rows if row.ood not in ("", "ok")), rows[0].ood)
    values = tuple(map(float, mean))
    return replace(rows[0], predicted=predicted, probabilities=values, prediction_set="", ood=ood)


def _header_digest(checkpoint: Checkpoint) -> str:
    """Return a hash of what a row depends on in a header."""
    judging = {"thresholds", "calibration", "conformal", "ood"}
    used = {"preprocessing", "backbone", "task_kind", "classes", *judging}
    return hashlib.sha256(checkpoint.header.model_dump_json(include=used).encode()).hexdigest()[:24]


def _shown(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.task.kind} {', '.join(checkpoint.task.classes)}"
