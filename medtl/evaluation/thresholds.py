"""Turn validation predictions and a rule into the thresholds at which a class is answered."""

import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medtl.data.task import Task
from medtl.errors import ConfigError
from medtl.evaluation import metrics
from medtl.evaluation.metrics import Floats, labelled

log = logging.getLogger(__name__)
FALLBACK_THRESHOLD = 0.5
FORMS = "youden, sensitivity=0.95, specificity=0.9 or cost=10:1"


@dataclass(frozen=True)
class ThresholdRule:
    """What a threshold is to achieve on validation data.

    value: the sensitivity or specificity to keep; of a cost what a missed case costs, and alarm what a false
    alarm does. For youden neither plays a part.
    """

    kind: Literal["youden", "sensitivity", "specificity", "cost"] = "youden"
    value: float = 1.0
    alarm: float = 1.0

    def __str__(self) -> str:
        if self.kind == "youden":
            return self.kind
        cost = f":{self.alarm:g}" if self.kind == "cost" else ""
        return f"{self.kind}={self.value:g}{cost}"


YOUDEN = ThresholdRule()


def parse_rule(text: str) -> ThresholdRule:
    """Read a rule as it is written on the command line. Raises ConfigError config-value."""
    number = r"(\d*\.?\d+(?:e-?\d+)?)"
    if text == "youden":
        return YOUDEN
    if found := re.fullmatch(rf"(sensitivity|specificity)={number}", text):
        rate = float(found[2])
        if 0 < rate <= 1:
            return ThresholdRule(found[1], rate)  # type: ignore[arg-type]
        raise _wrong(text, f"a {found[1]} is above 0 and at most 1")
    if found := re.fullmatch(rf"cost={number}:{number}", text):
        miss, alarm = float(found[1]), float(found[2])
        if miss > 0 and alarm > 0:
            return ThresholdRule("cost", miss, alarm)
        raise _wrong(text, "costs are above 0")
    raise _wrong(text, "is no rule for a threshold")


def choose_thresholds(
    probabilities: ArrayLike, targets: ArrayLike, task: Task, rule: ThresholdRule = YOUDEN
) -> tuple[float, ...]:
    """Return the threshold of each class against the rest: K of them, in binary one (of the last class).

    Meant for validation data. A class that is all or nothing there gets 0.5, with a warning.
    """
    questions = metrics.one_vs_rest(probabilities, targets, task.kind)
    columns = zip(questions.scores.T, questions.truth.T, strict=True)
    found = [_choose(scores, truth, rule) for scores, truth in columns]
    for name, threshold in zip(task.asked_classes, found, strict=True):
        if math.isnan(threshold):
            log.warning("no threshold can be chosen for class %s: %s is used", name, FALLBACK_THRESHOLD)
    return tuple(FALLBACK_THRESHOLD if math.isnan(threshold) else threshold for threshold in found)


def _choose(scores: ArrayLike, truth: ArrayLike, rule: ThresholdRule) -> float:
    if rule.kind == "sensitivity":
        return sensitivity_threshold(scores, truth, rule.value)
    if rule.kind == "specificity":
        return specificity_threshold(scores, truth, rule.value)
    if rule.kind == "cost":
        return cost_threshold(scores, truth, rule.value, rule.alarm)
    return youden_threshold(scores, truth)


def _wrong(text: str, reason: str) -> ConfigError:
    return ConfigError("config-value", reason, where=f"--threshold {text}", fix=f"one of {FORMS}")


def youden_threshold(scores: ArrayLike, truth: ArrayLike) -> float:
    """Return the threshold with the largest sensitivity + specificity - 1 (Youden 1950).

    Among equals it is the lowest, which misses the fewest.
    """
    return _choose_cut(scores, truth, lambda cuts: cuts.cleared - cuts.missed)


def sensitivity_threshold(scores: ArrayLike, truth: ArrayLike, sensitivity: float) -> float:
    """Return the highest threshold, the most specific one, that keeps this sensitivity."""
    reached = 1 - sensitivity + 1e-12
    return _choose_cut(
        scores, truth, lambda cuts: np.where(cuts.missed <= reached, np.arange(len(cuts.first)), -1)
    )


def specificity_threshold(scores: ArrayLike, truth: ArrayLike, specificity: float) -> float:
    """Return the lowest threshold, the most sensitive one, with this specificity."""
    return _choose_cut(
        scores,
        truth,
        lambda cuts: np.where(cuts.cleared >= specificity - 1e-12, -np.arange(len(cuts.first)), -np.inf),
    )


def cost_threshold(scores: ArrayLike, truth: ArrayLike, miss: float, alarm: float) -> float:
    """Return the threshold of least cost, at `miss` for each missed and `alarm` for each false one.

    As common as the class is among the samples, so common it is taken to be.
    """
    return _choose_cut(
        scores,
        truth,
        lambda cuts: -(miss * cuts.missed * cuts.positives + alarm * (1 - cuts.cleared) * cuts.negatives),
    )


@dataclass(frozen=True, eq=False)
class _Cuts:
    """Places between ascending scores to cut at: at first[i] and above is flagged.

    missed: the share of positives below each; cleared: that of negatives. The last one flags nothing.
    """

    values: Floats
    first: NDArray[np.int64]
    missed: Floats
    cleared: Floats
    positives: int
    negatives: int


def _choose_cut(scores: ArrayLike, truth: ArrayLike, worth: Callable[[_Cuts], Floats]) -> float:
    """Return the threshold of most worth, the lowest among equals."""
    values, flags = labelled(scores, truth)
    if len(np.unique(flags)) < 2:
        return float("nan")
    cuts = _list_cuts(values, flags)
    best = int(cuts.first[int(np.argmax(np.round(worth(cuts), 12)))])
    values = cuts.values
    if best == len(values):
        return _above(float(values[-1]))
    below = values[best - 1] if best else min(0.0, values[0])
    middle = float((below + values[best]) / 2)
    return middle if middle > below else float(values[best])


def _above(highest: float) -> float:
    """Return a threshold that nothing reaches: midway to 1, or just above."""
    middle = (highest + 1) / 2
    return middle if middle > highest else float(np.nextafter(highest, np.inf))


def _list_cuts(values: Floats, flags: NDArray[np.bool_]) -> _Cuts:
    order = np.argsort(values, kind="stable")
    values, flags = values[order], flags[order]
    first = np.append(np.flatnonzero(np.diff(values, prepend=-np.inf)), len(values))
    positives, negatives = int(flags.sum()), int((~flags).sum())
    missed = np.concatenate([[0], np.cumsum(flags)])[first] / positives
    cleared = np.concatenate([[0], np.cumsum(~flags)])[first] / negatives
    return _Cuts(values, first, missed, cleared, positives, negatives)
