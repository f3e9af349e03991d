"""medtl config show: the recipe as YAML, and its stages as tables."""

import json

import pytest
import yaml

from medtl.config import RunConfig, load_config
from medtl.models.backbones import BACKBONES
from medtl.models.classifier import Classifier
from medtl.training.schedule import Stage, resolve_schedule, unfreeze
from medtl.workflows.plan import build_untrained, plan_stages
from tests.cli import jobs

RECIPES = ("xray.yaml", "mri-slices.yaml", "mri-volume.yaml", "mri-medicalnet.yaml")


def show(*arguments: str) -> str:
    result = jobs.medtl("config", "show", *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_without_stages_stdout_is_the_recipe_and_nothing_else() -> None:
    recipe = yaml.safe_load(show("--modality", "xray"))
    assert RunConfig.model_validate(recipe) == load_config("xray", None)
    assert recipe["preprocessing"]["fill_nan"] is False and recipe["task"]["encoding"] is None


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("samples", [(), ("--samples", "10000")], ids=["image", "run"])
def test_the_tables_of_every_recipe_fit_a_terminal(recipe: str, samples: tuple[str, ...]) -> None:
    shown = show("--config", f"configs/{recipe}", "--stages", *samples)
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert "head" in shown and "multiply-adds" in shown and "pooling" in shown


@pytest.mark.parametrize("backbone", ["densenet121", "vit_base", "swin_tiny", "inception_v3"])
def test_so_do_those_of_other_backbones(backbone: str) -> None:
    more = ["--set", f"backbone.name={backbone}", "--set", "preprocessing.size=[224,224]"]
    shown = show(
        "--modality", "xray", "--stages", "--samples", "1000000", *more, "--set", "schedule.unfreeze=null"
    )
    assert all(len(line) <= 80 for line in shown.splitlines()), shown


def test_a_stage_is_shown_with_its_groups_rates_end_and_cache() -> None:
    steps = ["--set", "schedule.unfrozen_steps=40", "--set", "schedule.layer_decay=0.5"]
    shown = show("--modality", "xray", "--stages", *steps)
    assert "blocks2 to final, head" in shown
    assert "0.0005, 0.0005, 1.6e-05" in shown, "six groups: 5e-4 halved five times"
    assert "15 epochs or 40 steps, patience 6" in shown
    assert "up to pooling: 4 x 5.12 kB cached" in shown, "1280 features in 32 bits"


def test_parameters_are_those_that_thawing_trains() -> None:
    config = load_config("xray", None, ["backbone.name=resnet18", "schedule.steps=3"])
    plans = plan_stages(config)
    backbone = BACKBONES["resnet18"](weights=None)
    classifier = Classifier(backbone, build_untrained(config).task)
    stages = resolve_schedule(config.schedule, len(backbone.groups))
    assert [Stage(**plan["stage"]) for plan in plans] == list(stages)
    for plan, stage in zip(plans, stages, strict=True):
        unfreeze(classifier, stage)
        trained = sum(p.numel() for p in classifier.parameters() if p.requires_grad)
        assert plan["trained_parameters"] == trained
        assert len(plan["groups"]) == stage.groups
    assert plans[0]["parameters"] == sum(p.numel() for p in classifier.parameters())


def test_multiply_adds_are_those_of_the_layers() -> None:
    """On 32 x 32: 3 x 3 convolutions of stride 2 of 1 to 4, 4 to 8 and 8 to 8 channels; a head of 2."""
    settings = ["backbone.name=tiny", "backbone.weights=null", "preprocessing.size=[32,32]"]
    head, top = plan_stages(load_config("xray", None, [*settings, "schedule.unfreeze=1", "schedule.steps=1"]))
    stem, middle, last, linear = 9 * 4 * 16**2, 9 * 4 * 8 * 8**2, 9 * 8 * 8 * 4**2, 8 * 2
    assert head["prefix_multiply_adds"] == stem + middle + last
    assert head["trained_multiply_adds"] == 3 * linear, "forward once, backward twice"
    assert (top["prefix_multiply_adds"], top["trained_multiply_adds"]) == (stem + middle, 3 * (last + linear))
    assert head["cached"] and head["all_epochs_multiply_adds"] == 10 * (stem + middle + last + 3 * linear)
    passes = 4 * (stem + middle + last)
    assert head["cached_all_epochs_multiply_adds"] == 10 * 3 * linear + passes, "4 views are passed once"
    assert head["kept_bytes"] == 8 * 4


def test_nothing_is_cached_where_the_recipe_says_so() -> None:
    shown = show("--modality", "xray", "--stages", "--set", "fit.cache_gb=0", "--samples", "500")
    assert "not cached" in shown and "fit.cache_gb is 0" in shown and "kB cached" not in shown


def test_a_step_budget_shortens_the_epochs_that_are_reckoned_with() -> None:
    config = load_config("xray", None, ["schedule.head_steps=31", "fit.batch_size=10", "fit.accumulate=2"])
    assert plan_stages(config)[0]["epochs"] == 10
    assert plan_stages(config, samples=200)[0]["epochs"] == 4, "10 steps an epoch"


def test_json_is_one_list_of_stages() -> None:
    rows = json.loads(show("--modality", "mri", "--stages", "--samples", "100", "--json"))
    assert [row["stage"]["name"] for row in rows] == ["head", "top 6"]
    assert all(row["cached_all_epochs_multiply_adds"] <= row["all_epochs_multiply_adds"] for row in rows)


def test_samples_without_stages_are_a_usage_error() -> None:
    assert jobs.medtl("config", "show", "--modality", "xray", "--samples", "5").exit_code == 2


def test_a_bad_recipe_is_one_line() -> None:
    result = jobs.medtl("config", "show", "--modality", "xray", "--stages", "--set", "schedule.rat=1")
    assert jobs.fault(result) == "config-unknown"
