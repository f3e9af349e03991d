"""The chain of steps, its heads, and what freezing it means."""

import copy

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from medtl.data.task import Task
from medtl.models.classifier import SliceAttentionHead


@pytest.mark.parametrize(("backbone", "size"), [("tiny", (32, 32)), ("tiny3d", (8, 32, 32))])
def test_every_entry_gives_the_same_logits(make_classifier, backbone, size):
    classifier = make_classifier(backbone=backbone).eval()
    x = torch.rand(2, 1, *size)
    whole = classifier(x)
    for step in range(classifier.head_step + 1):
        assert torch.equal(classifier(classifier.run(x, 0, step), start=step), whole)


def test_probabilities_follow_the_kind_of_task(make_classifier):
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    multiclass = make_classifier(Task("multiclass", ("a", "b", "c")))
    multilabel = make_classifier(Task("multilabel", ("a", "b", "c")))
    assert multiclass.probabilities(logits).sum() == pytest.approx(1)
    assert torch.equal(multilabel.probabilities(logits), logits.sigmoid())


def test_frozen_dropout_norm_and_buffers_are_inert_even_in_training_mode(make_classifier):
    classifier = make_classifier(dropout=0.0)
    classifier.freeze(3, batch_norm_follows_data=True)
    classifier.train()
    before = copy.deepcopy(classifier.backbone.state_dict())
    x = torch.rand(4, 1, 32, 32)
    assert torch.equal(classifier(x), classifier(x))
    after = classifier.backbone.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_slice_attention_sums_to_one_and_knows_the_place_of_a_slice():
    torch.manual_seed(0)
    head = SliceAttentionHead(16, 2, dropout=0.0)
    same = torch.ones(1, 16, 5)
    weights = head.attention(same).detach()
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    assert weights.std() > 0, "equal slices in different places get different weights"


def test_slice_attention_takes_any_depth():
    head = SliceAttentionHead(16, 3, dropout=0.0)
    assert head(torch.rand(2, 16, 4)).shape == head(torch.rand(2, 16, 31)).shape == (2, 3)


def test_every_kind_of_norm_dropout_and_drop_path_is_inert_where_it_is_frozen(make_classifier):
    """Training mode or not, twice the same, and no buffer moves: instance norm with statistics too."""
    classifier = make_classifier()
    classifier.backbone.groups["middle"] = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        nn.GroupNorm(2, 8),
        DropPath(0.5),
        nn.Dropout2d(0.5),
        nn.LayerNorm([8, 8, 8]),
        nn.RReLU(),
    )
    classifier.freeze(2, batch_norm_follows_data=True)
    classifier.train()
    before = copy.deepcopy(classifier.state_dict())
    x = torch.rand(4, 1, 32, 32)
    in_training = [classifier.run(x, 0, 2) for _ in range(2)]
    assert torch.equal(*in_training)
    assert torch.equal(classifier.eval().run(x, 0, 2), in_training[0])
    assert all(torch.equal(before[name], x) for name, x in classifier.state_dict().items())


def test_thawed_norms_hold_their_statistics_whatever_their_kind(make_classifier):
    classifier = make_classifier()
    classifier.backbone.groups["top"][1] = nn.InstanceNorm2d(8, track_running_stats=True)
    for follows in (False, True):
        classifier.freeze(0, batch_norm_follows_data=follows)
        before = classifier.backbone.groups["top"][1].running_mean.clone()
        classifier.train()(torch.rand(4, 1, 32, 32))
        assert torch.equal(before, classifier.backbone.groups["top"][1].running_mean) != follows
