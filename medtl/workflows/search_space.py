"""SEARCH SPACE (YAML) -> ranges and choices for keys of a recipe, checked before anything is trained."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from omegaconf import OmegaConf
from pydantic import BaseModel, Field, ValidationError, model_validator

from medtl.config import RunConfig, read_yaml, validate_config
from medtl.errors import ConfigError
from medtl.models.backbones import BACKBONES
from medtl.training.schedule import current_key, resolve_schedule

if TYPE_CHECKING:
    from optuna.trial import Trial

# Sections that a search may change. The others define the task and the data, the same for all trials.
SEARCHED_SECTIONS = ("schedule", "augmentation", "backbone", "fit")
# Keys of these sections that make no better model, or only a luckier one.
NOT_SEARCHED = ("fit.seed", "fit.device", "fit.workers", "fit.cache_gb")


class Range(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """Numbers from low to high, both included; log: uniform in the logarithm; step: only multiples of it."""

    low: float
    high: float
    log: bool = False
    step: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _is_a_range(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and (self.low <= 0 or self.step):
            raise ValueError("log needs low above 0, and no step")
        return self


@dataclass(frozen=True)
class Dimension:
    """One key of a recipe, and the values that a search may give it: a range, or choices of plain data."""

    key: str
    values: Range | tuple[Any, ...]

    @property
    def whole(self) -> bool:
        """Whether the key takes whole numbers; an unknown key does not."""
        model: Any = RunConfig
        for part in self.key.split("."):
            fields = getattr(model, "model_fields", {})
            if part not in fields:
                return False
            model = fields[part].annotation
        return model is int or int in get_args(model)

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Every choice, or the ends of the range."""
        if not isinstance(self.values, Range):
            return self.values
        ends = (self.values.low, self.values.high)
        return tuple(map(int, ends)) if self.whole else ends

    def holds(self, value: Any) -> bool:
        """Return whether a search over the dimension can choose a value."""
        if not isinstance(self.values, Range):
            return value in self.values
        return isinstance(value, int | float) and self.values.low <= value <= self.values.high

    def stored(self, value: Any) -> Any:
        """Return a value as the database stores it: choices, which may be lists, as JSON."""
        if isinstance(self.values, Range):
            return value
        return json.dumps(next((one for one in self.values if one == value), value))  # 0 where that is 0.0

    def restored(self, stored: Any) -> Any:
        """Return the value that the database stores as `stored`."""
        return stored if isinstance(self.values, Range) else json.loads(stored)

    def suggest(self, trial: "Trial") -> None:
        """Choose the trial's value of the key, which is in its params as it is stored."""
        values = self.values
        if not isinstance(values, Range):
            trial.suggest_categorical(self.key, [self.stored(value) for value in values])
        elif self.whole:
            low, high = self.extremes
            trial.suggest_int(self.key, low, high, step=int(values.step or 1), log=values.log)
        else:
            trial.suggest_float(self.key, values.low, values.high, step=values.step, log=values.log)


Space = tuple[Dimension, ...]


def load_space(file: Path | None, config: RunConfig) -> Space:
    """Return the space of a file, or the default one of the recipe. Raises ConfigError."""
    if file is None:
        return default_space(config)
    found = OmegaConf.to_container(read_yaml(file, "search space"), resolve=False)
    if not isinstance(found, dict) or not found:
        fix = "write lines such as schedule.unfreeze: [2, 4]"
        raise ConfigError("config-value", "a space is a mapping of keys", where=file, fix=fix)
    space = tuple(_dimension(current_key(str(key)), value, str(file)) for key, value in found.items())
    for dimension in space:
        for value in dimension.extremes:  # a value that the recipe cannot take is an error here
            apply_values(config, {dimension.key: value}, str(file))
    for dimension in space:
        if not _has_effect(dimension, space, config):
            reason = f"{dimension.key} has no effect: all its values give the same run of this recipe"
            fix = f"omit it, or choose another schedule than {config.schedule.name}"
            raise ConfigError("config-value", reason, where=file, fix=fix)
    return space


def default_space(config: RunConfig) -> Space:
    """Return the default space of a recipe: those of the candidates that change its run.

    Augmentation has few strengths, because each needs activations of its own, and is not searched where only
    the head is trained: there it would cost more than everything else.
    """
    groups = count_groups(config.backbone.name)
    depths = {max(1, round(groups * share)) for share in (0.25, 0.5, 0.75)} - {config.schedule.unfreeze}
    unfreezes = any(stage.groups for stage in resolve_schedule(config.schedule, groups))
    turn, gamma = config.augmentation.rotate_degrees, config.augmentation.gamma
    candidates: dict[str, Range | tuple[Any, ...]] = {
        "schedule.head_learning_rate": Range(low=3e-4, high=3e-2, log=True),
        "schedule.learning_rate": Range(low=3e-5, high=3e-3, log=True),
        "schedule.layer_decay": Range(low=0.5, high=1.0),
        "schedule.unfreeze": (*sorted(depths), config.schedule.unfreeze),
        "schedule.batch_norm": ("pretrained", "follow"),
        "schedule.weight_decay": Range(low=1e-4, high=1e-1, log=True),
        "augmentation.rotate_degrees": _strengths(turn, 180.0) if unfreezes else (),
        "augmentation.gamma": _strengths(gamma, 0.9) if unfreezes else (),
        "fit.imbalance": ("none", "class-weighted", "balanced-sampler", "focal"),
    }
    space = tuple(Dimension(key, values) for key, values in candidates.items() if values)
    return tuple(dimension for dimension in space if _has_effect(dimension, space, config))


def _strengths(own: float, most: float) -> tuple[float, ...]:
    """Return zero, the recipe's own strength, and twice that."""
    return tuple(sorted({0.0, own, min(2 * own, most)}))


def space_yaml(space: Space) -> str:
    """Return a space as YAML that load_space reads."""
    plain = {
        dimension.key: dimension.values.model_dump(exclude_defaults=True)
        if isinstance(dimension.values, Range)
        else list(dimension.values)
        for dimension in space
    }
    return OmegaConf.to_yaml(OmegaConf.create(plain))


def _dimension(key: str, given: Any, where: str) -> Dimension:
    """Return the dimension of one line of a space. Raises ConfigError config-value."""
    section = key.split(".")[0]
    shared = section in RunConfig.model_fields and section not in SEARCHED_SECTIONS
    if shared or key in NOT_SEARCHED:
        raise _refused(f"{key} is the same in all trials", where, f"set it with --set {key}=VALUE")
    if key in RunConfig.model_fields:
        raise _refused(f"{key} is a section", where, f"write {key}.KEY")
    if isinstance(given, list):
        if len({json.dumps(value) for value in given}) < max(2, len(given)):
            fix = f"give several, or set one with --set {key}=VALUE"
            raise _refused(f"{key} needs two or more different values", where, fix)
        return Dimension(key, tuple(given))
    try:
        limits = Range.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]
        what = ".".join([key, *map(str, problem["loc"])])
        fix = "write [value, value] or {low: 1e-4, high: 1e-2, log: true}"
        reason = problem["msg"].removeprefix("Value error, ")
        raise _refused(f"{what}: {reason}", where, fix) from error
    dimension = Dimension(key, limits)
    if dimension.whole and any(number % 1 for number in (limits.low, limits.high, limits.step or 1)):
        raise _refused(f"{key} takes whole numbers", where, "round low, high and step")
    return dimension


def _refused(reason: str, where: str, fix: str) -> ConfigError:
    return ConfigError("config-value", reason, where=where, fix=fix)


def apply_values(config: RunConfig, values: Mapping[str, Any], where: str) -> RunConfig:
    """Return a recipe with other values under dotted keys. Raises ConfigError."""
    plain: dict[str, Any] = config.model_dump(mode="json")
    for key, value in values.items():
        *path, last = key.split(".")
        section = plain
        for part in path:
            if not isinstance(section.setdefault(part, {}), dict):
                section[part] = {}
            section = section[part]
        section[last] = value
    return validate_config(plain, where)


def _has_effect(dimension: Dimension, space: Space, config: RunConfig) -> bool:
    """Return whether a key changes what is trained, for the recipe or with another key at an extreme."""
    others = [{d.key: value} for d in space if d.key != dimension.key for value in d.extremes]
    for other in ({}, *others):
        first, *rest = (_what_is_trained(config, {**other, dimension.key: v}) for v in dimension.extremes)
        if any(one != first for one in rest):
            return True
    return False


def _what_is_trained(config: RunConfig, values: Mapping[str, Any]) -> object:
    """Return what a run depends on in the searched sections; None for values that a recipe cannot take."""
    try:
        config = apply_values(config, values, "space")
    except ConfigError:
        return None
    groups = count_groups(config.backbone.name)
    stages = resolve_schedule(config.schedule, groups)
    rates = [
        [stage.learning_rate * stage.layer_decay**distance for distance in range(stage.groups)]
        for stage in stages
    ]
    others = [stage.model_dump(exclude={"learning_rate", "layer_decay"}) for stage in stages]
    random = any(stage.views > 1 or stage.groups == groups for stage in stages)
    return rates, others, config.augmentation if random else None, config.fit, config.backbone


@cache
def count_groups(backbone: str) -> int:
    """Return how many layer groups a backbone has."""
    with torch.device("meta"):  # shapes without memory
        return len(BACKBONES[backbone](weights=None).groups)
