"""RunConfig: a recipe (YAML) + overrides -> the sections that live beside the code they configure.

Nothing in a recipe is ever executed, and no key is silently ignored.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError, field_validator, model_validator
from yaml import YAMLError

from medtl.core.files import PathLike
from medtl.data.splits import SplitConfig
from medtl.data.task import TaskConfig
from medtl.errors import ConfigError
from medtl.imaging.augmentation import AugmentationConfig
from medtl.imaging.preprocessing import READING_OPTIONS, PreprocessingConfig
from medtl.models.catalogue import BackboneConfig, known_backbones
from medtl.training.config import FitConfig, known_strategies
from medtl.training.schedule import ScheduleConfig, current_key, with_current_keys

Modality = Literal["xray", "mri"]
MOST_HINTS = 3
# What people write for a key -> its words.
ABBREVIATED = {"lr": "learning_rate", "bs": "batch_size", "wd": "weight_decay"}

# The recipe of a modality where none is named.
DEFAULT_RECIPES: dict[str, str] = {"xray": "xray.yaml", "mri": "mri-volume.yaml"}


class RunConfig(BaseModel, extra="forbid", frozen=True):
    """One whole recipe for a training run."""

    modality: Modality
    task: TaskConfig = TaskConfig()
    split: SplitConfig = SplitConfig()
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    backbone: BackboneConfig = BackboneConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    fit: FitConfig = FitConfig()

    @field_validator("schedule", mode="before")
    @classmethod
    def _name_is_a_schedule(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _names_are_known(self) -> "RunConfig":
        known = known_backbones()
        _check_name("backbone.name", self.backbone.name, list(known))
        _check_name("fit.imbalance", self.fit.imbalance.name, known_strategies(self.fit.imbalance.name))
        entry, size = known[self.backbone.name], self.preprocessing.size
        dims = entry.spatial_dims
        if len(size) != dims:
            raise ValueError(
                f"backbone {self.backbone.name} takes {dims}D, preprocessing.size has {len(size)} axes"
            )
        problem = entry.sizes.problem(size)
        if problem:
            raise ValueError(f"preprocessing.size: backbone {entry.name} {problem}")
        if self.augmentation.flip and dims == 3 and self.preprocessing.orientation[-1] not in "LR":
            raise ValueError(
                "augmentation.flip mirrors the last axis, which must be left-right: see orientation"
            )
        return self


def recipes_folder() -> Path:
    """Return the folder of recipes."""
    return _shipped("configs")


def sample_data(modality: str) -> Path:
    """Return the folder of phantoms ("xray", "mri" or "unlabelled") that come with medtl."""
    return _shipped("sample_data") / modality


def _shipped(name: str) -> Path:
    """Return a folder that comes with medtl: inside an installed package, or beside it in a checkout."""
    installed = Path(__file__).parent / name
    return installed if installed.is_dir() else Path(__file__).parents[1] / name


def load_config(
    modality: str | None = None,
    config: "RunConfig | PathLike | None" = None,
    overrides: Sequence[str] = (),
) -> RunConfig:
    """Compose a recipe (a file, a RunConfig, or the modality's own) with overrides such as `fit.seed=1`.

    Raises ConfigError config-missing, config-unknown, config-value.

    >>> import medtl
    >>> medtl.load_config("xray", overrides=["fit.seed=7"]).fit.seed
    7
    """
    if isinstance(config, RunConfig):
        where, recipe = "the given recipe", OmegaConf.create(config.model_dump(mode="json"))
    elif config is None and modality not in DEFAULT_RECIPES:
        reason = f"modality {modality!r} is not known" if modality else "no recipe is named"
        fix = f"give a modality ({' or '.join(DEFAULT_RECIPES)}) or a recipe"
        raise ConfigError("config-missing", reason, fix=fix)
    else:
        path = recipes_folder() / DEFAULT_RECIPES[str(modality)] if config is None else Path(config)
        where, recipe = str(path), read_yaml(path, "recipe")
    values = _merge(recipe, overrides)
    if modality and values.setdefault("modality", modality) != modality:
        reason = f"is for modality {values['modality']}, not {modality}"
        raise ConfigError("config-value", reason, where=where, fix="name another recipe with --config")
    return validate_config(values, where, overrides)


def validate_config(values: dict[str, Any], where: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Check plain values; an error names the override that caused it.

    Raises ConfigError config-unknown (with the nearest keys) or config-value.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise _first_problem(error, where, overrides) from error


def to_yaml(config: RunConfig) -> str:
    """Return the recipe in full, defaults included."""
    content = config.model_dump(mode="json")
    content["preprocessing"] |= {name: getattr(config.preprocessing, name) for name in READING_OPTIONS}
    return OmegaConf.to_yaml(OmegaConf.create(content))


def read_yaml(path: Path, what: str) -> Any:
    """Read a file of keys, which errors call `what`. Raises ConfigError config-missing, config-value."""
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in recipes_folder().glob("*.yaml")], n=1)
        fix = f"did you mean {recipes_folder().name}/{near[0]}?" if near else f"give a {what} in YAML"
        raise ConfigError("config-missing", f"no such {what}", where=path, fix=fix)
    try:
        return OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        reason = f"is not YAML: {str(error).splitlines()[0]}"
        raise ConfigError("config-value", reason, where=path, fix="correct the line") from error


def _merge(recipe: Any, overrides: Sequence[str]) -> dict[str, Any]:
    if OmegaConf.is_dict(recipe) and OmegaConf.is_dict(recipe.get("schedule")):
        # Old keys become today's before an override is laid over them.
        recipe.schedule = with_current_keys(OmegaConf.to_container(recipe.schedule, resolve=False))
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            reason, fix = "is not an override", "write key=value"
            raise ConfigError("config-value", reason, where=f"--set {override}", fix=fix)
        try:
            recipe = OmegaConf.merge(recipe, OmegaConf.from_dotlist([f"{_full_key(key)}={value}"]))
        except (YAMLError, OmegaConfBaseException) as error:
            reason, fix = str(error).splitlines()[0], "correct the value"
            raise ConfigError("config-value", reason, where=f"--set {override}", fix=fix) from error
    values = OmegaConf.to_container(recipe, resolve=False)
    if not isinstance(values, dict):
        raise ConfigError("config-value", "a recipe is a mapping of keys", where="recipe", fix="see configs/")
    return {str(key): value for key, value in values.items()}


def _first_problem(error: ValidationError, where: str, overrides: Sequence[str]) -> ConfigError:
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    to_blame = [one for one in overrides if _concerns(one.partition("=")[0], key, problem["msg"])]
    where = f"--set {to_blame[-1]}" if to_blame else where
    if problem["type"] == "extra_forbidden":
        current = current_key(key)  # a key under its old name and its new one
        near = [current] if current != key else _near_keys(key, list(_known_keys(RunConfig)))
        fix = f"did you mean {' or '.join(near)}?" if near else "see `medtl config show`"
        return ConfigError("config-unknown", f"no key {key}", where=where, fix=fix)
    reason = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    reason = reason.split(", unable to parse")[0]
    given = str(problem["input"])
    fix = f"write {given.replace(',', '.')}" if re.fullmatch(r"\d+,\d+", given) else "correct the value"
    return ConfigError("config-value", f"{key}: {reason}" if key else reason, where=where, fix=fix)


def _concerns(override: str, key: str, reason: str) -> bool:
    """Return whether an override caused an error; one about the whole recipe names the key in its reason."""
    pairs = zip(_full_key(override).split("."), key.split("."), strict=False)
    return all(one == other for one, other in pairs) if key else override in reason


def _full_key(key: str) -> str:
    """Return today's key of an override: `schedule` alone is the schedule's name."""
    return "schedule.name" if key == "schedule" else current_key(key)


def _near_keys(key: str, known: Sequence[str]) -> list[str]:
    """Return likely keys: one that is spelled alike, or those whose last part shares a word."""
    last = key.rsplit(".", 1)[-1]
    near = [] if last in ABBREVIATED else difflib.get_close_matches(key, known, n=1, cutoff=0.8)
    endings = {name.rsplit(".", 1)[-1]: name for name in known}
    near = near or [endings[one] for one in difflib.get_close_matches(last, endings, n=1, cutoff=0.8)]
    words = set(ABBREVIATED.get(last, last).split("_"))
    return near or [name for ending, name in endings.items() if words & set(ending.split("_"))][:MOST_HINTS]


def _known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _known_keys(field.annotation, f"{prefix}{name}.")


def _check_name(key: str, name: str, known: list[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise ValueError(f"{key} {name!r} is not known: {hint}")
