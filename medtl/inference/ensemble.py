"""Predict with one or several checkpoints: the mean of their probabilities.

Checkpoints -> Ensemble; series -> rows of its members -> one row each
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medtl.core import __version__
from medtl.errors import CheckpointError, ConfigError
from medtl.imaging.series import Reading, Series
from medtl.inference.onnx_graph import Graph
from medtl.inference.predictor import (
    OLD_FIELDS,
    Forward,
    Precision,
    Prediction,
    Scored,
    predicted_class,
    read_or_refuse,
    score_batch,
)
from medtl.models.folding import fold_groups
from medtl.training.checkpoint import Checkpoint

# Images of a batch, and the values that it may have: larger ones were no faster on any processor tried, and
# the other processes wait for the last batch at the end.
LARGEST_BATCH = 4
BATCH_VALUES = 400_000


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Members of the same classes, and how images go through each of them.

    The thresholds of several members are the means of theirs, and there are no conformal sets: the mean was
    not measured on validation data.
    """

    members: tuple[Checkpoint, ...]
    forwards: tuple[Forward, ...]

    @property
    def batch_size(self) -> int:
        """How many images go through the networks together; the shape of prepared images is fixed."""
        return self.forwards[0].batch_size

    @property
    def reading(self) -> Reading:
        """What all members ask of the readers."""
        return self.members[0].preprocessing.reading

    @property
    def lead(self) -> Checkpoint:
        """The checkpoint whose header applies to the mean: a single member itself."""
        first = self.members[0]
        cuts = [member.header.thresholds for member in self.members]
        if len(cuts) == 1:
            return first
        means = tuple(np.mean(cuts, axis=0).tolist()) if all(cuts) else None  # type: ignore[arg-type]
        changes = {"thresholds": means, "conformal": None, "calibration": None}
        return replace(first, header=first.header.model_copy(update=changes))

    def with_precision(self, precision: Precision) -> "Ensemble":
        """Return the same ensemble in that precision."""
        return replace(self, forwards=tuple(replace(how, precision=precision) for how in self.forwards))

    def with_graphs(self, graphs: Sequence[Graph]) -> "Ensemble":
        """Return the same ensemble, each member run by its graph."""
        both = zip(self.forwards, graphs, strict=True)
        return replace(self, forwards=tuple(replace(how, graph=graph) for how, graph in both))

    @property
    def facts(self) -> dict[str, Any]:
        """Return everything that a row depends on except its image, as plain data."""
        return {
            "medtl": __version__,
            "torch": torch.__version__,
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "members": [
                {"model": member.sha256, "header": _header_digest(member), **asdict(forward)}
                for member, forward in zip(self.members, self.forwards, strict=True)
            ],
        }

    @property
    def facts_of_0_1_0(self) -> dict[str, Any]:
        """Return the facts as medtl 0.1.0 wrote them: its rows stay valid, as they depend on nothing new."""
        old_names = {name: old for old, name in OLD_FIELDS.items()}
        members = []
        for member, forward in zip(self.members, self.forwards, strict=True):
            how = {name: value for name, value in asdict(forward).items() if name != "batch_size"}
            members.append(
                {"model": member.sha256, "header": _header_digest(member, "screening"), **how, "filled": True}
            )
        row = [old_names.get(one.name, one.name) for one in fields(Prediction)]
        return {**self.facts, "medtl": "0.1.0", "row": row, "members": members}


def make_ensemble(checkpoints: Sequence[Checkpoint], *, flips: bool = False) -> Ensemble:
    """Put checkpoints together, each in evaluation mode, with its batch norm folded into convolutions.

    flips: members that were trained on mirror images predict the mirror image, too. Raises CheckpointError
    ensemble-mixed, and ConfigError config-value for flips if no member was trained on them.
    """
    first = checkpoints[0]
    for other in checkpoints[1:]:
        if other.task != first.task:
            ours, theirs = (f"{one.task.kind} {', '.join(one.task.classes)}" for one in (first, other))
            reason = f"was trained for {theirs}, the first run for {ours}"
            fix = "give runs of the same classes, in the same order"
            raise CheckpointError("ensemble-mixed", reason, where=other.folder, fix=fix)
        if other.preprocessing.reading != first.preprocessing.reading:
            reason = "was trained with other options of reading than the first run"
            fix = "train both with the same preprocessing options"
            raise CheckpointError("ensemble-mixed", reason, where=other.folder, fix=fix)
    mirrored = [flips and one.header.augmentation.flip for one in checkpoints]
    if flips and not any(mirrored):
        reason = "was trained without mirror images, so there is nothing to average"
        raise ConfigError("config-value", reason, where="--tta", fix="score without it")
    shapes = [(one.preprocessing.channels, *one.preprocessing.size) for one in checkpoints]
    batch_size = max(1, min(LARGEST_BATCH, BATCH_VALUES // max(map(prod, shapes))))
    folded = [
        replace(one, classifier=fold_groups(one.classifier, (1, *shape)))
        for one, shape in zip(checkpoints, shapes, strict=True)
    ]
    forwards = tuple(Forward(flips=flip, batch_size=batch_size) for flip in mirrored)
    return Ensemble(tuple(folded), forwards)


def predict_batch(ensemble: Ensemble, batch: Sequence[Series], root: Path) -> list[Scored]:
    """Score series in one batch, each read once. Rows are in their order."""
    read = cache(read_or_refuse) if len(ensemble.members) > 1 else read_or_refuse
    by_member = [
        score_batch(member, batch, root, read=read, forward=how)
        for member, how in zip(ensemble.members, ensemble.forwards, strict=True)
    ]
    return [_agree(ensemble, rows) for rows in zip(*by_member, strict=True)]


def _agree(ensemble: Ensemble, scored: Sequence[Scored]) -> Scored:
    """Return one row for an image: that of a member that refuses it, or the mean."""
    refused = [one for one in scored if one.prediction.status == "refused"]
    if refused or len(scored) == 1:
        return (refused or scored)[0]
    rows = [one.prediction for one in scored]
    mean = np.mean([row.probabilities for row in rows], axis=0)
    agreed = replace(
        rows[0],
        predicted=predicted_class(ensemble.lead, mean),
        probabilities=tuple(mean.tolist()),
        prediction_set="",
        ood=next((row.ood for row in rows if row.ood not in ("", "ok")), rows[0].ood),
    )
    return replace(scored[0], prediction=agreed)


def _header_digest(checkpoint: Checkpoint, ood: str = "ood") -> str:
    """Return a hash of what a row depends on in a header. ood: what the OOD limits are called in it."""
    deciding = {"thresholds", "calibration", "conformal", "ood"}
    used = {"preprocessing", "backbone", "task_kind", "classes", *deciding}
    text = checkpoint.header.model_dump_json(include=used).replace('"ood":', f'"{ood}":')
    return hashlib.sha256(text.encode()).hexdigest()[:24]
