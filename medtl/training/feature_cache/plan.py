"""Which stages keep their frozen prefix's activations, and which compute them again in each epoch.

The plan is reckoned from shapes and a few nominal speeds, never from a clock: a run that is resumed, and one
that repeats it, decides the same. What was decided is plain data, and a run keeps it beside its weights.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from medtl.models.classifier import Classifier
from medtl.models.costs import StepCost, step_costs
from medtl.training.schedule import Stage, entry_step

BACKWARD = 2  # a backward pass has two products for each one of the forward pass: by input and by weight


@dataclass(frozen=True)
class Speed:
    """What a device does in a second: multiply-adds of products, and bytes that operations write."""

    multiply_adds: float
    traffic_bytes: float


# Nominal, never measured at run time. `cpu` is one core as benchmarks/feature_cache.py fits it, to one digit:
# the steps of EfficientNet-Lite0, ResNet-18, DenseNet-121 and ConvNeXt are within a factor of two of it.
# `cuda` is two orders above, as data sheets have it, and not measured. Such errors move choices nearly even.
SPEEDS = {"cpu": Speed(5e10, 3e9), "cuda": Speed(5e12, 3e11)}
STORED_BYTES = 1e9  # a second, written to a solid-state disk or read from it into a batch
AUGMENTED_VALUES = 1e7  # a second, by MONAI on one core: 2.6 ms for 160 x 160, 15 ms for 16 x 96 x 96

Wanted = dict[int, int]


class CachePlan(BaseModel):
    """What one stage does about its frozen prefix, and why, in one line.

    step: where the stage enters the chain. views: how many views of a sample it reads.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    views: int
    cached: bool
    reason: str

    def uncached(self, reason: str) -> "CachePlan":
        """Return the plan of a stage that would be cached and cannot be."""
        return self.model_copy(update={"cached": False, "reason": reason})


def plan_cache(
    classifier: Classifier,
    stages: Sequence[Stage],
    image: Tensor | Sequence[int],
    samples: int,
    budget_bytes: float,
    *,
    held_out: int = 0,
    epochs: Sequence[int] | None = None,
    recorded: Sequence[CachePlan] = (),
) -> list[CachePlan]:
    """Decide for each stage whether its prefix is computed once and kept, or computed in each epoch.

    image: one prepared image (1, C, *size), or its shape. samples are trained on, in several views; held_out
    ones are judged after each epoch. epochs: how many a stage may take, by default what it says. The stores
    of all stages together keep to budget_bytes. recorded: what the run decided before, which then stands.
    """
    if recorded:
        return list(recorded)
    reckoning = _reckon(classifier, stages, image, samples, held_out, epochs)
    kept = _choose(reckoning, budget_bytes)
    return [
        CachePlan(
            step=use.step,
            views=use.views,
            cached=number in kept,
            reason=_explain(reckoning, kept, number, budget_bytes),
        )
        for number, use in enumerate(reckoning.uses)
    ]


def shared_views(plans: Sequence[CachePlan], number: int) -> Wanted:
    """Return what the pass of stage `number` computes: for each step that is entered, how many views.

    Groups that this stage freezes have been frozen in every stage before it, if the schedule only thaws. Then
    all later stages start from the same pretrained prefix, and one pass over the images serves all.
    """
    cached = [index for index, plan in enumerate(plans) if plan.cached]
    return _wanted([(plan.step, plan.views) for plan in plans], _sharing(plans, cached, number))


def _sharing(entries: Sequence["CachePlan | _Use"], cached: Sequence[int], number: int) -> list[int]:
    """Return the cached stages from `number` on whose prefix no stage from `number` to them trains."""
    lowest = list(accumulate((entry.step for entry in entries[number:]), min))
    return [index for index in cached if index >= number and entries[index].step <= lowest[index - number]]


def _wanted(entries: Sequence[tuple[int, int]], stages: Sequence[int]) -> Wanted:
    wanted: Wanted = {}
    for index in stages:
        step, views = entries[index]
        wanted[step] = max(views, wanted.get(step, 0))
    return wanted


@dataclass(frozen=True)
class _Use:
    """How a stage uses its prefix: it enters at `step`, and reads `views` views in `epochs` epochs."""

    step: int
    epochs: int
    views: int


@dataclass(frozen=True, eq=False)
class _Reckoning:
    """Nominal seconds and bytes of a schedule, whichever of its stages are cached.

    prefix: seconds of one image up to each step; sizes: bytes of its activations there; augment: seconds of
    one augmented view.
    """

    uses: tuple[_Use, ...]
    costs: tuple[StepCost, ...]
    prefix: tuple[float, ...]
    sizes: tuple[int, ...]
    augment: float
    samples: int
    held_out: int

    def passes(self, cached: frozenset[int]) -> Iterator[tuple[int, Wanted]]:
        """Yield the stage of each pass over the images and what it computes; what is there stays."""
        served: set[int] = set()
        for number in sorted(cached):
            if number not in served:
                sharing = [i for i in _sharing(self.uses, sorted(cached), number) if i not in served]
                served.update(sharing)
                yield number, _wanted([(use.step, use.views) for use in self.uses], sharing)

    def bytes(self, cached: frozenset[int]) -> int:
        """Return the size of all stores together."""
        return sum(
            self.sizes[step] * (views * self.samples + self.held_out)
            for _, wanted in self.passes(cached)
            for step, views in wanted.items()
        )

    def seconds(self, cached: frozenset[int]) -> float:
        """Return what all prefixes cost: computed in each epoch, or computed once, written and read."""
        again = sum(self.again(use) for number, use in enumerate(self.uses) if number not in cached)
        once = sum(self._pass_seconds(wanted) for _, wanted in self.passes(cached))
        read = sum(self._read_seconds(self.uses[number]) for number in sorted(cached))
        return again + once + self.bytes(cached) / STORED_BYTES + read

    def again(self, use: _Use) -> float:
        """Return the seconds of computing a stage's prefix in each epoch."""
        augmented = use.epochs - -(-use.epochs // use.views)  # view 0 is the image itself
        images = self.samples + self.held_out
        return use.epochs * images * self.prefix[use.step] + augmented * self.samples * self.augment

    def rest(self, use: _Use) -> float:
        """Return the seconds of what a stage trains, which no cache saves."""
        above = self.prefix[-1] - self.prefix[use.step]
        return use.epochs * above * ((1 + BACKWARD) * self.samples + self.held_out)

    def _pass_seconds(self, wanted: Wanted) -> float:
        total = self.held_out * self.prefix[max(wanted)]
        for view in range(max(wanted.values())):
            deepest = max(step for step, views in wanted.items() if view < views)
            total += self.samples * (self.prefix[deepest] + (self.augment if view else 0.0))
        return total

    def _read_seconds(self, use: _Use) -> float:
        return use.epochs * (self.samples + self.held_out) * self.sizes[use.step] / STORED_BYTES


def _reckon(
    classifier: Classifier,
    stages: Sequence[Stage],
    image: Tensor | Sequence[int],
    samples: int,
    held_out: int,
    epochs: Sequence[int] | None,
) -> _Reckoning:
    shape = tuple(image.shape if isinstance(image, Tensor) else image)
    costs = step_costs(classifier, shape)
    values = float(torch.Size(shape[1:]).numel())
    taken = epochs or [stage.epochs for stage in stages]
    return _Reckoning(
        tuple(
            _Use(entry_step(classifier, stage), count, min(stage.views, count))
            for stage, count in zip(stages, taken, strict=True)
        ),
        costs,
        tuple(accumulate((_seconds(cost, classifier) for cost in costs), initial=0.0)),
        (0, *(cost.output_bytes for cost in costs)),
        values / AUGMENTED_VALUES,
        samples,
        held_out,
    )


def _seconds(cost: StepCost, classifier: Classifier) -> float:
    """Return the nominal seconds of one step for one image: products, and what memory bounds."""
    speed = SPEEDS.get(next(classifier.parameters()).device.type, SPEEDS["cpu"])
    return cost.multiply_adds / speed.multiply_adds + cost.traffic_bytes / speed.traffic_bytes


def _choose(reckoning: _Reckoning, budget: float) -> frozenset[int]:
    """Return the stages to cache: from all of them, drop one after another while that saves, or must be.

    Where the budget forces, the stage goes that saves the least for each byte. Backwards, since stages that
    share a pass may be worth it together and not alone.
    """
    kept = frozenset(number for number, use in enumerate(reckoning.uses) if use.step > 0)
    while kept:
        seconds, size = reckoning.seconds(kept), reckoning.bytes(kept)
        fewer = [kept - {number} for number in sorted(kept)]
        best = min(fewer, key=reckoning.seconds)
        if reckoning.seconds(best) <= seconds:
            kept = best
        elif size > budget:
            kept = min(fewer, key=lambda rest: _lost_a_byte(reckoning, rest, seconds, size))
        else:
            break
    return kept


def _lost_a_byte(reckoning: _Reckoning, rest: frozenset[int], seconds: float, size: int) -> float:
    return (reckoning.seconds(rest) - seconds) / max(1, size - reckoning.bytes(rest))


def _explain(reckoning: _Reckoning, kept: frozenset[int], number: int, budget: float) -> str:
    use = reckoning.uses[number]
    if use.step == 0:
        return "nothing is frozen"
    if budget <= 0:
        return "fit.cache_gb is 0"
    size = reckoning.bytes(kept | {number}) - reckoning.bytes(kept - {number})
    saved = reckoning.seconds(kept - {number}) - reckoning.seconds(kept | {number})
    if number in kept:
        has_a_pass = any(number == first for first, _ in reckoning.passes(kept))
        return _explain_kept(reckoning, use, size, saved, "" if has_a_pass else "an earlier stage's ")
    if saved > 0:
        left = budget - reckoning.bytes(kept)
        return f"{in_bytes(size)} of activations exceed the {in_bytes(left)} left of fit.cache_gb"
    if use.epochs <= use.views:
        return f"{use.epochs} epochs are no more than {use.views} views: nothing would be read twice"
    work = sum(cost.multiply_adds for cost in reckoning.costs[: use.step]) / 1e6
    return f"{work:.3g} million multiply-adds an image cost less than reading {in_bytes(size)} in each epoch"


def _explain_kept(reckoning: _Reckoning, use: _Use, size: int, saved: float, whose: str) -> str:
    passes = "1 pass" if use.views == 1 else f"{use.views} passes"
    share = saved / (reckoning.again(use) + reckoning.rest(use))
    stored = in_bytes(size) if size else "a store that an earlier stage has"
    return f"{whose}{passes} in place of {use.epochs}, {stored}; saves about {share:.0%} of the stage"


def in_bytes(size: float) -> str:
    """Write a number of bytes as people do: 940 kB, 12 MB, 3.2 GB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.2g} {unit}" if size < 10 * scale else f"{size / scale:.0f} {unit}"
    return f"{size / 1e3:.0f} kB"
