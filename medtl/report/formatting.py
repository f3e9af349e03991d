"""Numbers with their doubt, in words: undefined stays undefined, and nothing is rounded to certainty."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medtl.report.findings import Bounds, MapCheck, Verdict, read_bounds

if TYPE_CHECKING:
    from medtl.data.task import TaskKind


UNDEFINED = "undefined"

# What is measured, and where it is right; in the order of the audit.
MEASURES = {
    "deletion": "how much sooner the score falls than when places are taken away at random",
    "insertion": "how much sooner the score rises than when places are brought in at random",
    "randomisation": "how like the map stays when the weights are shuffled",
    "stability": "how like the map stays under slight noise",
    "pointing": "how often its maximum lies in the mask",
    "energy": "its share in the mask over the mask's share of the image",
}
HEADLINES = {
    "passed": "Its maps passed every check that was made.",
    "undecided": "Too few images to say whether its maps mean anything.",
}


@dataclass(frozen=True)
class MetricName:
    """How a metric is called, and what it says in one plain sentence."""

    name: str
    meaning: str


METRICS: dict[str, MetricName] = {
    "auroc": MetricName(
        "AUROC", "Chance that a random study with the finding scores higher than a random one without it."
    ),
    "auprc": MetricName(
        "Average precision",
        "Precision averaged over all sensitivities; compare it with the share of positives.",
    ),
    "sensitivity": MetricName("Sensitivity", "Share of the studies with the finding that the model flags."),
    "specificity": MetricName(
        "Specificity", "Share of the studies without the finding that the model clears."
    ),
    "balanced_accuracy": MetricName(
        "Balanced accuracy", "Share of right answers, each class counting the same."
    ),
    "accuracy": MetricName("Accuracy", "Share of right answers; depends on how common each class is."),
    "auroc_bootstrap": MetricName(
        "AUROC, by resampling", "The same area with the interval that resampled patients give."
    ),
    "ppv": MetricName(
        "PPV", "Share of the flagged studies that have the finding, at the prevalence of these data."
    ),
    "npv": MetricName(
        "NPV", "Share of the cleared studies that are without it, at the prevalence of these data."
    ),
    "ppv_at_prevalence": MetricName("PPV at the stated prevalence", "By Bayes' rule."),
    "npv_at_prevalence": MetricName("NPV at the stated prevalence", "By Bayes' rule."),
    "f1": MetricName("F1", "Harmonic mean of sensitivity and PPV."),
    "mcc": MetricName("MCC", "Matthews' correlation of answers and truth: 1 is perfect, 0 is guessing."),
    "calibration_slope": MetricName("Calibration slope", "1 is right; below it the model is too sure."),
    "calibration_intercept": MetricName(
        "Calibration intercept", "0 is right; above it probabilities are too low."
    ),
    "brier": MetricName("Brier score", "Mean squared error of the probabilities; 0 is perfect."),
    "ece": MetricName(
        "Calibration error",
        "Mean gap between probability and observed share; 0 is perfect. Noise adds to it, and its interval "
        "takes that off again: most of it lies below the value.",
    ),
}


def metric_name(key: str) -> MetricName:
    """Return the name of a metric, or its key made readable."""
    return METRICS.get(key, MetricName(key.replace("_", " "), ""))


def is_defined(value: float | None) -> bool:
    """Return whether a number may be shown as a number."""
    return value is not None and math.isfinite(value)


def set_text(prediction_set: Sequence[str] | None, kind: "TaskKind") -> str:
    """Write a prediction set in words: "normal or opacity"; "" where nothing was promised."""
    if prediction_set is None:
        return ""
    if kind != "multilabel":
        return " or ".join(prediction_set)
    sure = [name for name in prediction_set if not name.endswith("?")]
    unsure = [f"perhaps {name.removesuffix('?')}" for name in prediction_set if name.endswith("?")]
    return ", ".join([*sure, *unsure]) or "none of the findings"


def number_text(value: float | None) -> str:
    """Write a metric with two decimals, or "undefined"."""
    return f"{value:.2f}" if value is not None and math.isfinite(value) else UNDEFINED


def probability_text(value: float) -> str:
    """Write a probability with two decimals; never as the certainty 0.00 or 1.00 that it is not."""
    if value < 0.005:
        return "< 0.01"
    return "> 0.99" if value >= 0.995 else f"{value:.2f}"


def range_text(bounds: Bounds) -> str:
    """Write an interval: "0.88 to 0.97", or "undefined"."""
    _, low, high = bounds
    both = is_defined(low) and is_defined(high)
    return f"{number_text(low)} to {number_text(high)}" if both else UNDEFINED


def doubt_text(bounds: Bounds, confidence: float = 0.95) -> str:
    """Write how far a metric is known: "95% interval 0.88 to 0.97", or "interval undefined"."""
    reach = range_text(bounds)
    return f"interval {UNDEFINED}" if reach == UNDEFINED else f"{confidence:.0%} interval {reach}"


def interval_text(bounds: Bounds, confidence: float = 0.95) -> str:
    """Write a metric with its interval: "0.93 (95% interval 0.88 to 0.97)"."""
    if not is_defined(bounds[0]):
        return UNDEFINED
    return f"{number_text(bounds[0])} ({doubt_text(bounds, confidence)})"


def signed_text(value: float | None) -> str:
    """Write a difference with its sign."""
    return f"{value:+.3f}" if value is not None and is_defined(value) else UNDEFINED


def p_text(p: float | None) -> str:
    """Write a p-value, never as the 0 that it is not."""
    if p is None or not is_defined(p):
        return UNDEFINED
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def duration_text(seconds: float) -> str:
    """Write a duration: "48 s", "12 min 5 s", "2 h 10 min"."""
    if not math.isfinite(seconds):
        return UNDEFINED
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def words_of_audit(row: Mapping[str, Any], basis: str) -> MapCheck:
    """Put the audit of a method in words. row: as audit.to_json gives it; basis: what it rests on."""
    from medtl.explain.audit import FAILED  # which loads torch

    checks: Mapping[str, Mapping[str, Any]] = row["checks"]
    verdicts = {name: check["verdict"] for name, check in checks.items()}
    failed = [FAILED[name] for name, verdict in verdicts.items() if verdict == "failed"]
    sentences = [_sentence(name, check) for name, check in checks.items()]
    if row["empty"]:
        sentences.append(f"{row['empty']} of {row['images']} maps are empty: nothing raised the score.")
    if failed:
        headline = f"Do not rely on its maps: {'; '.join(failed)}."
        return MapCheck("failed", headline, tuple(sentences), basis)
    verdict: Verdict = "undecided" if "undecided" in verdicts.values() else "passed"
    return MapCheck(verdict, HEADLINES[verdict], tuple(sentences), basis)


def _sentence(name: str, check: Mapping[str, Any]) -> str:
    side = "below" if name == "randomisation" else "above"
    numbers: Mapping[str, Bounds] = read_bounds({name: {key: check[key] for key in ("value", "low", "high")}})
    verdict = {"passed": "passed", "failed": "not passed", "undecided": "undecided"}[check["verdict"]]
    return (
        f"{name.capitalize()}, {verdict}: {MEASURES[name]}, {interval_text(numbers[name])}; "
        f"{side} {check['bound']:.2g} is right."
    )
