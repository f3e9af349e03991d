"""Numbers -> words, with their intervals: undefined stays undefined, nothing is rounded to certainty."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from medtl.report.findings import Bounds, MapCheck, MapVerdict, as_bounds, is_defined

if TYPE_CHECKING:
    from medtl.data.task import TaskKind


UNDEFINED = "undefined"

# What each check measures, in the order of the audit.
MEASURES = {
    "deletion": "how much faster the score falls than when regions are removed at random",
    "insertion": "how much faster the score rises than when regions are added at random",
    "randomisation": "how similar the map stays when the weights are randomised",
    "stability": "how similar the map stays under slight noise",
    "pointing": "how often its maximum lies inside the mask",
    "energy": "its share inside the mask over the mask's share of the image",
}
HEADLINES = {
    "passed": "Its maps passed every check.",
    "undecided": "There are too few images to tell whether its maps are reliable.",
}


class MetricName(NamedTuple):
    """The name of a metric, and what it means in one plain sentence."""

    name: str
    meaning: str


METRICS = {
    "auroc": ("AUROC", "Probability that a study with the finding scores higher than a study without it."),
    "auprc": ("Average precision", "Precision averaged over recall; chance level is the prevalence."),
    "sensitivity": ("Sensitivity", "Share of studies with the finding that the model flags."),
    "specificity": ("Specificity", "Share of studies without the finding that the model does not flag."),
    "balanced_accuracy": ("Balanced accuracy", "Accuracy with every class weighted equally."),
    "accuracy": ("Accuracy", "Share of correct predictions; depends on the prevalence."),
    "auroc_bootstrap": ("AUROC, bootstrap", "The same AUROC with an interval from resampled patients."),
    "ppv": ("PPV", "Share of flagged studies with the finding, at the prevalence of these data."),
    "npv": ("NPV", "Share of unflagged studies without the finding, at the prevalence of these data."),
    "ppv_at_prevalence": ("PPV at the stated prevalence", "By Bayes' rule."),
    "npv_at_prevalence": ("NPV at the stated prevalence", "By Bayes' rule."),
    "f1": ("F1", "Harmonic mean of sensitivity and PPV."),
    "mcc": ("MCC", "Matthews correlation of prediction and truth: 1 is perfect, 0 is chance."),
    "calibration_slope": ("Calibration slope", "1 is ideal; below 1 the model is overconfident."),
    "calibration_intercept": ("Calibration intercept", "0 is ideal; above 0 probabilities are too low."),
    "brier": ("Brier score", "Mean squared error of the probabilities; 0 is perfect."),
    "ece": (
        "Calibration error",
        "Mean gap between predicted probability and observed frequency; 0 is perfect. Noise inflates the "
        "value; the interval corrects for that, so most of it lies below the value.",
    ),
}


def metric_name(key: str) -> MetricName:
    """Return the name and meaning of a metric; of an unknown one its readable key."""
    return MetricName(*METRICS.get(key, (key.replace("_", " "), "")))


def set_text(prediction_set: Sequence[str] | None, kind: "TaskKind") -> str:
    """Write a prediction set in words: "normal or opacity"; "" if there is none."""
    if prediction_set is None:
        return ""
    if kind != "multilabel":
        return " or ".join(prediction_set)
    certain = [name for name in prediction_set if not name.endswith("?")]
    possible = [f"possibly {name.removesuffix('?')}" for name in prediction_set if name.endswith("?")]
    return ", ".join([*certain, *possible]) or "none of the findings"


def number_text(value: float | None) -> str:
    """Write a metric with two decimals, or "undefined"."""
    return f"{value:.2f}" if is_defined(value) else UNDEFINED


def probability_text(value: float) -> str:
    """Write a probability with two decimals, but never as 0.00 or 1.00, which would claim certainty."""
    if value < 0.005:
        return "< 0.01"
    return "> 0.99" if value >= 0.995 else f"{value:.2f}"


def range_text(bounds: Bounds) -> str:
    """Write an interval: "0.88 to 0.97", or "undefined"."""
    _, low, high = bounds
    return f"{low:.2f} to {high:.2f}" if is_defined(low) and is_defined(high) else UNDEFINED


def confidence_text(bounds: Bounds, confidence: float = 0.95) -> str:
    """Write the interval of a metric: "95% interval 0.88 to 0.97", or "interval undefined"."""
    ends = range_text(bounds)
    return f"interval {UNDEFINED}" if ends == UNDEFINED else f"{confidence:.0%} interval {ends}"


def interval_text(bounds: Bounds, confidence: float = 0.95) -> str:
    """Write a metric with its interval: "0.93 (95% interval 0.88 to 0.97)"."""
    if not is_defined(bounds[0]):
        return UNDEFINED
    return f"{bounds[0]:.2f} ({confidence_text(bounds, confidence)})"


def signed_text(value: float | None) -> str:
    """Write a difference with its sign."""
    return f"{value:+.3f}" if is_defined(value) else UNDEFINED


def p_text(p: float | None) -> str:
    """Write a p-value, but never as 0."""
    if not is_defined(p):
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
    """Put the audit of a method in words. row: as returned by audit.to_json; basis: which images it used."""
    from medtl.explain.audit import FAILED  # here, since it loads torch, which most pages do not need

    checks: Mapping[str, Mapping[str, Any]] = row["checks"]
    sentences = [
        f"{name.capitalize()}, {check['verdict']}: {MEASURES[name]}, {interval_text(as_bounds(check))}; "
        f"should be {'below' if name == 'randomisation' else 'above'} {check['bound']:.2g}."
        for name, check in checks.items()
    ]
    if row["empty"]:
        sentences.append(f"{row['empty']} of {row['images']} maps are empty: nothing raised the score.")
    found = {check["verdict"] for check in checks.values()}
    failed = [FAILED[name] for name, check in checks.items() if check["verdict"] == "failed"]
    verdict: MapVerdict = "failed" if failed else "undecided" if "undecided" in found else "passed"
    headline = HEADLINES.get(verdict) or f"Do not rely on its maps: {'; '.join(failed)}."
    return MapCheck(verdict, headline, tuple(sentences), basis)
