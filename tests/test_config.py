"""Recipes: found, merged, checked, and never executed."""

from pathlib import Path

import pytest
import yaml

from medtl.config import RunConfig, load_config, recipes_folder, to_yaml
from medtl.errors import ConfigError

RECIPES = sorted(recipes_folder().glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_every_recipe_is_valid_and_opens_with_its_command_and_cost(recipe):
    config = load_config(None, recipe)
    first, second = recipe.read_text(encoding="utf-8").splitlines()[:2]
    assert first.startswith("# medtl train --modality " + config.modality)
    assert second.startswith("# ")


def test_there_is_a_recipe_for_each_named_use():
    assert {path.name for path in RECIPES} == {
        "xray.yaml",
        "mri-slices.yaml",
        "mri-volume.yaml",
        "mri-medicalnet.yaml",
    }


@pytest.mark.parametrize("modality", ["xray", "mri"])
def test_a_modality_alone_finds_its_recipe(modality):
    assert load_config(modality, None).modality == modality


def test_overrides_reach_any_depth_and_keep_their_type():
    config = load_config(
        "xray", None, ["schedule.learning_rate=1e-4", "preprocessing.size=[64,64]", "fit.seed=3"]
    )
    assert (config.schedule.learning_rate, config.preprocessing.size, config.fit.seed) == (1e-4, (64, 64), 3)


def test_a_schedule_can_be_named_and_keeps_the_recipe_knobs():
    plain, scratch = load_config("xray", None), load_config("xray", None, ["schedule=scratch"])
    assert scratch.schedule.name == "scratch"
    assert scratch.schedule.unfrozen_epochs == plain.schedule.unfrozen_epochs


@pytest.mark.parametrize(
    ("override", "code", "words"),
    [
        ("schedule.learning_rat=1e-4", "config-unknown", "did you mean schedule.learning_rate?"),
        ("schedul.rate=1e-4", "config-unknown", "did you mean schedule"),
        (
            "schedule.lr=1e-4",
            "config-unknown",
            "did you mean schedule.head_learning_rate or schedule.learning_rate?",
        ),
        ("schedule.rate=-1", "config-value", "--set schedule.rate=-1"),
        ("fit.batchsize=8", "config-unknown", "did you mean fit.batch_size?"),
        ("epochs=5", "config-unknown", "did you mean schedule.head_epochs or schedule.unfrozen_epochs?"),
        ("learning_rate=5", "config-unknown", "schedule.learning_rate"),
        ("backbone.name=resnet5", "config-value", "--set backbone.name=resnet5: "),
        ("colour=red", "config-unknown", "medtl config show"),
        (
            "schedul=scratch",
            "config-unknown",
            "--set schedul=scratch: no key schedul: did you",
        ),
        (
            "fit.batch_size=acht",
            "config-value",
            "fit.batch_size: must be a valid integer",
        ),
        ("split.test=0,2", "config-value", "write 0.2"),
        ("fit.batch_size=none", "config-value", "fit.batch_size"),
        ("fit.batch_size=0", "config-value", "fit.batch_size"),
        ("schedule=gradul", "config-value", "gradual"),
        ("schedule.stages=[]", "config-value", "schedule.stages: stages is empty"),
        ("backbone.name=resnet81", "config-value", "did you mean resnet18?"),
        ("fit.imbalance=focl", "config-value", "did you mean focal?"),
        ("preprocessing.size=[8,64,64]", "config-value", "takes 2D"),
        ("nonsense", "config-value", "key=value"),
        ("=3", "config-value", "key=value"),
        ("fit.seed=[1", "config-value", "fit.seed"),
    ],
)
def test_a_bad_override_is_one_line_that_names_the_remedy(override, code, words):
    with pytest.raises(ConfigError) as caught:
        load_config("xray", None, [override])
    assert caught.value.code == code
    assert words in str(caught.value)
    assert len(str(caught.value)) <= 200 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("backbone", "size", "words"),
    [("vit_tiny", "[200,224]", "16 not 200x224"), ("inception_v3", "[64,64]", "75 not 64x64")],
)
def test_a_size_that_the_backbone_cannot_take_is_one_line(backbone, size, words):
    with pytest.raises(ConfigError) as caught:
        load_config("xray", None, [f"backbone.name={backbone}", f"preprocessing.size={size}"])
    assert caught.value.code == "config-value"
    assert all(word in str(caught.value) for word in words.split()) and "\n" not in str(caught.value)


def test_a_missing_recipe_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"xray\.yaml") as caught:
        load_config("xray", tmp_path / "xry.yaml")
    assert caught.value.code == "config-missing"


def test_a_recipe_of_another_modality_is_refused():
    with pytest.raises(ConfigError, match="modality"):
        load_config("mri", recipes_folder() / "xray.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "modality: xray\nfit: {seed: !!python/object/apply:os.system ['touch CANARY']}",
        "modality: xray\nfit: {seed: '${oc.env:HOME}'}",
        "modality: xray\nfit: {seed: $import os}",
        "- a\n- b",
        "- schedule",
        "modality: [",
        "\x00",
        "",
    ],
)
def test_nothing_in_a_recipe_is_executed(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError):
        load_config(None, Path("recipe.yaml"))
    assert not Path("CANARY").exists()


def test_the_written_recipe_reads_back_as_the_same(tmp_path):
    config = load_config("mri", None, ["schedule=full", "fit.seed=7"])
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_config(None, tmp_path / "config.yaml") == config
    assert RunConfig.model_validate(yaml.safe_load(to_yaml(config))) == config
