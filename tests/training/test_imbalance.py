"""Each strategy's class weights, or what it does to gradients and priors, on a set of nine to one."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ValidationError

from medtl.data.task import Task
from medtl.training.batches import Order
from medtl.training.config import ImbalanceConfig
from medtl.training.imbalance import IMBALANCE

BINARY = Task("binary", ("no", "yes"))
MULTICLASS = Task("multiclass", ("a", "b", "c"))
MULTILABEL = Task("multilabel", ("a", "b"))
NINE_TO_ONE = np.array([0] * 90 + [1] * 10)
# Class a: 9 negatives to 1 positive, all labelled. Class b: 2 to 2, and the rest not labelled.
TWO_FINDINGS = np.full((10, 2), np.nan, dtype=np.float32)
TWO_FINDINGS[:, 0] = [1] + [0] * 9
TWO_FINDINGS[:4, 1] = [1, 1, 0, 0]
TARGETS = {
    "binary": (BINARY, NINE_TO_ONE),
    "multiclass": (MULTICLASS, np.array([0] * 18 + [1] * 9 + [2] * 3)),
    "multilabel": (MULTILABEL, TWO_FINDINGS),
}
every_strategy = pytest.mark.parametrize("name", list(IMBALANCE))
every_kind = pytest.mark.parametrize("kind", list(TARGETS))


def make_logits(rows: int, classes: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def constant_logits(rare_probability: float, rows: int = 100) -> torch.Tensor:
    """One answer for every sample: what a network knows that cannot see."""
    row = torch.tensor([1 - rare_probability, rare_probability], dtype=torch.float64).log()
    return row.expand(rows, 2).clone().requires_grad_()


def pull(strategy, logits: torch.Tensor, targets: np.ndarray = NINE_TO_ONE, smoothing: float = 0.0) -> float:
    """The gradient on the rare class's logit, added up over the samples; 0 where the loss is content."""
    strategy.loss(logits, torch.from_numpy(targets), smoothing).backward()
    return float(logits.grad[:, 1].sum())


@pytest.mark.parametrize(
    "name, options, content",
    [
        ("none", {}, 0.1),
        ("class-weighted", {}, 0.5),
        # Effective numbers (1 - 0.9^n) / 0.1 of 9.999 and 6.513: odds of 1 to 9, times 1.535.
        ("effective-number", {"beta": 0.9}, 0.1457),
        ("effective-number", {"beta": 0.0}, 0.1),
        ("effective-number", {"beta": 0.9999999}, 0.5),
        ("logit-adjustment", {"tau": 1.0}, 0.5),
        # Half of the log prior is taken away: odds of the root of 1 to 9.
        ("logit-adjustment", {"tau": 0.5}, 0.25),
        ("logit-adjustment", {"tau": 0.0}, 0.1),
    ],
)
def test_a_network_that_cannot_see_is_content_with_the_prior_that_the_strategy_makes(name, options, content):
    strategy = IMBALANCE[name](BINARY, NINE_TO_ONE, **options)
    assert pull(strategy, constant_logits(content)) == pytest.approx(0, abs=1e-4)
    assert pull(strategy, constant_logits(content + 0.05)) > 1e-3
    assert pull(strategy, constant_logits(content - 0.05)) < -1e-3


def test_no_correction_is_cross_entropy_to_the_bit():
    logits, targets = make_logits(100, 2), torch.from_numpy(NINE_TO_ONE)
    assert torch.equal(
        IMBALANCE["none"](BINARY, NINE_TO_ONE).loss(logits, targets),
        F.cross_entropy(logits, targets, reduction="none").sum() / 100,
    )


def test_class_weights_give_both_classes_the_same_say():
    strategy = IMBALANCE["class-weighted"](BINARY, NINE_TO_ONE)
    assert torch.allclose(strategy.class_weights * torch.tensor([90.0, 10.0]), torch.tensor([50.0, 50.0]))


@pytest.mark.parametrize("name", ["effective-number", "class-balanced-focal"])
def test_effective_numbers_weigh_as_published(name):
    weights = IMBALANCE[name](BINARY, NINE_TO_ONE, beta=0.9).class_weights
    assert float(weights[1] / weights[0]) == pytest.approx((1 - 0.9**90) / (1 - 0.9**10), rel=1e-6)
    assert float(weights[1] / weights[0]) == pytest.approx(1.5352, abs=1e-4)


def test_balanced_sampler_draws_each_class_equally_often():
    weights = IMBALANCE["balanced-sampler"](BINARY, NINE_TO_ONE).sampling_weights
    assert weights.sum() == pytest.approx(1)
    assert weights[NINE_TO_ONE == 1].sum() == pytest.approx(0.5)


def test_processes_that_share_one_drawn_order_draw_what_one_process_does():
    """The order is drawn from (seed, stage, epoch) and weights; each process takes its part of a batch."""

    def draw_batches() -> list[np.ndarray]:
        weights = IMBALANCE["balanced-sampler"](BINARY, NINE_TO_ONE).sampling_weights
        return Order(seed=7, samples=100, weights=weights, per_step=16).draw(stage=0, epoch=3)

    alone, of_ranks = draw_batches(), [[batch[rank::2] for batch in draw_batches()] for rank in range(2)]
    for whole, *parts in zip(alone, *of_ranks, strict=True):
        assert sorted(np.concatenate(parts)) == sorted(whole)
    for batches in of_ranks:  # some 50 draws each, half of them rare: 25, with a deviation of 3.5
        assert 15 <= NINE_TO_ONE[np.concatenate(batches)].sum() <= 35
    assert not np.array_equal(of_ranks[0][0], of_ranks[1][0])


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_loss_discounts_what_is_already_right(gamma):
    target = torch.tensor([0])
    focal, plain = (
        IMBALANCE["focal"](BINARY, NINE_TO_ONE, gamma=gamma),
        IMBALANCE["none"](BINARY, NINE_TO_ONE),
    )
    for margin in (4.0, 0.1, -2.0):
        logits = torch.tensor([[margin, 0.0]])
        p = 1 / (1 + math.exp(-margin))
        discount = float(focal.loss(logits, target) / plain.loss(logits, target))
        assert discount == pytest.approx((1 - p) ** gamma, rel=1e-4)


def test_focal_loss_has_a_gradient_however_sure_the_network():
    logits = torch.tensor([[0.0, 60.0], [300.0, 0.0], [0.0, 300.0]], requires_grad=True)
    IMBALANCE["focal"](BINARY, NINE_TO_ONE, gamma=0.5).loss(logits, torch.tensor([1, 0, 0])).backward()
    assert torch.isfinite(logits.grad).all() and logits.grad[2, 0] < 0


def test_class_balanced_focal_is_effective_number_times_focal():
    logits, targets = make_logits(100, 2), torch.from_numpy(NINE_TO_ONE)
    weights = IMBALANCE["effective-number"](BINARY, NINE_TO_ONE, beta=0.99).class_weights[targets]
    p = logits.softmax(dim=1)[torch.arange(100), targets]
    expected = (weights * (1 - p) ** 3 * -p.log()).sum() / weights.sum()
    both = IMBALANCE["class-balanced-focal"](BINARY, NINE_TO_ONE, beta=0.99, gamma=3)
    assert float(both.loss(logits, targets)) == pytest.approx(float(expected), rel=1e-5)


def test_logit_adjustment_costs_the_rare_class_its_prior():
    strategy = IMBALANCE["logit-adjustment"](BINARY, NINE_TO_ONE)
    losses = [float(strategy.loss(torch.zeros(1, 2), torch.tensor([label]))) for label in (0, 1)]
    assert losses == pytest.approx([-math.log(0.9), -math.log(0.1)])


@pytest.mark.parametrize(
    "name, weights", [("class-weighted", (9, 1)), ("effective-number", ((1 - 0.5**9) / (1 - 0.5), 1))]
)
def test_findings_are_weighed_by_what_is_labelled_of_each(name, weights):
    options = {"beta": 0.5} if name == "effective-number" else {}
    strategy = IMBALANCE[name](MULTILABEL, TWO_FINDINGS, **options)
    assert strategy.class_weights.tolist() == pytest.approx(weights)


def test_positives_of_a_finding_together_count_as_much_as_its_negatives():
    strategy, targets = IMBALANCE["class-weighted"](MULTILABEL, TWO_FINDINGS), torch.from_numpy(TWO_FINDINGS)
    _, normaliser = strategy.loss_parts(torch.zeros(10, 2), targets)
    assert normaliser == (9 * 1 + 1 * 9) + (2 * 1 + 2 * 1)


def test_findings_are_adjusted_by_the_odds_of_what_is_labelled_of_each():
    strategy = IMBALANCE["logit-adjustment"](MULTILABEL, TWO_FINDINGS)
    logits = torch.zeros(1, 2)
    found = strategy.loss_parts(logits, torch.tensor([[1.0, float("nan")]]))[0]
    assert float(found) == pytest.approx(-math.log(1 / 10))  # one in ten has finding a
    found = strategy.loss_parts(logits, torch.tensor([[float("nan"), 1.0]]))[0]
    assert float(found) == pytest.approx(-math.log(1 / 2))


def test_findings_are_drawn_by_the_rarest_and_what_is_not_labelled_never():
    targets = np.array([[1, 0], *[[0, 1]] * 3, *[[0, np.nan]] * 5, [np.nan, np.nan]], dtype=np.float32)
    weights = IMBALANCE["balanced-sampler"](MULTILABEL, targets).sampling_weights
    assert weights == pytest.approx([1 / 3, *[1 / 9] * 3, *[1 / 15] * 5, 0])
    assert IMBALANCE["balanced-sampler"](MULTILABEL, targets[-1:]).sampling_weights is None


@every_strategy
def test_unlabelled_classes_have_no_say(name):
    targets = np.array([[1.0, np.nan], [0.0, 1.0], [0.0, 0.0]], dtype=np.float32)
    strategy = IMBALANCE[name](MULTILABEL, targets)
    for smoothing in (0.0, 0.1):
        logits = torch.zeros(3, 2, requires_grad=True)
        strategy.loss(logits, torch.from_numpy(targets), smoothing).backward()
        assert logits.grad[0, 1] == 0 and logits.grad[0, 0] != 0


@every_strategy
def test_nothing_labelled_is_no_loss_and_no_gradient(name):
    strategy = IMBALANCE[name](MULTILABEL, TWO_FINDINGS)
    logits, nothing = torch.zeros(3, 2, requires_grad=True), torch.full((3, 2), float("nan"))
    loss = strategy.loss(logits, nothing)
    loss.backward()
    assert loss == 0 and not logits.grad.any()
    assert strategy.loss_parts(logits, nothing)[1] == 0


@every_kind
@every_strategy
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_parts_of_processes_add_up_to_the_loss_of_one(name, kind, smoothing):
    task, targets = TARGETS[kind]
    strategy, labels = IMBALANCE[name](task, targets), torch.from_numpy(targets)
    logits = make_logits(len(targets), len(task.classes))
    parts = [strategy.loss_parts(logits[rank::3], labels[rank::3], smoothing=smoothing) for rank in range(3)]
    total, normaliser = (torch.stack(column).sum() for column in zip(*parts, strict=True))
    assert float(total / normaliser) == pytest.approx(float(strategy.loss(logits, labels, smoothing)))


@every_strategy
def test_a_class_that_training_lacks_leaves_the_loss_finite(name):
    strategy = IMBALANCE[name](MULTICLASS, np.array([0] * 9 + [1]))
    logits = make_logits(3, 3).requires_grad_()
    strategy.loss(logits, torch.tensor([0, 1, 2]), smoothing=0.1).backward()
    assert torch.isfinite(logits.grad).all()


@every_kind
def test_plain_smoothing_is_what_torch_calls_so(kind):
    task, targets = TARGETS[kind]
    logits, labels = make_logits(len(targets), len(task.classes)), torch.from_numpy(targets)
    if kind == "multilabel":
        known = ~torch.isnan(labels)
        softened = labels[known] * 0.8 + 0.1
        expected = F.binary_cross_entropy_with_logits(logits[known], softened)
    else:
        expected = F.cross_entropy(logits, labels, label_smoothing=0.2)
    found = IMBALANCE["none"](task, targets).loss(logits, labels, smoothing=0.2)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_smoothing_does_not_turn_class_weights_against_the_common_class():
    """A common sample with a tenth of a doubt is content at 0.05 for the rare class, whatever its weight."""
    one = np.array([0])
    rare_weight_is_49 = IMBALANCE["class-weighted"](BINARY, np.array([0] * 98 + [1] * 2))
    logits = constant_logits(0.05, rows=1)
    assert pull(rare_weight_is_49, logits, one, smoothing=0.1) == pytest.approx(0, abs=1e-6)
    weights = rare_weight_is_49.class_weights.double()
    as_torch = constant_logits(0.05, rows=1)
    F.cross_entropy(as_torch, torch.from_numpy(one), weights, label_smoothing=0.1).backward()
    assert as_torch.grad[0, 1] < -1  # torch pulls it over to the rare class


@pytest.mark.parametrize("name", ["focal", "class-balanced-focal"])
def test_smoothing_still_costs_those_who_are_too_sure_under_focal_loss(name):
    strategy = IMBALANCE[name](BINARY, NINE_TO_ONE)
    sure, surer = (strategy.loss(torch.tensor([[m, 0.0]]), torch.tensor([0]), 0.1) for m in (4.0, 30.0))
    assert surer > 2 * sure


def test_smoothing_is_of_the_label_and_leaves_the_prior_adjusted():
    strategy = IMBALANCE["logit-adjustment"](BINARY, NINE_TO_ONE)
    logits, labels = make_logits(100, 2), torch.from_numpy(NINE_TO_ONE)
    prior = torch.tensor([0.9, 0.1]).log()
    expected = F.cross_entropy(logits + prior, labels, label_smoothing=0.2)
    assert float(strategy.loss(logits, labels, 0.2)) == pytest.approx(float(expected), rel=1e-5)


class Section(BaseModel):
    imbalance: ImbalanceConfig


def test_a_plain_name_is_a_strategy_and_stays_one():
    section = Section.model_validate({"imbalance": "focal"})
    assert section.model_dump() == {"imbalance": "focal"} and str(section.imbalance) == "focal"
    assert IMBALANCE[section.imbalance.name](BINARY, NINE_TO_ONE, **section.imbalance.options).gamma == 2


def test_options_reach_the_strategy_and_come_back_from_the_recipe():
    section = Section.model_validate({"imbalance": {"name": "class-balanced-focal", "gamma": 1, "beta": 0}})
    assert Section.model_validate(section.model_dump(mode="json")) == section
    strategy = IMBALANCE[section.imbalance.name](BINARY, NINE_TO_ONE, **section.imbalance.options)
    assert strategy.gamma == 1 and strategy.class_weights.tolist() == [1, 1]
    assert str(section.imbalance) == "class-balanced-focal, gamma 1, beta 0"


@pytest.mark.parametrize(
    "value, reason",
    [
        ({"name": "focal", "tau": 1}, "tau is no option of focal"),
        ({"name": "none", "gamma": 2}, "gamma is no option of none"),
        ({"name": "effective-number", "beta": 1}, "less than 1"),
        ({"name": "focal", "gamma": -1}, "greater than or equal to 0"),
        ({"name": "focal", "gamma": float("nan")}, "less than or equal to 100"),
        ({"name": "focal", "alpha": 0.25}, "Extra inputs"),
        ({"gamma": 2}, "Field required"),
        (3, "valid string"),
    ],
)
def test_an_option_that_means_nothing_is_refused(value, reason):
    with pytest.raises(ValidationError, match=reason):
        Section.model_validate({"imbalance": value})
