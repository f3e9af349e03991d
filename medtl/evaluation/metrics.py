"""Pure functions of predictions and their truth: metrics, weighted sample by sample.

Each class is compared with the rest: R yes-or-no questions, 1 in binary (of the last class), otherwise K.
    thresholds    (R,)
    weights       None, (N,), or (B, N) for B weightings at once: a bootstrap is a matrix of multiplicities
Metrics by class return (R,), or (B, R), and mean_defined turns them into one number. accuracy,
balanced_accuracy, mcc and brier are of all classes together: a scalar, or (B,). What is undefined, such as
the AUROC of samples of one class, is NaN and never 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medtl.data.task import Task, TaskKind

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
ScoreMetric = Callable[[Floats, Flags, Floats], Floats]


@dataclass(frozen=True, eq=False)
class Questions:
    """Predictions with their truth, and the yes-or-no questions that they answer.

    probabilities: (N, K) in [0, 1]. targets: int (N,), or float (N, K) with NaN where not labelled in
    multilabel. patients: (N,), whose each sample is; what needs no intervals does without.
    """

    probabilities: Floats
    targets: NDArray
    task: Task
    patients: Sequence[str] = ()

    @cached_property
    def patient_of(self) -> NDArray[np.int64]:
        """The number of each sample's patient, (N,), counted from 0."""
        return index_patients(self.patients)

    @cached_property
    def scores(self) -> Floats:
        """The probability of a yes to each question, (N, R)."""
        return self.probabilities[:, -1:] if self.task.kind == "binary" else self.probabilities

    @cached_property
    def truth(self) -> Floats:
        """1 for yes, 0 for no, NaN where not labelled, (N, R)."""
        if self.task.kind == "multilabel":
            return self.targets.astype(np.float64)
        flags = self.of_class.astype(np.float64)
        return flags[:, -1:] if self.task.kind == "binary" else flags

    @property
    def of_class(self) -> Flags:
        """Which samples are of which class, (N, K); not for multilabel."""
        return self.targets[:, None] == np.arange(self.probabilities.shape[1])

    @property
    def columns(self) -> list[tuple[Floats, Floats]]:
        """Scores and truth of each question, both (N,)."""
        return list(zip(self.scores.T, self.truth.T, strict=True))

    def of(self, samples: Flags) -> "Questions":
        """Return the questions of some of the samples."""
        patients = np.asarray(self.patients)[samples].tolist()
        return Questions(self.probabilities[samples], self.targets[samples], self.task, patients)

    def right_answers(self, thresholds: ArrayLike) -> tuple[Flags, Flags]:
        """Return which answers of predict_classes are right, and which are labelled: (N, 1), or (N, K)."""
        answers = predict_classes(self.probabilities, thresholds, self.task.kind)
        right, known = answers == self.targets, np.isfinite(self.targets)
        return (right, known) if self.task.kind == "multilabel" else (right[:, None], known[:, None])

    def right_by_class(self, thresholds: ArrayLike) -> tuple[Flags, Flags]:
        """Return which answers are right, and which samples are of each class, both (N, K).

        In multilabel (N, 2 K): first the samples without each class, then those with it.
        """
        right, _ = self.right_answers(thresholds)
        if self.task.kind == "multilabel":
            return np.tile(right, 2), np.concatenate([self.targets == 0, self.targets == 1], axis=1)
        return np.broadcast_to(right, self.of_class.shape), self.of_class


def index_patients(patients: Sequence[str] | NDArray) -> NDArray[np.int64]:
    """Return the number (N,) of each sample's patient, counted from 0."""
    return np.unique(np.asarray(patients), return_inverse=True)[1]


def auroc(questions: Questions, weights: ArrayLike | None = None) -> Floats:
    """Return the area under the ROC curve by class; ties count half (Hanley and McNeil 1982)."""
    return _by_class(_auroc, questions, weights)


def auprc(questions: Questions, weights: ArrayLike | None = None) -> Floats:
    """Return the average precision by class: precision, summed over the steps of the recall."""
    return _by_class(_average_precision, questions, weights)


def rates(questions: Questions, thresholds: ArrayLike) -> dict[str, tuple[Flags, Flags]]:
    """Return sensitivity, specificity, PPV and NPV by class, each as (hits, among) for share(), (N, R)."""
    flagged = questions.scores >= np.asarray(thresholds)
    positive, negative = questions.truth == 1, questions.truth == 0
    known = positive | negative
    return {
        "sensitivity": (flagged, positive),
        "specificity": (~flagged, negative),
        "ppv": (positive, flagged & known),
        "npv": (negative, ~flagged & known),
    }


def share(hits: NDArray, among: Flags, weights: ArrayLike | None = None) -> Floats:
    """Return the weighted mean of hits (N, R) over the samples in `among` (N, R): (R,), or (B, R)."""
    rows = _weight_rows(weights, len(among))
    hit, counted = (rows @ flags.astype(np.float64) for flags in (hits * among, among))
    return _shaped(_divide(hit, counted), weights)


def f1(questions: Questions, thresholds: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Return the harmonic mean of sensitivity and PPV by class; undefined if a class is absent."""
    flagged, positive = questions.scores >= np.asarray(thresholds), questions.truth == 1
    rows = _weight_rows(weights, len(flagged))
    hits, present = rows @ (flagged & positive), rows @ positive
    answered = rows @ (flagged & np.isfinite(questions.truth))
    return _shaped(_divide(2 * hits, np.where(present > 0, present + answered, 0.0)), weights)


def at_prevalence(sensitivity: Floats, specificity: Floats, prevalence: ArrayLike) -> tuple[Floats, Floats]:
    """Return PPV and NPV where a share `prevalence` has the class, by Bayes' rule; all shapes alike."""
    common = np.asarray(prevalence, np.float64)
    flagged, missed = sensitivity * common, (1 - sensitivity) * common
    alarmed, cleared = (1 - specificity) * (1 - common), specificity * (1 - common)
    return _divide(flagged, flagged + alarmed), _divide(cleared, cleared + missed)


def accuracy(questions: Questions, thresholds: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Return the share of right answers of `predict_classes`; in multilabel the mean over the classes."""
    return mean_defined(share(*questions.right_answers(thresholds), weights))


def balanced_accuracy(
    questions: Questions, thresholds: ArrayLike, weights: ArrayLike | None = None
) -> Floats:
    """Return the mean, over the classes present, of the share of right answers in each.

    In multilabel: the mean over the classes of (sensitivity + specificity) / 2. Undefined for one class.
    """
    recalls = share(*questions.right_by_class(thresholds), weights)
    if questions.task.kind == "multilabel":
        specificities, sensitivities = np.split(recalls, 2, axis=-1)
        return mean_defined((specificities + sensitivities) / 2)
    several = np.isfinite(recalls).sum(axis=-1) > 1
    return np.where(several, mean_defined(recalls), np.nan)[()]


def mcc(questions: Questions, thresholds: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Return Matthews' correlation of answers with the truth (Matthews 1975; several classes: Gorodkin 2004).

    In multilabel the mean over the classes. Undefined where the truth or the answers are all the same.
    """
    truth, classes = questions.targets, questions.probabilities.shape[1]
    answers = predict_classes(questions.probabilities, thresholds, questions.task.kind)
    rows = _weight_rows(weights, len(truth))
    if questions.task.kind == "multilabel":
        columns = [_correlate(answers[:, k], truth[:, k], 2, rows) for k in range(classes)]
    else:
        columns = [_correlate(answers, truth, classes, rows)]
    return mean_defined(_shaped(np.stack(columns, axis=-1), weights))


def brier(questions: Questions, weights: ArrayLike | None = None) -> Floats:
    """Return the mean squared error of the probabilities (Brier 1950).

    Binary: of the positive class. Multiclass: summed over the classes. Multilabel: the mean over the classes.
    """
    known = np.isfinite(questions.truth)
    errors = np.where(known, (questions.scores - np.nan_to_num(questions.truth)) ** 2, 0.0)
    by_class = share(errors, known, weights)
    return by_class.sum(axis=-1) if questions.task.kind == "multiclass" else mean_defined(by_class)


def predict_classes(probabilities: ArrayLike, thresholds: ArrayLike, kind: TaskKind) -> NDArray[np.int64]:
    """Return the answer: class indices (N,), or 0/1 flags (N, K) in multilabel.

    Binary: 1 at or above the threshold. Multiclass: the most probable class; thresholds are not used.
    """
    scores = np.asarray(probabilities)
    if kind == "multiclass":
        return scores.argmax(axis=1)
    flags = ((scores if kind == "multilabel" else scores[:, -1:]) >= np.asarray(thresholds)).astype(np.int64)
    return flags if kind == "multilabel" else flags[:, 0]


def name_answer(probabilities: Floats, thresholds: ArrayLike, task: Task) -> str:
    """Name the answer to one sample's probabilities (K,); in multilabel each class found, joined by "|"."""
    (answer,) = predict_classes(probabilities[None], thresholds, task.kind)
    return "|".join(compress(task.classes, answer)) if task.kind == "multilabel" else task.classes[answer]


def roc_points(scores: ArrayLike, truth: ArrayLike) -> tuple[list[float], list[float]]:
    """Return false and true positive rates of the ROC curve's corners; empty for one class.

    scores, truth: (N,); truth is NaN where not labelled.
    """
    from sklearn.metrics import roc_curve

    values, flags = labelled(scores, truth)
    if len(np.unique(flags)) < 2:
        return [], []
    fpr, tpr, _ = roc_curve(flags, values, drop_intermediate=True)
    return fpr.tolist(), tpr.tolist()


def confusion_matrix(questions: Questions, thresholds: ArrayLike) -> NDArray[np.int64]:
    """Return counts (K, K), rows: truth, columns: answer; empty (0, 0) for multilabel, which has none."""
    if questions.task.kind == "multilabel":
        return np.zeros((0, 0), np.int64)
    answers = predict_classes(questions.probabilities, thresholds, questions.task.kind)
    counts = np.zeros((questions.probabilities.shape[1],) * 2, np.int64)
    np.add.at(counts, (questions.targets, answers), 1)
    return counts


def reliability_bins(questions: Questions, bins: int = 10) -> list[dict[str, float]]:
    """Return the filled ones of equally wide bins of probability: [{mean_probability, observed, count}].

    Binary: of the positive class. Multiclass: of the most probable class and whether it is right. Multilabel:
    of all labelled classes together.
    """
    if questions.task.kind == "multiclass":
        probabilities = questions.probabilities
        scores, truth = probabilities.max(axis=1), probabilities.argmax(axis=1) == questions.targets
    else:
        scores, truth = labelled(questions.scores, questions.truth)
    place = np.clip((scores * bins).astype(np.int64), 0, bins - 1)
    filled = []
    for index in np.unique(place):
        at = place == index
        means = {"mean_probability": float(scores[at].mean()), "observed": float(truth[at].mean())}
        filled.append({**means, "count": int(at.sum())})
    return filled


def mean_defined(values: Floats) -> Floats:
    """Return the mean over the last axis of what is not NaN; NaN where nothing is."""
    known = np.isfinite(values)
    count = known.sum(axis=-1)
    total = np.where(known, values, 0.0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)[()]


def _correlate(answers: NDArray, truth: NDArray, classes: int, weights: Floats) -> Floats:
    """Return Matthews' correlation (B,) of class indices (N,), truth NaN where it is not known."""
    known = np.isfinite(truth)
    predicted = (answers[:, None] == np.arange(classes)) & known[:, None]
    actual = truth[:, None] == np.arange(classes)
    total, right = weights @ known, weights @ (predicted & actual).sum(axis=1)
    predicted_sums, actual_sums = weights @ predicted, weights @ actual
    spread = [total**2 - (sums**2).sum(axis=1) for sums in (predicted_sums, actual_sums)]
    covariance = right * total - (predicted_sums * actual_sums).sum(axis=1)
    return _divide(covariance, np.sqrt(spread[0] * spread[1]))


def _by_class(metric: ScoreMetric, questions: Questions, weights: ArrayLike | None) -> Floats:
    """Return metric(scores, positive, weights (B, n)) for each question, over its labelled samples."""
    rows = _weight_rows(weights, len(questions.scores))
    columns = []
    for scores, truth in questions.columns:
        known = np.isfinite(truth)
        if not np.isfinite(scores[known]).all():
            columns.append(np.full(len(rows), np.nan))
            continue
        order = np.flatnonzero(known)[np.argsort(scores[known], kind="stable")]
        columns.append(metric(scores[order], truth[order] == 1, rows[:, order]))
    return _shaped(np.stack(columns, axis=-1), weights)


def _auroc(scores: Floats, positive: Flags, weights: Floats) -> Floats:
    """scores ascend; weights: (B, n). A positive wins against negatives below it, and half of its ties."""
    positives, negatives = _sums_of_ties(scores, positive, weights)
    below = np.cumsum(negatives, axis=1) - negatives
    wins = (positives * (below + negatives / 2)).sum(axis=1)
    return _divide(wins, positives.sum(axis=1) * negatives.sum(axis=1))


def _average_precision(scores: Floats, positive: Flags, weights: Floats) -> Floats:
    """scores ascend; weights: (B, n). Undefined without a positive or without a negative."""
    positives, negatives = _sums_of_ties(scores, positive, weights)
    hits = np.cumsum(positives[:, ::-1], axis=1)
    flagged = hits + np.cumsum(negatives[:, ::-1], axis=1)
    precision = np.divide(hits, flagged, out=np.zeros_like(hits), where=flagged > 0)
    total = np.where(negatives.sum(axis=1) > 0, positives.sum(axis=1), 0.0)
    return _divide((positives[:, ::-1] * precision).sum(axis=1), total)


def _sums_of_ties(scores: Floats, positive: Flags, weights: Floats) -> tuple[Floats, Floats]:
    """Return the weight of positives and of negatives at each distinct score, (B, distinct), ascending."""
    starts = np.flatnonzero(np.diff(scores, prepend=-np.inf))
    of_positives, of_negatives = weights * positive, weights * ~positive
    if len(starts) == len(scores):
        return of_positives, of_negatives
    return np.add.reduceat(of_positives, starts, axis=1), np.add.reduceat(of_negatives, starts, axis=1)


def labelled(scores: ArrayLike, truth: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the scores that have a label, and whether each is positive; truth is NaN where there is none."""
    values, flags = np.asarray(scores, np.float64), np.asarray(truth, np.float64)
    known = np.isfinite(flags)
    return values[known], flags[known] == 1


def _divide(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def _weight_rows(weights: ArrayLike | None, samples: int) -> Floats:
    return np.ones((1, samples)) if weights is None else np.atleast_2d(np.asarray(weights, np.float64))


def _shaped(values: Floats, weights: ArrayLike | None) -> Floats:
    return values if np.ndim(weights) == 2 else values[0]  # type: ignore[arg-type]
