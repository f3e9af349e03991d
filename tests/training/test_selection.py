"""The best epoch, and the patience that waits for one."""

import math
from itertools import pairwise

import pytest

from medtl.training.checkpoint import Position
from medtl.training.trainer import after_epoch


def follow(epochs, select="auroc", min_delta=0.0):
    """Return the positions after epochs of (loss, AUROC)."""
    positions = [Position()]
    for loss, score in epochs:
        positions.append(after_epoch(positions[-1], loss, score, select, min_delta))
    return positions


def better(epochs, **options):
    positions = follow(epochs, **options)
    return [after.best != before.best for before, after in pairwise(positions)]


def test_by_auroc_the_loss_breaks_ties():
    assert better([(0.9, 0.8), (0.5, 0.7), (0.8, 0.8), (0.8, 0.8)]) == [True, False, True, False]


def test_by_loss_the_auroc_breaks_ties():
    epochs = [(0.9, 0.9), (0.8, 0.5), (0.8, 0.6), (0.81, 1.0)]
    assert better(epochs, select="loss") == [True, True, True, False]


def test_an_undefined_auroc_is_below_every_other():
    assert better([(0.5, math.nan), (0.9, 0.0), (0.4, math.nan)]) == [True, True, False]


def test_small_steps_count_once_they_add_up():
    """Each epoch is the best, and patience is reset when they have come by more than min_delta in all."""
    positions = follow([(0.5, 0.80), (0.5, 0.84), (0.5, 0.88), (0.5, 0.92)], min_delta=0.1)
    assert [position.epochs_without_improvement for position in positions[1:]] == [0, 1, 2, 0]
    assert [position.best[0] for position in positions[1:]] == [0.80, 0.84, 0.88, 0.92]


def test_what_belongs_to_an_epoch_ends_with_it():
    position = Position(stage=1, epoch=2, step=40, done=7, loss_sum=3.5, seconds=9.0)
    after = after_epoch(position, 0.5, 0.9, "auroc", 0.0)
    assert (after.epoch, after.done, after.loss_sum, after.seconds) == (3, 0, 0.0, 0.0)
    assert (after.stage, after.step) == (1, 40)


@pytest.mark.parametrize("select", ["auroc", "loss"])
def test_patience_counts_epochs_that_are_no_better(select):
    epochs = [(0.5, 0.9), (0.6, 0.8), (0.7, 0.7), (0.4, 0.95)]
    assert [position.epochs_without_improvement for position in follow(epochs, select=select)[1:]] == [
        0,
        1,
        2,
        0,
    ]
