"""Stages of unfreezing: which layer groups are trainable when, at which rate, until when."""

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from medtl.learning.classifier import Classifier

# Beyond 1e30 the optimizer's own arithmetic overflows.
Rate = Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)]
ScheduleName = Literal["linear-probe", "head-then-all", "gradual", "full", "scratch"]


class Stage(BaseModel):
    """One stage: `groups` layer groups next to the head are trainable, the ones before are frozen.

    rate is that of the topmost group; each group towards the stem has `decay` times the rate of the one
    above. The rate warms up linearly over the first `warmup` of the steps and falls by a half cosine. A stage
    ends after `epochs`, or when validation has not improved for `patience` epochs. `views` is how many views
    of a sample a stage with a frozen prefix rotates through, cached or not; the first is the image itself,
    the others are augmented. A stage that freezes nothing sees a new augmented view in each epoch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    groups: int = Field(ge=0)
    epochs: int = Field(ge=1)
    head_rate: Rate
    rate: Rate = 1e-3
    decay: float = Field(default=1.0, gt=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    patience: int | None = Field(default=None, ge=1)
    batch_norm: Literal["pretrained", "follow"] = "pretrained"
    views: int = Field(default=1, ge=1)


class ScheduleConfig(BaseModel):
    """A named schedule with its knobs, or `stages` in full.

    linear-probe: the head alone. head-then-all: the head, then everything. gradual: the head, then the groups
    next to it in `steps` steps, down to `thaw` of them (all by default). full: everything from the start.
    scratch: as full, from random weights and at the head's rate. thawed_epochs is shared among the stages
    after the head's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ScheduleName = "gradual"
    stages: tuple[Stage, ...] | None = None
    head_epochs: int = Field(default=10, ge=1)
    thawed_epochs: int = Field(default=6, ge=1)
    steps: int = Field(default=2, ge=1)
    thaw: int | None = Field(default=None, ge=1)
    head_rate: Rate = 3e-3
    rate: Rate = 1e-3
    decay: float = Field(default=0.8, gt=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0)
    patience: int | None = Field(default=None, ge=1)
    batch_norm: Literal["pretrained", "follow"] = "pretrained"
    views: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _epochs_reach(self) -> "ScheduleConfig":
        if self.name == "gradual" and self.stages is None and self.thawed_epochs < self.steps:
            raise ValueError(f"thawed_epochs {self.thawed_epochs} are fewer than steps {self.steps}")
        return self


def resolve_schedule(config: ScheduleConfig, num_groups: int) -> tuple[Stage, ...]:
    """Return the stages of a schedule for a backbone of `num_groups` layer groups."""
    if config.stages is not None:
        return tuple(s.model_copy(update={"groups": min(s.groups, num_groups)}) for s in config.stages)
    head = _stage(config, "head", 0, config.head_epochs)
    if config.name == "linear-probe":
        return (head,)
    if config.name == "head-then-all":
        return (head, _stage(config, "all", num_groups, config.thawed_epochs))
    if config.name == "gradual":
        return (head, *_gradual_stages(config, num_groups))
    epochs = config.thawed_epochs
    if config.name == "full":
        return (_stage(config, "all", num_groups, epochs),)
    scratch = {"rate": config.head_rate, "decay": 1.0, "batch_norm": "follow"}
    return (_stage(config, "all", num_groups, epochs).model_copy(update=scratch),)


def _gradual_stages(config: ScheduleConfig, num_groups: int) -> list[Stage]:
    deepest = min(config.thaw or num_groups, num_groups)
    steps = min(config.steps, deepest)
    depths = [round(deepest * step / steps) for step in range(1, steps + 1)]
    shares = [config.thawed_epochs * step // steps for step in range(steps + 1)]
    return [
        _stage(config, f"top {depth}" if depth < num_groups else "all", depth, shares[i + 1] - shares[i])
        for i, depth in enumerate(depths)
    ]


def _stage(config: ScheduleConfig, name: str, groups: int, epochs: int) -> Stage:
    return Stage(
        name=name,
        groups=groups,
        epochs=epochs,
        head_rate=config.head_rate if groups == 0 else config.rate,
        rate=config.rate,
        decay=config.decay,
        weight_decay=config.weight_decay,
        patience=config.patience,
        batch_norm=config.batch_norm if groups else "pretrained",
        views=config.views,
    )


def thaw(classifier: Classifier, stage: Stage) -> None:
    """Make exactly the stage's groups and the head trainable; everything before is inert to the bit."""
    frozen = classifier.pool_step - stage.groups
    classifier.freeze(frozen, batch_norm_follows_data=stage.batch_norm == "follow")


def entry_step(classifier: Classifier, stage: Stage) -> int:
    """Return the first step that the stage trains: the head's, or that of its lowest thawed group."""
    return classifier.head_step if stage.groups == 0 else classifier.pool_step - stage.groups


def parameter_groups(classifier: Classifier, stage: Stage) -> list[dict]:
    """Return optimizer parameter groups, head first, each with its peak rate and weight decay.

    Biases and norms (one-dimensional parameters) are not decayed.
    """
    modules = [(stage.head_rate, classifier.head)]
    groups = list(classifier.backbone.groups.values())
    for distance in range(stage.groups):
        modules.append((stage.rate * stage.decay**distance, groups[-1 - distance]))
    return [
        {"params": parameters, "lr": rate, "peak_rate": rate, "weight_decay": decay}
        for rate, module in modules
        for decay, parameters in _split_by_decay(module, stage.weight_decay)
        if parameters
    ]


def _split_by_decay(module: torch.nn.Module, decay: float) -> list[tuple[float, list[torch.nn.Parameter]]]:
    parameters = list(module.parameters())
    return [(decay, [p for p in parameters if p.ndim > 1]), (0.0, [p for p in parameters if p.ndim <= 1])]


def rate_factor(step: int, total: int, warmup: float) -> float:
    """Return the share of the peak rate at a step: linear warm-up, then a half cosine towards zero."""
    rising = max(1, round(total * warmup)) if warmup else 0
    if step < rising:
        return (step + 1) / rising
    progress = (step - rising) / max(1, total - rising)
    return 0.5 * (1 + float(torch.cos(torch.tensor(progress * torch.pi))))
