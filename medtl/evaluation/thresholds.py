"""Turn validation predictions and a rule into the thresholds from which a class is predicted."""

import logging
import math
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medtl.errors import ConfigError
from medtl.evaluation.metrics import Floats, Questions, labelled

log = logging.getLogger(__name__)
FALLBACK_THRESHOLD = 0.5
FORMS = "youden, sensitivity=0.95, specificity=0.9 or cost=10:1"


@dataclass(frozen=True)
class ThresholdRule:
    """What a threshold has to achieve on validation data.

    value: the sensitivity or specificity to keep; for cost, that of a missed case, and alarm that of a false
    alarm. youden, the largest sensitivity + specificity - 1, uses neither.
    """

    kind: Literal["youden", "sensitivity", "specificity", "cost"] = "youden"
    value: float = 1.0
    alarm: float = 1.0

    def __str__(self) -> str:
        if self.kind == "youden":
            return self.kind
        cost = f":{self.alarm:g}" if self.kind == "cost" else ""
        return f"{self.kind}={self.value:g}{cost}"


def parse_rule(text: str) -> ThresholdRule:
    """Parse a rule as written on the command line. Raises ConfigError config-value."""
    number = r"(\d*\.?\d+(?:e-?\d+)?)"
    if text == "youden":
        return ThresholdRule()
    if match := re.fullmatch(rf"(sensitivity|specificity)={number}", text):
        kept = float(match[2])
        if 0 < kept <= 1:
            return ThresholdRule(match[1], kept)  # type: ignore[arg-type]
        reason = f"a {match[1]} is above 0 and at most 1"
    elif match := re.fullmatch(rf"cost={number}:{number}", text):
        miss, alarm = float(match[1]), float(match[2])
        if miss > 0 and alarm > 0:
            return ThresholdRule("cost", miss, alarm)
        reason = "costs are above 0"
    else:
        reason = "is no rule for a threshold"
    raise ConfigError("config-value", reason, where=f"--threshold {text}", fix=f"one of {FORMS}")


def choose_thresholds(questions: Questions, rule: ThresholdRule = ThresholdRule()) -> tuple[float, ...]:
    """Return the threshold of each class against the rest: K of them, in binary one (of the last class).

    Meant for validation data. A class that all or none of its samples have gets 0.5, with a warning.
    """
    chosen = []
    for name, column in zip(questions.task.asked_classes, questions.columns, strict=True):
        threshold = choose_threshold(*column, rule)
        if math.isnan(threshold):
            log.warning("no threshold can be chosen for class %s: %s is used", name, FALLBACK_THRESHOLD)
            threshold = FALLBACK_THRESHOLD
        chosen.append(threshold)
    return tuple(chosen)


def choose_threshold(scores: ArrayLike, truth: ArrayLike, rule: ThresholdRule = ThresholdRule()) -> float:
    """Return the threshold of scores (N,) that fits the rule best, the lowest among equals.

    It lies midway between two scores. truth: (N,), NaN where not labelled. NaN for samples of one class.
    """
    values, flags = labelled(scores, truth)
    if len(np.unique(flags)) < 2:
        return math.nan
    order = np.argsort(values, kind="stable")
    values, flags = values[order], flags[order]
    # Samples from starts[i] on are flagged by cut i, and none by the last one.
    starts = np.append(np.flatnonzero(np.diff(values, prepend=-np.inf)), len(values))
    missed = np.concatenate([[0], np.cumsum(flags)])[starts]
    cleared = np.concatenate([[0], np.cumsum(~flags)])[starts]
    best = int(starts[int(np.argmax(np.round(_worth(rule, missed, cleared), 12)))])
    edges = [min(0.0, values[0]), *values, max(1.0, np.nextafter(values[-1], np.inf))]
    below, above = map(float, edges[best : best + 2])
    middle = (below + above) / 2
    return middle if middle > below else above


def _worth(rule: ThresholdRule, missed: NDArray[np.int64], cleared: NDArray[np.int64]) -> Floats:
    """Return how well each cut fits the rule: the more, the better. missed, cleared: counts, rising."""
    positives, negatives = missed[-1], cleared[-1]
    sensitivity, specificity = 1 - missed / positives, cleared / negatives
    rank = np.arange(len(missed), dtype=np.float64)
    if rule.kind == "sensitivity":  # the highest threshold that keeps it
        return np.where(sensitivity >= rule.value - 1e-12, rank, -1.0)
    if rule.kind == "specificity":  # the lowest threshold that keeps it
        return np.where(specificity >= rule.value - 1e-12, -rank, -np.inf)
    if rule.kind == "cost":  # the class is taken to be as common as in the samples
        return -(rule.value * missed + rule.alarm * (negatives - cleared))
    return sensitivity + specificity - 1  # Youden 1950
