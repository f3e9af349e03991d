"""What a run keeps: its best weights, the state from which it can be resumed, and its history.

This is the one place that writes them. The last checkpoint is replaced after the best one and the history:
whenever the process dies, it says what of these is valid, and the rest is made again.
"""

import csv
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from medtl.imaging.storage import replacing
from medtl.learning.averaging import Average
from medtl.learning.cache_plan import CachePlan
from medtl.learning.checkpoint import (
    CheckpointHeader,
    Position,
    load_optimizer,
    model_tensors,
    optimizer_tensors,
    read_header,
    read_tensors,
    save_checkpoint,
)
from medtl.learning.classifier import Classifier
from medtl.learning.run_folder import RunFolder
from medtl.learning.world import World

Metrics = Mapping[str, float | None]


class Keeper:
    """Writes the checkpoints and the history of one run, and reads them back into its classifier.

    Of several processes the one that leads writes, and all read.
    """

    def __init__(
        self, run: RunFolder, header: CheckpointHeader, classifier: Classifier, world: World
    ) -> None:
        self.run = run
        self.header = header
        self.classifier = classifier
        self.world = world
        self.history: list[dict[str, Any]] = []
        self.plans: list[CachePlan] = []

    def has_last(self) -> bool:
        """Tell whether there is something to resume from."""
        return (self.run.last / "checkpoint.json").is_file()

    def save_best(self, position: Position, metrics: Metrics) -> None:
        """Keep the classifier as it is as the best one."""
        if self.world.leads:
            save_checkpoint(self.run.best, self._header(position, metrics), {"model": self._model()})

    def save_last(
        self, position: Position, optimizer: torch.optim.Optimizer, average: Average, metrics: Metrics
    ) -> None:
        """Keep all that training goes on from."""
        if not self.world.leads:
            return
        tensors = {"model": self._model(), "optimizer": optimizer_tensors(optimizer)}
        averaged = average.state()
        if averaged:
            tensors["average"] = averaged
        save_checkpoint(self.run.last, self._header(position, metrics), tensors)

    def record(self, row: Mapping[str, Any]) -> None:
        """Add an epoch to history.csv."""
        self.history.append(dict(row))
        if not self.world.leads:
            return
        with replacing(self.run.history) as path, path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.history[0]))
            writer.writeheader()
            writer.writerows(self.history)

    def load_best(self) -> None:
        """Put the best weights into the classifier, once they are written."""
        self.world.barrier()
        header = read_header(self.run.best)
        self.classifier.load_state_dict(read_tensors(self.run.best, header, "model"))

    def load_last(self) -> Position:
        """Load the last weights, the plans and the history up to them; return where they stand."""
        header = read_header(self.run.last)
        self.classifier.load_state_dict(read_tensors(self.run.last, header, "model"))
        self.plans = list(header.plans)
        position = header.position
        finished = position.step - position.done
        rows = self.run.read_history() if finished else []
        self.history = [row for row in rows if int(row["step"]) <= finished]
        return position

    def load_last_state(self, optimizer: torch.optim.Optimizer, average: Average) -> None:
        """Give the optimizer and the average of the stage that was broken off their state back."""
        header = read_header(self.run.last)
        load_optimizer(optimizer, read_tensors(self.run.last, header, "optimizer"))
        if "average" in header.tensors:
            average.restore(read_tensors(self.run.last, header, "average"))

    def _model(self) -> dict[str, Tensor]:
        return model_tensors(self.classifier)

    def _header(self, position: Position, metrics: Metrics) -> CheckpointHeader:
        now = {"position": position, "metrics": dict(metrics), "plans": tuple(self.plans)}
        return self.header.model_copy(update=now)
