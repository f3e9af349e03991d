"""Rules for thresholds are read, refused in one line, and achieve on validation data what they say."""

from functools import partial

import numpy as np
import pytest
from sklearn import metrics as reference

from medtl.errors import ConfigError
from medtl.evaluation import metrics
from medtl.evaluation.decision_curve import decision_curves
from medtl.evaluation.thresholds import ThresholdRule, choose_thresholds, parse_rule

from .test_metrics import one_vs_rest, rate

KINDS = ("binary", "multiclass", "multilabel")


def make_scores(samples: int = 300, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, classes, samples)
    scores = np.exp(generator.normal(size=(samples, classes)) + 1.2 * np.eye(classes)[truth])
    return scores / scores.sum(axis=1, keepdims=True), truth


def test_rules_are_read_as_they_are_written() -> None:
    for text in ("youden", "sensitivity=0.95", "specificity=0.9", "cost=10:1"):
        assert str(parse_rule(text)) == text
    assert parse_rule("cost=10:1") == ThresholdRule("cost", 10, 1)


@pytest.mark.parametrize(
    "text", ["", "best", "sensitivity", "sensitivity=1.5", "sensitivity=0", "cost=1", "cost=0:1", "cost=a:b"]
)
def test_what_is_no_rule_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_rule(text)
    assert caught.value.code == "config-value" and "sensitivity=0.95" in str(caught.value)


@pytest.mark.parametrize("kept", [0.8, 0.95, 1.0])
def test_sensitivity_is_kept_by_the_most_specific_threshold(kept: float) -> None:
    scores, truth = make_scores()
    (cut,) = choose_thresholds(one_vs_rest(scores, truth, "binary"), ThresholdRule("sensitivity", kept))
    higher = np.sort(scores[scores[:, 1] >= cut, 1])[1:2] - 1e-12
    assert rate("sensitivity", one_vs_rest(scores, truth, "binary"), [cut])[0] >= kept
    for value in scores[scores[:, 1] > higher[0], 1]:
        if (scores[truth == 1, 1] >= value).mean() >= kept:
            assert (scores[truth == 0, 1] < value).mean() <= (scores[truth == 0, 1] < cut).mean()


def test_specificity_is_kept() -> None:
    scores, truth = make_scores()
    (cut,) = choose_thresholds(one_vs_rest(scores, truth, "binary"), ThresholdRule("specificity", 0.9))
    assert 0.9 <= rate("specificity", one_vs_rest(scores, truth, "binary"), [cut])[0] < 0.93


def test_cost_is_the_least_of_all_thresholds() -> None:
    scores, truth = make_scores()

    def cost(cut: float) -> float:
        flagged = scores[:, 1] >= cut
        return 10 * (~flagged & (truth == 1)).sum() + (flagged & (truth == 0)).sum()

    (cut,) = choose_thresholds(one_vs_rest(scores, truth, "binary"), ThresholdRule("cost", 10, 1))
    assert cost(cut) == min(cost(value) for value in np.linspace(0, 1.01, 2000))


def test_alarms_that_cost_too_much_are_never_given() -> None:
    questions = one_vs_rest([[0.9, 0.1], [0.1, 0.9]], [1, 0], "binary")
    (cut,) = choose_thresholds(questions, ThresholdRule("cost", 1, 1000))
    assert cut > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_answers_at_thresholds_equal_scikit_learn(kind: str) -> None:
    classes = 2 if kind == "binary" else 3
    scores, labels = make_scores(classes=classes)
    truth = np.eye(classes)[labels] if kind == "multilabel" else labels
    cuts = np.full(1 if kind == "binary" else classes, 0.4)
    questions = one_vs_rest(scores, truth, kind)
    flagged = questions.scores >= cuts
    pairs = list(zip(questions.truth.T, flagged.T, strict=True))
    precisions = [reference.precision_score(t, f) for t, f in pairs]
    assert rate("ppv", questions, cuts) == pytest.approx(precisions)
    negatives = [reference.precision_score(t, f, pos_label=0) for t, f in pairs]
    assert rate("npv", questions, cuts) == pytest.approx(negatives)
    assert metrics.f1(questions, cuts) == pytest.approx([reference.f1_score(t, f) for t, f in pairs])
    if kind == "multilabel":
        expected_mcc = np.mean([reference.matthews_corrcoef(t, f) for t, f in pairs])
    else:
        answers = flagged[:, 0] if kind == "binary" else scores.argmax(axis=1)
        expected_mcc = reference.matthews_corrcoef(truth, answers)
    assert metrics.mcc(one_vs_rest(scores, truth, kind), cuts) == pytest.approx(expected_mcc)


@pytest.mark.parametrize("name", ["ppv", "npv", "f1", "mcc"])
def test_weights_count_as_repeated_samples(name: str) -> None:
    scores, truth = make_scores(60, 3)
    weights, metric = (
        np.random.default_rng(1).integers(0, 4, (4, 60)),
        getattr(metrics, name, partial(rate, name)),
    )
    together = metric(one_vs_rest(scores, truth, "multiclass"), [0.3] * 3, weights)
    for row, values in zip(weights, together, strict=True):
        rows = np.repeat(np.arange(60), row)
        alone = metric(one_vs_rest(scores[rows], truth[rows], "multiclass"), [0.3] * 3)
        assert values == pytest.approx(alone)


def test_what_the_data_cannot_say_is_undefined() -> None:
    scores, truth = np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([0, 0])
    assert np.isnan(metrics.f1(one_vs_rest(scores, truth, "binary"), [0.5])).all()
    assert np.isnan(rate("ppv", one_vs_rest(scores, truth, "binary"), [0.5])).all()
    assert np.isnan(metrics.mcc(one_vs_rest(scores, truth, "binary"), [0.5]))


def test_predictive_values_at_a_prevalence_are_bayes_by_hand() -> None:
    ppv, npv = metrics.at_prevalence(np.array([0.9]), np.array([0.8]), 0.1)
    assert ppv == pytest.approx(0.09 / (0.09 + 0.18)) and npv == pytest.approx(0.72 / (0.72 + 0.01))


def test_net_benefit_is_derived_by_hand() -> None:
    """At 20% two hits and one false alarm of ten: 0.2 - 0.1 / 4; acting on all: 0.3 - 0.7 / 4."""
    positive = np.array([0.9, 0.8, 0.1, 0.5] + [0.1] * 6)
    scores, truth = np.stack([1 - positive, positive], axis=1), np.array([1, 1, 1] + [0] * 7)
    curve = decision_curves(one_vs_rest(scores, truth, "binary"))["c1"]
    at = curve["thresholds"].index(0.2)
    assert curve["model"][at] == pytest.approx(0.175) and curve["treat_all"][at] == pytest.approx(0.125)
    assert curve["low"][at] < 0.175 < curve["high"][at]
    assert decision_curves(one_vs_rest(scores, np.ones(10, int), "binary")) == {}
