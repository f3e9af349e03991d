"""STAGES + DISK BUDGET -> PLAN: which stages cache their frozen prefix's activations.

A stage is cached where it freezes a prefix, has more epochs than views, and the disk budget holds its
activations. Sizes are counted from shapes: a run that is resumed, and one that repeats it, decide the same.
The plan is plain data, and a run saves it beside its weights.
"""

from collections.abc import Sequence
from itertools import accumulate

from pydantic import BaseModel

from medtl.models.classifier import Classifier
from medtl.models.costs import step_costs
from medtl.training.schedule import Stage, entry_step

StepViews = dict[int, int]  # step -> number of views


class CachePlan(BaseModel, extra="forbid", frozen=True):
    """What one stage does about its frozen prefix, and why, in one line.

    step: where the stage enters the chain. views: how many views of a sample it reads.
    """

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
    image: Sequence[int],
    samples: int,
    budget_bytes: float,
    *,
    held_out: int = 0,
    epochs: Sequence[int] | None = None,
) -> list[CachePlan]:
    """Decide for each stage whether its prefix is computed once and stored, or computed in each epoch.

    image: the shape of one prepared image, (1, C, *size). samples are trained on, in several views; held_out
    ones are validated on after each epoch. epochs: how many a stage may take, by default what it says. The
    stores of all stages together stay within budget_bytes.
    """
    costs = step_costs(classifier, image)
    plans: list[CachePlan] = []
    left = budget_bytes
    stored: StepViews = {}  # by the stages so far, of prefixes that none of them has trained
    for stage, count in zip(stages, epochs or [stage.epochs for stage in stages], strict=True):
        step, views = entry_step(classifier, stage), min(stage.views, count)
        one_view = costs[step - 1].output_bytes if step else 0
        missing = one_view * (max(0, views - stored.get(step, 0)) * samples + (step not in stored) * held_out)
        if step == 0:
            refusal = "nothing is frozen"
        elif budget_bytes <= 0:
            refusal = "fit.cache_gb is 0"
        elif count <= views:
            refusal = f"{count} epochs are no more than {views} views: nothing would be read twice"
        elif missing > left:
            refusal = f"{in_bytes(missing)} of activations exceed the {in_bytes(left)} left of fit.cache_gb"
        else:
            refusal = ""
            left -= missing
            stored[step] = max(views, stored.get(step, 0))
        passes = "1 pass" if views == 1 else f"{views} passes"
        size = in_bytes(missing) if missing else "stored by an earlier stage"
        reason = refusal or f"{passes} instead of {count}, {size}"
        plans.append(CachePlan(step=step, views=views, cached=not refusal, reason=reason))
        stored = {above: seen for above, seen in stored.items() if above <= step}
    return plans


def shared_views(plans: Sequence[CachePlan], number: int) -> StepViews:
    """Return what the pass of stage `number` computes: for each step that is entered, how many views.

    Groups that this stage freezes have been frozen in every stage before it, if the schedule only unfreezes.
    Then all later stages start from the same pretrained prefix, and one pass over the images serves all.
    """
    requested: StepViews = {}
    for plan, lowest in zip(plans[number:], accumulate((p.step for p in plans[number:]), min), strict=True):
        if plan.cached and plan.step <= lowest:  # no stage from `number` to it trains its prefix
            requested[plan.step] = max(plan.views, requested.get(plan.step, 0))
    return requested


def in_bytes(size: float) -> str:
    """Write a number of bytes for people: 940 kB, 12 MB, 3.2 GB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.2g} {unit}" if size < 10 * scale else f"{size / scale:.0f} {unit}"
    return f"{size / 1e3:.0f} kB"
