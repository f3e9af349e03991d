"""Turn validation predictions and a rule into the thresholds at which a class is answered."""

import logging
import math
import re
from dataclasses import dataclass
from typing import Literal

from numpy.typing import ArrayLike

from medtl.errors import ConfigError
from medtl.imaging.manifest import Task
from medtl.learning import cuts, metrics

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
        return cuts.sensitivity_threshold(scores, truth, rule.value)
    if rule.kind == "specificity":
        return cuts.specificity_threshold(scores, truth, rule.value)
    if rule.kind == "cost":
        return cuts.cost_threshold(scores, truth, rule.value, rule.alarm)
    return cuts.youden_threshold(scores, truth)


def _wrong(text: str, reason: str) -> ConfigError:
    return ConfigError("config-value", reason, where=f"--threshold {text}", fix=f"one of {FORMS}")
