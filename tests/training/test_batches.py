"""The order of samples is a pure function of (seed, stage, epoch), and nobody is lost on the way."""

import numpy as np
import pytest
import torch

from medtl.training.batches import Loader, Order, split_evenly, split_step


def read(indices):
    return torch.from_numpy(indices).float()


@pytest.mark.parametrize(("samples", "per_step", "steps"), [(16, 8, 2), (20, 8, 2), (21, 8, 3), (3, 8, 1)])
def test_an_epoch_takes_each_sample_once_in_steps_of_nearly_one_size(samples, per_step, steps):
    order = Order(0, samples, None, per_step)
    drawn = order.draw(0, 0)
    assert len(drawn) == order.steps == steps
    assert sorted(np.concatenate(drawn)) == list(range(samples))
    assert max(map(len, drawn)) - min(map(len, drawn)) <= 1


def test_the_order_knows_seed_stage_and_epoch_and_nothing_else():
    order = Order(0, 50, None, 8)
    first = order.draw(1, 2)
    order.draw(3, 3)
    np.random.default_rng().random()
    again = Order(0, 50, None, 8).draw(1, 2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (Order(1, 50, None, 8).draw(1, 2), order.draw(0, 2), order.draw(1, 3)):
        assert not np.array_equal(np.concatenate(first), np.concatenate(other))


def test_weights_are_chances_of_drawing_with_replacement():
    weights = np.array([0.0, 0.25, 0.75])
    drawn = np.concatenate([np.concatenate(Order(0, 3, weights, 2).draw(0, e)) for e in range(500)])
    assert np.bincount(drawn, minlength=3) / len(drawn) == pytest.approx(weights, abs=0.04)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_parts_of_a_step_are_read_in_order_and_none_is_empty(workers):
    steps = [np.array([5, 3, 9]), np.array([1])]
    loaded = list(Loader(read, np.arange(10) * 10, workers).steps(steps, 2))
    found = [[(x.tolist(), targets.tolist()) for x, targets in parts] for parts in loaded]
    assert found == [[([5, 3], [50, 30]), ([9], [90])], [([1], [10])]]


def test_splits_lose_nothing():
    assert [len(part) for part in split_step(np.arange(7), 3)] == [3, 2, 2]
    assert [part.tolist() for part in split_evenly(5, 2)] == [[0, 1], [2, 3], [4]]
    assert [part.tolist() for part in split_evenly(3, 1, 2)] == [[0, 1], [2]]


@pytest.mark.parametrize("shares", range(1, 6))
def test_processes_get_as_many_batches_each_and_none_is_empty(shares: int) -> None:
    for count in range(shares, 30):
        for largest in range(1, 8):
            batches = split_evenly(count, largest, shares)
            assert len(batches) % shares == 0 and min(map(len, batches)) > 0
            assert max(map(len, batches)) <= max(largest, 2 if shares > 1 else 1)
            assert np.array_equal(np.concatenate(batches), np.arange(count))
