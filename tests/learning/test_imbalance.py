"""Each strategy's effective class weights on a set of nine to one."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medtl.imaging.manifest import Task
from medtl.learning.imbalance import IMBALANCE

BINARY = Task("binary", ("no", "yes"))
MULTILABEL = Task("multilabel", ("a", "b"))
NINE_TO_ONE = np.array([0] * 90 + [1] * 10)


def test_no_correction_is_cross_entropy():
    logits, targets = (
        torch.randn(100, 2, generator=torch.Generator().manual_seed(0)),
        torch.from_numpy(NINE_TO_ONE),
    )
    loss = IMBALANCE["none"](BINARY, NINE_TO_ONE).loss(logits, targets)
    assert torch.allclose(loss, F.cross_entropy(logits, targets))


def test_class_weights_give_both_classes_the_same_say():
    strategy = IMBALANCE["class-weighted"](BINARY, NINE_TO_ONE)
    assert torch.allclose(strategy.class_weights * torch.tensor([90.0, 10.0]), torch.tensor([50.0, 50.0]))


def test_balanced_sampler_draws_each_class_equally_often():
    weights = IMBALANCE["balanced-sampler"](BINARY, NINE_TO_ONE).sampling_weights
    assert weights.sum() == pytest.approx(1)
    assert weights[NINE_TO_ONE == 1].sum() == pytest.approx(0.5)


def test_focal_loss_discounts_what_is_already_right():
    sure, unsure = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.1, 0.0]])
    target = torch.tensor([0])
    focal, plain = IMBALANCE["focal"](BINARY, NINE_TO_ONE), IMBALANCE["none"](BINARY, NINE_TO_ONE)
    discount = [float(focal.loss(x, target) / plain.loss(x, target)) for x in (sure, unsure)]
    for x, found in zip((sure, unsure), discount, strict=True):
        p = float(x.softmax(1)[0, 0])
        assert found == pytest.approx((1 - p) ** 2, rel=1e-4)


@pytest.mark.parametrize("name", list(IMBALANCE))
def test_unlabelled_classes_have_no_say(name):
    targets = np.array([[1.0, np.nan], [0.0, 1.0], [0.0, 0.0]], dtype=np.float32)
    strategy = IMBALANCE[name](MULTILABEL, targets)
    logits = torch.zeros(3, 2, requires_grad=True)
    strategy.loss(logits, torch.from_numpy(targets)).backward()
    assert logits.grad[0, 1] == 0 and logits.grad[0, 0] != 0
