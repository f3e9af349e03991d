"""RECIPE -> STAGES: which layer groups are trainable when, at which learning rate, until when."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

if TYPE_CHECKING:
    from medtl.models.classifier import Classifier

# Beyond 1e30 the optimizer's own arithmetic overflows.
LearningRate = Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)]
ScheduleName = Literal["linear-probe", "head-then-all", "gradual", "full", "scratch"]
BatchNormPolicy = Literal["pretrained", "follow"]
OptimizerPolicy = Literal["fresh", "keep"]
AverageName = Literal["none", "ema", "swa"]


# Keys of medtl 0.1.0 -> keys now; recipes, overrides, search spaces and checkpoints may have either.
OLD_KEYS = {
    "rate": "learning_rate",
    "head_rate": "head_learning_rate",
    "decay": "layer_decay",
    "thaw": "unfreeze",
    "thawed_epochs": "unfrozen_epochs",
    "thawed_steps": "unfrozen_steps",
    "warmup_new": "warmup_new_groups",
}


def current_key(key: str) -> str:
    """Return today's name of a dotted recipe key: schedule.rate -> schedule.learning_rate."""
    section, _, name = key.rpartition(".")
    return f"{section}.{OLD_KEYS.get(name, name)}" if section == "schedule" else key


def with_current_keys(values: Any) -> Any:
    """Return a schedule or a stage, as plain values, with today's keys; one with both is left as it is."""
    if not isinstance(values, dict):
        return values
    old = {key: new for key, new in OLD_KEYS.items() if new not in values}
    return {old.get(key, key): value for key, value in values.items()}


class StageOptions(BaseModel, extra="forbid", frozen=True):
    """What every stage has, and a schedule hands to each of its stages.

    A stage ends after `patience` epochs in which validation has not improved by more than `min_delta`, if
    not before. The run then returns to its best weights so far; with restore_best off it keeps the last ones.

    learning_rate is the peak rate of the topmost unfrozen group; each group towards the stem has
    `layer_decay` times the rate of the one above. head_learning_rate is the head's. Rates warm up linearly
    over the first `warmup` of the steps and fall by a half cosine. Groups that the stage before did not train
    (in the first stage all) also warm up over the first `warmup_new_groups` of the steps. optimizer_state:
    `fresh` moments, or `keep` those of the parameters that the stage before trained too, as they were after
    its last step; those of new parameters start at zero.

    weight_decay pulls weights towards zero. l2_sp pulls the unfrozen backbone, biases and norms too, towards
    the weights that the run began from, instead of its weight decay (Li 2018; decoupled from the gradient
    as in AdamW). batch_norm: unfrozen norms keep their pretrained statistics, or follow the data.

    average: validate and save a mean of this stage's weights. `ema`: updated after each step, with
    `ema_decay`. `swa`: updated after each epoch of the last `swa_share` of them, during which the learning
    rate falls no further (Izmailov 2018). See averaging.py.

    views: how many views of a sample a stage with a frozen prefix cycles through, cached or not; the first is
    the image itself, the others are augmented. A stage that freezes nothing sees a new one each epoch.
    """

    name: str
    patience: int | None = Field(default=None, ge=1)
    min_delta: float = Field(default=0.0, ge=0)
    restore_best: bool = True
    head_learning_rate: LearningRate
    learning_rate: LearningRate = 1e-3
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0)
    l2_sp: float = Field(default=0.0, ge=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    warmup_new_groups: float = Field(default=0.0, ge=0, lt=1)
    optimizer_state: OptimizerPolicy = "fresh"
    batch_norm: BatchNormPolicy = "pretrained"
    average: AverageName = "none"
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    swa_share: float = Field(default=0.25, gt=0, le=1)
    views: int = Field(default=1, ge=1)

    _reads_old_keys = model_validator(mode="before")(with_current_keys)


class Stage(StageOptions, frozen=True):
    """One stage: `groups` layer groups next to the head are trainable, the ones before are frozen.

    It lasts `epochs`, or `steps` optimizer steps if that is shorter: its last epoch is then cut short.
    """

    groups: int = Field(ge=0)
    epochs: int = Field(ge=1)
    steps: int | None = Field(default=None, ge=1)


class ScheduleConfig(StageOptions, frozen=True):
    """A named schedule with its options, or `stages` in full.

    linear-probe: the head alone. head-then-all: the head, then everything, which is linear probing and then
    fine-tuning (LP-FT, Kumar 2022): a head that fits spares the pretrained features the large gradients of
    a random one. gradual: the head, then the groups next to it in `steps` steps, down to `unfreeze` of them
    (all by default). full: everything from the start. scratch: as full, from random weights and at the head's
    learning rate.

    unfrozen_epochs and unfrozen_steps (optimizer steps) are divided among the stages after the head's.
    """

    name: ScheduleName = "gradual"
    stages: tuple[Stage, ...] | None = None
    head_epochs: int = Field(default=10, ge=1)
    head_steps: int | None = Field(default=None, ge=1)
    unfrozen_epochs: int = Field(default=6, ge=1)
    unfrozen_steps: int | None = Field(default=None, ge=1)
    steps: int = Field(default=2, ge=1)
    unfreeze: int | None = Field(default=None, ge=1)
    head_learning_rate: LearningRate = 3e-3
    layer_decay: float = Field(default=0.8, gt=0, le=1)

    @field_validator("stages")
    @classmethod
    def _some_stage_trains(cls, stages: tuple[Stage, ...] | None) -> tuple[Stage, ...] | None:
        if stages == ():
            raise ValueError("stages is empty: write one, or null for those of the named schedule")
        return stages

    @model_validator(mode="after")
    def _epochs_reach(self) -> "ScheduleConfig":
        if self.name == "gradual" and self.stages is None:
            for name in ("unfrozen_epochs", "unfrozen_steps"):
                budget = getattr(self, name)
                if budget is not None and budget < self.steps:
                    raise ValueError(f"{name} {budget} are fewer than steps {self.steps}")
        return self


def resolve_schedule(config: ScheduleConfig, num_groups: int) -> tuple[Stage, ...]:
    """Return the stages of a schedule for a backbone of `num_groups` layer groups."""
    if config.stages is not None:
        return tuple(s.model_copy(update={"groups": min(s.groups, num_groups)}) for s in config.stages)
    head = _stage(config, "head", 0, config.head_epochs, config.head_steps)
    everything = _stage(config, "all", num_groups, config.unfrozen_epochs, config.unfrozen_steps)
    if config.name == "gradual":
        return (head, *_gradual_stages(config, num_groups))
    scratch = {
        "learning_rate": config.head_learning_rate,
        "layer_decay": 1.0,
        "batch_norm": "follow",
        "l2_sp": 0.0,
    }
    return {
        "linear-probe": (head,),
        "head-then-all": (head, everything),
        "full": (everything,),
        "scratch": (everything.model_copy(update=scratch),),
    }[config.name]


def _gradual_stages(config: ScheduleConfig, num_groups: int) -> list[Stage]:
    deepest = min(config.unfreeze or num_groups, num_groups)
    count = min(config.steps, deepest)
    depths = [round(deepest * step / count) for step in range(1, count + 1)]
    epochs, budget = _shares(config.unfrozen_epochs, count), config.unfrozen_steps
    steps = [None] * count if budget is None else _shares(budget, count)
    return [
        _stage(config, f"top {depth}" if depth < num_groups else "all", depth, epochs[i], steps[i])
        for i, depth in enumerate(depths)
    ]


def _shares(budget: int, count: int) -> list[int]:
    """Return `budget` in `count` whole shares that differ by one at most."""
    bounds = [budget * part // count for part in range(count + 1)]
    return [after - before for before, after in pairwise(bounds)]


def _stage(config: ScheduleConfig, name: str, groups: int, epochs: int, steps: int | None) -> Stage:
    options = {option: getattr(config, option) for option in StageOptions.model_fields}
    if groups == 0:
        options["batch_norm"] = "pretrained"
    else:
        options["head_learning_rate"] = config.learning_rate
    return Stage(**options | {"name": name, "groups": groups, "epochs": epochs, "steps": steps})


def unfreeze(classifier: "Classifier", stage: Stage) -> None:
    """Make exactly the stage's groups and the head trainable; everything before is frozen to the bit."""
    frozen = classifier.pool_step - stage.groups
    classifier.freeze(frozen, batch_norm_follows_data=stage.batch_norm == "follow")


def entry_step(classifier: "Classifier", stage: Stage) -> int:
    """Return the first step that the stage trains: the head's, or that of its lowest unfrozen group."""
    return classifier.head_step if stage.groups == 0 else classifier.pool_step - stage.groups


def parameter_groups(
    classifier: "Classifier", stage: Stage, before: Stage | None = None
) -> list[dict[str, Any]]:
    """Return optimizer parameter groups, head first, each with its peak rate and weight decay.

    Biases and norms (one-dimensional parameters) are not decayed. `new` says that the stage before did not
    train the group; `pull` is how strongly it is drawn to where the run began.
    """
    modules = [(stage.head_learning_rate, 0.0, before is None, classifier.head)]
    groups = list(classifier.backbone.groups.values())
    for distance in range(stage.groups):
        rate = stage.learning_rate * stage.layer_decay**distance
        new = before is None or distance >= before.groups
        modules.append((rate, stage.l2_sp, new, groups[-1 - distance]))
    return [
        {
            "params": parameters,
            "lr": rate,
            "peak_lr": rate,
            "weight_decay": 0.0 if pull else decay,
            "new": new,
            "pull": pull,
        }
        for rate, pull, new, module in modules
        for decay, parameters in (
            (stage.weight_decay, [p for p in module.parameters() if p.ndim > 1]),
            (0.0, [p for p in module.parameters() if p.ndim <= 1]),
        )
        if parameters
    ]


@dataclass(frozen=True)
class Pace:
    """How long a stage may last, in optimizer steps of which `per_epoch` make an epoch, and its rates."""

    stage: Stage
    per_epoch: int

    @property
    def total(self) -> int:
        """The steps of the whole stage, if patience does not end it."""
        longest = self.stage.epochs * self.per_epoch
        return min(longest, self.stage.steps or longest)

    @property
    def epochs(self) -> int:
        """The epochs of the whole stage; the last one may be cut short."""
        return -(-self.total // self.per_epoch)

    @property
    def first_averaged_epoch(self) -> int:
        """The epoch, counted from 0, after which weights are averaged for the first time (swa)."""
        return self.epochs - max(1, round(self.epochs * self.stage.swa_share))

    def steps_of(self, epoch: int) -> int:
        """Return how many steps an epoch, counted from 0, has."""
        return min(self.per_epoch, self.total - epoch * self.per_epoch)

    def learning_rate_factor(self, step: int, *, new: bool = False) -> float:
        """Return the share of the peak rate at a step of the stage; new: of newly unfrozen groups."""
        if self.stage.average == "swa":  # the rate stays where averaging begins, but not below the warm-up
            held_from = self.first_averaged_epoch * self.per_epoch
            at = min(step, max(held_from, round(self.total * self.stage.warmup)))
        else:
            at = step
        factor = learning_rate_factor(at, self.total, self.stage.warmup)
        rising = max(1, round(self.total * self.stage.warmup_new_groups))
        return factor * min(1.0, (step + 1) / rising) if new else factor


def learning_rate_factor(step: int, total: int, warmup: float) -> float:
    """Return the share of the peak rate at a step: linear warm-up, then a half cosine towards zero."""
    import torch  # late, since a recipe is read without torch

    rising = max(1, round(total * warmup)) if warmup else 0
    if step < rising:
        return (step + 1) / rising
    progress = (step - rising) / max(1, total - rising)
    # torch's cosine in 32 bits, to whose last bit runs are resumed.
    return 0.5 * (1 + float(torch.cos(torch.tensor(progress * math.pi))))
