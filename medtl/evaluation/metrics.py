"""Pure functions of (probabilities, targets): how well classes are told apart, weighted sample by sample.

Shapes, for all of them:
    probabilities (N, K) in [0, 1]
    targets       int (N,) for binary and multiclass; float (N, K) with NaN where not labelled for multilabel
    weights       None, (N,), or (B, N) for B weightings at once: a bootstrap is a matrix of multiplicities
    thresholds    (R,): R is 1 in binary (the last class is the positive one), otherwise K

Each class is judged against the rest: that makes R questions. `<metric>_by_class` returns (R,), or (B, R);
the plain name is the mean over the questions that are defined, a scalar, or (B,). What is undefined, such as
the AUROC of samples of one class, is NaN and never 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import confusion_matrix as count_confusions
from sklearn.metrics import roc_curve

from medtl.data.task import TaskKind

Floats = NDArray[np.float64]
ScoreMetric = Callable[[Floats, NDArray[np.bool_], Floats], Floats]

# Weightings are taken in blocks of about this many numbers (16 MB), which stay near the processor.
BLOCK = 2_000_000
# As many as a reliability diagram shows; each one more adds the noise of its own rate to the error.
CALIBRATION_BINS = 10


@dataclass(frozen=True, eq=False)
class Questions:
    """R yes-or-no questions: scores and truth (N, R), truth NaN where it is not known."""

    scores: Floats
    truth: Floats


@dataclass(frozen=True)
class ReliabilityBin:
    """How often those came true whose probability was within one bin."""

    mean_probability: float
    observed: float
    count: int


def one_vs_rest(probabilities: ArrayLike, targets: ArrayLike, kind: TaskKind) -> Questions:
    """Turn a task into its yes-or-no questions."""
    scores, truth = np.asarray(probabilities, np.float64), np.asarray(targets)
    if kind == "multilabel":
        return Questions(scores, truth.astype(np.float64))
    flags = (truth[:, None] == np.arange(scores.shape[1])).astype(np.float64)
    return Questions(scores[:, -1:], flags[:, -1:]) if kind == "binary" else Questions(scores, flags)


def auroc(
    probabilities: ArrayLike, targets: ArrayLike, weights: ArrayLike | None = None, *, kind: TaskKind
) -> Floats:
    """Return the area under the ROC curve; ties count half (Hanley and McNeil 1982)."""
    return mean_defined(auroc_by_class(probabilities, targets, weights, kind=kind))


def auroc_by_class(
    probabilities: ArrayLike, targets: ArrayLike, weights: ArrayLike | None = None, *, kind: TaskKind
) -> Floats:
    """Return the area under the ROC curve of each class against the rest."""
    return _by_class(_auroc, one_vs_rest(probabilities, targets, kind), weights)


def auprc(
    probabilities: ArrayLike, targets: ArrayLike, weights: ArrayLike | None = None, *, kind: TaskKind
) -> Floats:
    """Return the average precision: precision, summed over the steps of the recall."""
    return mean_defined(auprc_by_class(probabilities, targets, weights, kind=kind))


def auprc_by_class(
    probabilities: ArrayLike, targets: ArrayLike, weights: ArrayLike | None = None, *, kind: TaskKind
) -> Floats:
    """Return the average precision of each class against the rest."""
    return _by_class(_average_precision, one_vs_rest(probabilities, targets, kind), weights)


def sensitivity_by_class(
    probabilities: ArrayLike,
    targets: ArrayLike,
    thresholds: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    kind: TaskKind,
) -> Floats:
    """Return the share of each class that is at or above its threshold."""
    questions = one_vs_rest(probabilities, targets, kind)
    flagged = questions.scores >= np.asarray(thresholds)
    return _share(flagged, questions.truth == 1, weights)


def specificity_by_class(
    probabilities: ArrayLike,
    targets: ArrayLike,
    thresholds: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    kind: TaskKind,
) -> Floats:
    """Return the share of the rest, for each class, that is below its threshold."""
    questions = one_vs_rest(probabilities, targets, kind)
    flagged = questions.scores >= np.asarray(thresholds)
    return _share(~flagged, questions.truth == 0, weights)


def ppv_by_class(
    probabilities: ArrayLike,
    targets: ArrayLike,
    thresholds: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    kind: TaskKind,
) -> Floats:
    """Return the share of the samples at or above each class's threshold that are of it (the precision)."""
    questions = one_vs_rest(probabilities, targets, kind)
    flagged = questions.scores >= np.asarray(thresholds)
    return _share(questions.truth == 1, flagged & np.isfinite(questions.truth), weights)


def npv_by_class(
    probabilities: ArrayLike,
    targets: ArrayLike,
    thresholds: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    kind: TaskKind,
) -> Floats:
    """Return the share of the samples below each class's threshold that are not of it."""
    questions = one_vs_rest(probabilities, targets, kind)
    flagged = questions.scores >= np.asarray(thresholds)
    return _share(questions.truth == 0, ~flagged & np.isfinite(questions.truth), weights)


def f1_by_class(
    probabilities: ArrayLike,
    targets: ArrayLike,
    thresholds: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    kind: TaskKind,
) -> Floats:
    """Return the harmonic mean of sensitivity and PPV of each class; undefined where it is absent."""
    questions = one_vs_rest(probabilities, targets, kind)
    flagged = questions.scores >= np.asarray(thresholds)
    rows = _weight_rows(weights, len(flagged))
    positive, known = questions.truth == 1, np.isfinite(questions.truth)
    hits, present, answered = (
        rows @ mask.astype(np.float64) for mask in (flagged & positive, positive, flagged & known)
    )
    return _shaped(_divide(2 * hits, np.where(present > 0, present + answered, 0.0)), weights)


def mcc(
    probabilities: ArrayLike,
    targets: ArrayLike,
    thresholds: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    kind: TaskKind,
) -> Floats:
    """Return Matthews' correlation of answers with the truth (Matthews 1975; several classes: Gorodkin 2004).

    In multilabel the mean over the classes. Undefined where the truth or the answers are all the same.
    """
    answers, truth = predict_classes(probabilities, thresholds, kind), np.asarray(targets)
    rows = _weight_rows(weights, len(truth))
    if kind == "multilabel":
        pairs = [(answers[:, k], truth[:, k], 2) for k in range(truth.shape[1])]
    else:
        pairs = [(answers, truth, np.shape(probabilities)[1])]
    columns = [_correlate(*pair, rows) for pair in pairs]
    return mean_defined(_shaped(np.stack(columns, axis=-1), weights))


def at_prevalence(sensitivity: Floats, specificity: Floats, prevalence: ArrayLike) -> tuple[Floats, Floats]:
    """Return PPV and NPV where a share `prevalence` has the class, by Bayes' rule; all shapes alike."""
    common = np.asarray(prevalence, np.float64)
    flagged, missed = sensitivity * common, (1 - sensitivity) * common
    alarmed, cleared = (1 - specificity) * (1 - common), specificity * (1 - common)
    return _divide(flagged, flagged + alarmed), _divide(cleared, cleared + missed)


def accuracy(
    probabilities: ArrayLike,
    targets: ArrayLike,
    thresholds: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    kind: TaskKind,
) -> Floats:
    """Return the share of right answers of `predict_classes`; in multilabel the mean over the classes."""
    right, known = _right_answers(probabilities, targets, thresholds, kind)
    return mean_defined(_share(right, known, weights))


def balanced_accuracy(
    probabilities: ArrayLike,
    targets: ArrayLike,
    thresholds: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    kind: TaskKind,
) -> Floats:
    """Return the mean, over the classes present, of the share of right answers in each.

    In multilabel: the mean over the classes of (sensitivity + specificity) / 2. Undefined for one class.
    """
    right, _ = _right_answers(probabilities, targets, thresholds, kind)
    if kind == "multilabel":
        truth = np.asarray(targets)
        halves = [_share(right, truth == value, weights) for value in (0, 1)]
        return mean_defined((halves[0] + halves[1]) / 2)
    classes = np.asarray(targets)[:, None] == np.arange(np.shape(probabilities)[1])
    recalls = _share(np.broadcast_to(right, classes.shape), classes, weights)
    several = np.isfinite(recalls).sum(axis=-1) > 1
    return np.where(several, mean_defined(recalls), np.nan)[()]


def brier(
    probabilities: ArrayLike, targets: ArrayLike, weights: ArrayLike | None = None, *, kind: TaskKind
) -> Floats:
    """Return the mean squared error of the probabilities (Brier 1950).

    Binary: of the positive class. Multiclass: summed over the classes. Multilabel: the mean over the classes.
    """
    questions = one_vs_rest(probabilities, targets, kind)
    known = np.isfinite(questions.truth)
    errors = np.where(known, (questions.scores - np.nan_to_num(questions.truth)) ** 2, 0.0)
    by_class = _share(errors, known, weights)
    return by_class.sum(axis=-1) if kind == "multiclass" else mean_defined(by_class)


def calibration_error(
    probabilities: ArrayLike, targets: ArrayLike, weights: ArrayLike | None = None, *, kind: TaskKind
) -> Floats:
    """Return the expected calibration error in bins of equal weight (Naeini 2015, Nixon 2019)."""
    return mean_defined(calibration_error_by_class(probabilities, targets, weights, kind=kind))


def calibration_error_by_class(
    probabilities: ArrayLike, targets: ArrayLike, weights: ArrayLike | None = None, *, kind: TaskKind
) -> Floats:
    """Return, for each class against the rest, how far its probability is from how often it came true.

    The mean over bins of |mean probability - observed rate|. Bins of equal weight and not of equal width:
    where a class is rare nearly all its probabilities would share one bin of those.
    """
    return _by_class(_calibration_error, one_vs_rest(probabilities, targets, kind), weights)


def predict_classes(probabilities: ArrayLike, thresholds: ArrayLike, kind: TaskKind) -> NDArray[np.int64]:
    """Return the answer: class indices (N,), or 0/1 flags (N, K) in multilabel.

    Binary: 1 at or above the threshold. Multiclass: the most probable class; thresholds play no part.
    """
    scores = np.asarray(probabilities)
    if kind == "multiclass":
        return scores.argmax(axis=1)
    flags = (scores if kind == "multilabel" else scores[:, -1:]) >= np.asarray(thresholds)
    return flags.astype(np.int64) if kind == "multilabel" else flags[:, 0].astype(np.int64)


def roc_points(scores: ArrayLike, truth: ArrayLike) -> tuple[Floats, Floats]:
    """Return false and true positive rates of the ROC curve's corners; empty for one class.

    scores, truth: (N,); truth is NaN where not labelled.
    """
    values, flags = labelled(scores, truth)
    if len(np.unique(flags)) < 2:
        return np.empty(0), np.empty(0)
    fpr, tpr, _ = roc_curve(flags, values, drop_intermediate=True)
    return fpr, tpr


def confusion_matrix(
    probabilities: ArrayLike, targets: ArrayLike, thresholds: ArrayLike, *, kind: TaskKind
) -> NDArray[np.int64]:
    """Return counts (K, K), rows: truth, columns: answer; empty (0, 0) for multilabel, which has none."""
    if kind == "multilabel":
        return np.zeros((0, 0), np.int64)
    labels = np.arange(np.shape(probabilities)[1])
    return count_confusions(targets, predict_classes(probabilities, thresholds, kind), labels=labels)


def reliability_bins(
    probabilities: ArrayLike, targets: ArrayLike, *, kind: TaskKind, bins: int = 10
) -> list[ReliabilityBin]:
    """Return the filled ones of equally wide bins of probability.

    Binary: of the positive class. Multiclass: of the most probable class and whether it is right. Multilabel:
    of all labelled classes together.
    """
    scores, truth = _stated_and_true(probabilities, targets, kind)
    place = np.clip((scores * bins).astype(np.int64), 0, bins - 1)
    filled = [place == index for index in np.unique(place)]
    return [ReliabilityBin(float(scores[at].mean()), float(truth[at].mean()), int(at.sum())) for at in filled]


def mean_defined(values: Floats) -> Floats:
    """Return the mean over the last axis of what is not NaN; NaN where nothing is."""
    known = np.isfinite(values)
    count = known.sum(axis=-1)
    total = np.where(known, values, 0.0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)[()]


def _correlate(answers: NDArray, truth: NDArray, classes: int, weights: Floats) -> Floats:
    """Return Matthews' correlation (B,) of class indices (N,), truth NaN where it is not known."""
    known = np.isfinite(truth)
    said = ((answers[:, None] == np.arange(classes)) & known[:, None]).astype(np.float64)
    meant = (truth[:, None] == np.arange(classes)).astype(np.float64)
    total = weights @ known.astype(np.float64)
    right = weights @ (said * meant).sum(axis=1)
    said_sums, meant_sums = weights @ said, weights @ meant
    spread = [total**2 - (sums**2).sum(axis=1) for sums in (said_sums, meant_sums)]
    return _divide(right * total - (said_sums * meant_sums).sum(axis=1), np.sqrt(spread[0] * spread[1]))


def _by_class(metric: ScoreMetric, questions: Questions, weights: ArrayLike | None) -> Floats:
    """Return metric(scores, positive, weights (B, n)) for each question, over its labelled samples."""
    rows = _weight_rows(weights, len(questions.scores))
    columns = [
        _ask(metric, scores, truth, rows) for scores, truth in zip(questions.scores.T, questions.truth.T)
    ]
    return _shaped(np.stack(columns, axis=-1), weights)


def _ask(metric: ScoreMetric, scores: Floats, truth: Floats, weights: Floats) -> Floats:
    known = np.isfinite(truth)
    if not np.isfinite(scores[known]).all():
        return np.full(len(weights), np.nan)
    order = np.flatnonzero(known)[np.argsort(scores[known], kind="stable")]
    positive = truth[order] == 1
    step = max(1, BLOCK // max(1, len(order)))
    blocks = [weights[start : start + step][:, order] for start in range(0, len(weights), step)]
    return np.concatenate([metric(scores[order], positive, block) for block in blocks])


def _auroc(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """scores ascend; weights: (B, n). A positive wins against negatives below it, and half of its ties."""
    positives, negatives = _sums_of_ties(scores, positive, weights)
    below = np.cumsum(negatives, axis=1) - negatives
    wins = (positives * (below + negatives / 2)).sum(axis=1)
    return _divide(wins, positives.sum(axis=1) * negatives.sum(axis=1))


def _average_precision(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """scores ascend; weights: (B, n). Undefined without a positive or without a negative."""
    positives, negatives = _sums_of_ties(scores, positive, weights)
    hits = np.cumsum(positives[:, ::-1], axis=1)
    flagged = hits + np.cumsum(negatives[:, ::-1], axis=1)
    precision = np.divide(hits, flagged, out=np.zeros_like(hits), where=flagged > 0)
    total = np.where(negatives.sum(axis=1) > 0, positives.sum(axis=1), 0.0)
    return _divide((positives[:, ::-1] * precision).sum(axis=1), total)


def _calibration_error(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """scores ascend; weights: (B, n); ties share a bin. Undefined without a positive or a negative."""
    positives, negatives = _sums_of_ties(scores, positive, weights)
    mass = positives + negatives
    total = np.where(np.minimum(positives.sum(axis=1), negatives.sum(axis=1)) > 0, mass.sum(axis=1), 0.0)
    middles = np.cumsum(mass, axis=1) - mass / 2
    bins = np.floor(_divide(CALIBRATION_BINS * middles, total[:, None]))
    excess = np.unique(scores) * mass - positives
    gaps = [np.abs((excess * (bins == index)).sum(axis=1)) for index in range(CALIBRATION_BINS)]
    return _divide(np.sum(gaps, axis=0), total)


def _sums_of_ties(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> tuple[Floats, Floats]:
    """Return the weight of positives and of negatives at each distinct score, (B, distinct), ascending."""
    starts = np.flatnonzero(np.diff(scores, prepend=-np.inf))
    of_positives, of_negatives = weights * positive, weights * ~positive
    if len(starts) == len(scores):
        return of_positives, of_negatives
    return np.add.reduceat(of_positives, starts, axis=1), np.add.reduceat(of_negatives, starts, axis=1)


def _right_answers(
    probabilities: ArrayLike, targets: ArrayLike, thresholds: ArrayLike, kind: TaskKind
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which answers are right and which are known at all, both (N, 1), or (N, K) in multilabel."""
    truth = np.asarray(targets)
    answers = predict_classes(probabilities, thresholds, kind)
    if kind != "multilabel":
        answers, truth = answers[:, None], truth[:, None]
    return answers == truth, np.isfinite(truth)


def _stated_and_true(probabilities: ArrayLike, targets: ArrayLike, kind: TaskKind) -> tuple[Floats, Floats]:
    if kind == "multiclass":
        scores = np.asarray(probabilities, np.float64)
        return scores.max(axis=1), (scores.argmax(axis=1) == np.asarray(targets)).astype(np.float64)
    questions = one_vs_rest(probabilities, targets, kind)
    known = np.isfinite(questions.truth)
    return questions.scores[known], questions.truth[known]


def labelled(scores: ArrayLike, truth: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the scores that have a label, and whether each is positive; truth is NaN where there is none."""
    values, flags = np.asarray(scores, np.float64), np.asarray(truth, np.float64)
    known = np.isfinite(flags)
    return values[known], flags[known] == 1


def _share(values: NDArray, among: NDArray[np.bool_], weights: ArrayLike | None) -> Floats:
    """Return the weighted mean of values (N, R) over the samples in `among` (N, R): (R,), or (B, R)."""
    rows = _weight_rows(weights, len(among))
    return _shaped(
        _divide(rows @ (values * among).astype(np.float64), rows @ among.astype(np.float64)), weights
    )


def _divide(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def _weight_rows(weights: ArrayLike | None, samples: int) -> Floats:
    return np.ones((1, samples)) if weights is None else np.atleast_2d(np.asarray(weights, np.float64))


def _shaped(values: Floats, weights: ArrayLike | None) -> Floats:
    return values if np.ndim(weights) == 2 else values[0]  # type: ignore[arg-type]
