"""Which samples each optimizer step of an epoch takes, and how they are read.

The order is a pure function of (seed, stage, epoch): it depends neither on who reads, nor on what was drawn
before. A step's samples go through the network in parts: those of gradient accumulation.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medtl.core.ids import make_generator

Indices = NDArray[np.int64]
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Order:
    """How the samples of each epoch are drawn.

    samples: how many there are; weights: their chances where they are drawn with replacement; per_step: how
    many make an optimizer step, more or less: steps differ by one sample at most.
    """

    seed: int
    samples: int
    weights: NDArray[np.float64] | None
    per_step: int

    @property
    def steps(self) -> int:
        """The number of steps of an epoch."""
        return max(1, round(self.samples / self.per_step))

    def draw(self, stage: int, epoch: int) -> list[Indices]:
        """Return the samples of each step of an epoch."""
        generator = make_generator(self.seed, "order", stage, epoch)
        if self.weights is None:
            order = generator.permutation(self.samples)
        else:
            order = generator.choice(self.samples, size=self.samples, replace=True, p=self.weights)
        return np.array_split(order, self.steps)


@dataclass(frozen=True, eq=False)
class BatchReader(Dataset[Batch]):
    """Read whole batches: item i is batch number i."""

    read: Callable[[Indices], Tensor]
    targets: NDArray
    batches: Sequence[Indices]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Batch:
        indices = self.batches[number]
        return self.read(indices), torch.from_numpy(self.targets[indices])


@dataclass(frozen=True, eq=False)
class Loader:
    """Reads samples and their targets in batches.

    workers: the processes that read; 0 reads in this one. pinned: into memory from which a GPU copies.
    """

    read: Callable[[Indices], Tensor]
    targets: NDArray
    workers: int = 0
    pinned: bool = False

    def batches(self, batches: Sequence[Indices]) -> Iterator[Batch]:
        """Yield batches in order."""
        reader = BatchReader(self.read, self.targets, batches)
        yield from DataLoader(reader, batch_size=None, num_workers=self.workers, pin_memory=self.pinned)

    def steps(self, steps: Sequence[Indices], parts: int) -> Iterator[list[Batch]]:
        """Yield the batches of each step: its samples in at most `parts` parts, none of them empty."""
        split = [split_step(step, parts) for step in steps]
        batches = self.batches([part for step in split for part in step])
        for step in split:
            yield list(islice(batches, len(step)))


def split_step(step: Indices, parts: int) -> list[Indices]:
    """Return a step's samples in parts whose sizes differ by one at most."""
    return [part for part in np.array_split(step, parts) if len(part)]


def split_evenly(count: int, largest: int, shares: int = 1) -> list[Indices]:
    """Return 0 to count - 1 in order, in batches of at most `largest` whose sizes differ by one at most.

    Their number is a multiple of `shares`, and none is empty: where samples would not go round in batches of
    one, some have two. count: at least `shares`.
    """
    enough = shares * -(-count // (shares * largest))
    return np.array_split(np.arange(count), min(enough, count - count % shares))
