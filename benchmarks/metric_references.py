"""Compare every metric with a reference on the same arrays: prints the table of docs/metrics.md.

python -m benchmarks.metric_references

References are scikit-learn, SciPy, or the published formula written out here, and torchmetrics if it is
installed. 400 samples from a seed, with ties; a fifth of the multilabel labels is missing.
"""

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from medtl.data.task import Task, TaskKind
from medtl.evaluation import metrics
from medtl.evaluation.calibration_metrics import (
    bin_gaps,
    calibration_errors,
    estimate_intercept,
    estimate_slope,
)
from medtl.evaluation.decision_curve import net_benefit
from medtl.evaluation.intervals import auroc_interval, exact_interval, place, wilson_interval
from medtl.evaluation.thresholds import choose_threshold

SAMPLES, CUT, PREVALENCE = 400, 0.4, 0.1


class Row(NamedTuple):
    """A metric, the task, medtl's value, the reference's, and the name of the reference."""

    metric: str
    task: str
    ours: float
    reference: float
    by: str


class Arrays(NamedTuple):
    """Probabilities and targets of the three tasks, on the same samples."""

    scores: NDArray
    truth: NDArray
    many: NDArray
    classes: NDArray
    cells: NDArray
    flags: NDArray


def make_arrays() -> Arrays:
    """Return seeded predictions that are better than chance, rounded so that some are equal."""
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 2, SAMPLES)
    scores = np.round(1 / (1 + np.exp(-(1.5 * (truth - 0.5) + generator.normal(0, 1, SAMPLES)))), 3)
    classes = generator.integers(0, 4, SAMPLES)
    raised = np.exp(generator.normal(0, 1, (SAMPLES, 4)) + 1.5 * np.eye(4)[classes])
    flags = generator.integers(0, 2, (SAMPLES, 3)).astype(float)
    cells = np.round(1 / (1 + np.exp(-(flags - 0.5 + generator.normal(0, 1, flags.shape)))), 3)
    flags[generator.random(flags.shape) < 0.2] = np.nan
    return Arrays(scores, truth, raised / raised.sum(axis=1, keepdims=True), classes, cells, flags)


def questions(scores: NDArray, truth: NDArray, kind: TaskKind) -> metrics.Questions:
    """Return predictions with their truth."""
    return metrics.Questions(scores, truth, Task(kind, tuple(map(str, range(scores.shape[1])))))


def calibration_error(questions: metrics.Questions) -> NDArray:
    """Return the error by class."""
    return calibration_errors(questions, bin_gaps(questions, np.ones((1, len(questions.targets)))))[0]


def rate(name: str, questions: metrics.Questions, cuts: list[float]) -> NDArray:
    """Return sensitivity, specificity, ppv or npv by class."""
    return metrics.share(*metrics.rates(questions, cuts)[name])


def rows() -> Iterator[Row]:
    """Yield all rows."""
    a = make_arrays()
    yield from binary_rows(a)
    yield from multiclass_rows(a)
    yield from multilabel_rows(a)
    yield from interval_rows(a)
    if find_spec("torchmetrics"):
        yield from torchmetrics_rows(a)


def binary_rows(a: Arrays) -> Iterator[Row]:
    """Yield the metrics of two classes, at a fixed threshold where they need one."""
    pair, cut = np.stack([1 - a.scores, a.scores], axis=1), [CUT]
    said = (a.scores >= CUT).astype(int)
    (tn, fp), (fn, tp) = sk.confusion_matrix(a.truth, said)
    found = {
        "AUROC": (metrics.auroc, (), sk.roc_auc_score(a.truth, a.scores), "scikit-learn"),
        "AUPRC": (metrics.auprc, (), sk.average_precision_score(a.truth, a.scores), "scikit-learn"),
        "Brier score": (metrics.brier, (), sk.brier_score_loss(a.truth, a.scores), "scikit-learn"),
        "accuracy": (metrics.accuracy, (cut,), sk.accuracy_score(a.truth, said), "scikit-learn"),
        "balanced accuracy": (
            metrics.balanced_accuracy,
            (cut,),
            sk.balanced_accuracy_score(a.truth, said),
            "scikit-learn",
        ),
        "F1": (metrics.f1, (cut,), sk.f1_score(a.truth, said), "scikit-learn"),
        "MCC": (metrics.mcc, (cut,), sk.matthews_corrcoef(a.truth, said), "scikit-learn"),
        "sensitivity": (partial(rate, "sensitivity"), (cut,), tp / (tp + fn), "TP / (TP + FN)"),
        "specificity": (partial(rate, "specificity"), (cut,), tn / (tn + fp), "TN / (TN + FP)"),
        "PPV": (partial(rate, "ppv"), (cut,), tp / (tp + fp), "TP / (TP + FP)"),
        "NPV": (partial(rate, "npv"), (cut,), tn / (tn + fn), "TN / (TN + FN)"),
        "calibration error": (calibration_error, (), equal_mass_error(a), "Nixon 2019, by sorting"),
    }
    for name, (metric, more, reference, by) in found.items():
        yield Row(name, "binary", number(metric(questions(pair, a.truth, "binary"), *more)), reference, by)
    yield from threshold_rows(a, tp / (tp + fn), tn / (tn + fp))


def threshold_rows(a: Arrays, sensitivity: float, specificity: float) -> Iterator[Row]:
    """Yield what follows from a threshold or chooses one, and the calibration line."""
    ours = metrics.at_prevalence(np.array(sensitivity), np.array(specificity), PREVALENCE)
    hits, alarms = sensitivity * PREVALENCE, (1 - specificity) * (1 - PREVALENCE)
    yield Row("PPV at 10% prevalence", "binary", number(ours[0]), hits / (hits + alarms), "Bayes' rule")
    fpr, tpr, _ = sk.roc_curve(a.truth, a.scores, drop_intermediate=False)
    said = a.scores >= choose_threshold(a.scores, a.truth)
    reached = said[a.truth == 1].mean() - said[a.truth == 0].mean()
    yield Row("Youden's J at its threshold", "binary", reached, (tpr - fpr).max(), "scikit-learn's ROC")
    odds = CUT / (1 - CUT)
    flagged = a.scores >= CUT
    benefit = (flagged & (a.truth == 1)).mean() - odds * (flagged & (a.truth == 0)).mean()
    ours_benefit = net_benefit(flagged, a.truth.astype(float), CUT).mean()
    yield Row("net benefit", "binary", float(ours_benefit), benefit, "Vickers 2006")
    logits = np.log(a.scores / (1 - a.scores))
    line = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logits[:, None], a.truth)
    slope = estimate_slope(a.scores, a.truth.astype(float))[0]
    yield Row("calibration slope", "binary", slope, line.coef_[0, 0], "scikit-learn, unpenalised")
    intercept = estimate_intercept(a.scores, a.truth.astype(float))[0]
    yield Row("calibration in the large", "binary", intercept, offset_intercept(logits, a.truth), "bisection")


def multiclass_rows(a: Arrays) -> Iterator[Row]:
    """Yield the metrics of four classes."""
    said, onehot = a.many.argmax(axis=1), np.eye(4)[a.classes]
    found = {
        "AUROC, macro": (metrics.auroc, (), sk.roc_auc_score(a.classes, a.many, multi_class="ovr")),
        "AUPRC, macro": (metrics.auprc, (), sk.average_precision_score(onehot, a.many)),
        "accuracy": (metrics.accuracy, (None,), sk.accuracy_score(a.classes, said)),
        "balanced accuracy": (
            metrics.balanced_accuracy,
            (None,),
            sk.balanced_accuracy_score(a.classes, said),
        ),
        "MCC": (metrics.mcc, (None,), sk.matthews_corrcoef(a.classes, said)),
    }
    for name, (metric, more, reference) in found.items():
        ours = number(metric(questions(a.many, a.classes, "multiclass"), *more))
        yield Row(name, "multiclass", ours, reference, "scikit-learn")
    brier = ((a.many - onehot) ** 2).sum(axis=1).mean()
    ours = number(metrics.brier(questions(a.many, a.classes, "multiclass")))
    yield Row("Brier score", "multiclass", ours, brier, "Brier 1950")


def multilabel_rows(a: Arrays) -> Iterator[Row]:
    """Yield the metrics of three findings, each over the samples that are labelled for it."""
    for name, metric, reference in (
        ("AUROC, macro", metrics.auroc, sk.roc_auc_score),
        ("AUPRC, macro", metrics.auprc, sk.average_precision_score),
    ):
        known = np.isfinite(a.flags)
        each = [reference(a.flags[at, k], a.cells[at, k]) for k, at in enumerate(known.T)]
        ours = number(metric(questions(a.cells, a.flags, "multilabel")))
        yield Row(name, "multilabel", ours, float(np.mean(each)), "scikit-learn")


def interval_rows(a: Arrays) -> Iterator[Row]:
    """Yield bounds of intervals."""
    found = stats.binomtest(37, 40).proportion_ci(method="exact")
    yield Row("Clopper-Pearson, low", "37 of 40", exact_interval(37, 40, 0.95).low, found.low, "SciPy")
    found = stats.binomtest(37, 40).proportion_ci(method="wilson")
    yield Row("Wilson, low", "37 of 40", wilson_interval(37 / 40, 40, 0.95).low, found.low, "SciPy")
    patients = np.arange(SAMPLES)
    ours = auroc_interval(place(a.scores, a.truth.astype(float), patients), 0.95)
    yield Row("DeLong's interval, low", "binary", ours.low, delong_low(a), "DeLong 1988, written out; logit")


def torchmetrics_rows(a: Arrays) -> Iterator[Row]:
    """Yield torchmetrics' values for two classes; it counts a score at the threshold as below it."""
    import torch
    from torchmetrics.functional import classification as tm

    scores, truth = torch.from_numpy(a.scores), torch.from_numpy(a.truth)
    pair, just_below = np.stack([1 - a.scores, a.scores], axis=1), CUT - 1e-4
    for name, metric, more, reference in (
        ("AUROC", metrics.auroc, (), tm.binary_auroc(scores, truth)),
        ("AUPRC", metrics.auprc, (), tm.binary_average_precision(scores, truth)),
        ("F1", metrics.f1, ([CUT],), tm.binary_f1_score(scores, truth, threshold=just_below)),
        ("MCC", metrics.mcc, ([CUT],), tm.binary_matthews_corrcoef(scores, truth, threshold=just_below)),
    ):
        ours = number(metric(questions(pair, a.truth, "binary"), *more))
        yield Row(name, "binary", ours, float(reference), "torchmetrics")


def number(value: NDArray) -> float:
    """Return the mean over the classes."""
    return float(np.mean(value))


def equal_mass_error(a: Arrays, bins: int = 10) -> float:
    """Return the calibration error in bins of equal mass, one sample after the other; ties share a bin."""
    order = np.argsort(a.scores, kind="stable")
    scores, truth = a.scores[order], a.truth[order]
    gaps = np.zeros(bins)
    for value in np.unique(scores):
        at = scores == value
        middle = (scores < value).sum() + at.sum() / 2
        gaps[int(bins * middle / len(scores))] += (value - truth[at]).sum()
    return float(np.abs(gaps).sum() / len(scores))


def offset_intercept(logits: NDArray, truth: NDArray) -> float:
    """Return the shift of the logits at which as many are expected as there are, by bisection."""
    expected: Callable[[float], float] = lambda shift: (1 / (1 + np.exp(-logits - shift))).sum()  # noqa: E731
    low, high = -10.0, 10.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if expected(middle) < truth.sum() else (low, middle)
    return low


def delong_low(a: Arrays) -> float:
    """Return the lower bound of DeLong's interval on the logit scale, from all pairs."""
    positive, negative = a.scores[a.truth == 1], a.scores[a.truth == 0]
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    area = wins.mean()
    variance = wins.mean(axis=1).var(ddof=1) / len(positive) + wins.mean(axis=0).var(ddof=1) / len(negative)
    logit = np.log(area / (1 - area)) - stats.norm.ppf(0.975) * np.sqrt(variance) / (area * (1 - area))
    return float(1 / (1 + np.exp(-logit)))


def main() -> None:
    """Print the table."""
    print("| metric | task | medtl | reference | difference | by |\n| --- | --- | --- | --- | --- | --- |")
    for row in rows():
        values = f"{row.ours:.6f} | {row.reference:.6f} | {abs(row.ours - row.reference):.0e}"
        print(f"| {row.metric} | {row.task} | {values} | {row.by} |")


if __name__ == "__main__":
    main()
