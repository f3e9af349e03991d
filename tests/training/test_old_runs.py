"""Runs of medtl 0.1.0, as they lie in tests/witness, are read, resumed and scored as that version did.

The folder's runs have checkpoints of format 1 and recipes with old keys; the tests work on copies.
"""

import csv
import json
import platform
import shutil
from pathlib import Path

import pytest
import torch

from medtl.config import load_config
from medtl.core.files import write_json
from medtl.errors import CheckpointError, ConfigError
from medtl.pacs.results import model_identity
from medtl.training.checkpoint import FORMAT_VERSION, load_finished, read_header
from medtl.training.schedule import OLD_KEYS, ScheduleConfig, Stage, current_key
from tests.cli.jobs import medtl

WITNESS = Path(__file__).parents[1] / "witness" / "v0.1.0"
# SHA-256 of the model that 0.1.0 ends with when the interrupted run is resumed.
FINAL_MODEL = "14a90c8d6e8fbceebc904ea2c0893afb818283f1fdb0eb2b798187e55e0f1aeb"


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    """Return a copy of the witness that a test may change."""
    return shutil.copytree(WITNESS, tmp_path / "witness")


def test_an_old_run_scores_as_it_did(witness, tmp_path):
    result = medtl("score", witness / "run", witness / "studies", "--out", tmp_path / "scores")
    assert result.exit_code == 0, result.output

    def probabilities(path: Path) -> dict[str, list[float]]:
        with path.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {row["source"]: [float(row["p_normal"]), float(row["p_lesion"])] for row in rows}

    found = probabilities(tmp_path / "scores" / "scores.csv")
    before = probabilities(WITNESS / "scores" / "scores.csv")
    assert found.keys() == before.keys() and len(before) == 12
    for source, numbers in before.items():
        assert found[source] == pytest.approx(numbers, abs=1e-6)


def test_an_old_run_that_was_interrupted_resumes_to_the_same_weights(witness):
    run = witness / "interrupted"
    arguments = ("--config", run / "config.yaml", "--data", witness / "studies", "--out", run, "--resume")
    result = medtl("train", "--modality", "xray", *arguments)
    assert result.exit_code == 0, result.output
    resumed, uninterrupted = load_finished(run), load_finished(WITNESS / "run")
    assert resumed.header.format == FORMAT_VERSION
    expected = uninterrupted.classifier.state_dict()
    for name, tensor in resumed.classifier.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)
    torchs = {checkpoint.header.provenance["torch"] for checkpoint in (resumed, uninterrupted)}
    if len(torchs) == 1 and _is_that_processor():
        assert resumed.sha256 == FINAL_MODEL


def _is_that_processor() -> bool:
    """Say whether torch computes here as where the witness was made: sums depend on the instructions."""
    return platform.machine() == "x86_64" and torch.backends.cpu.get_cpu_capability() == "AVX512"


def test_a_header_of_format_1_has_todays_names(witness):
    header = read_header(witness / "interrupted" / "checkpoints" / "last")
    head, everything = header.schedule
    assert (head.head_learning_rate, head.learning_rate, head.layer_decay) == (0.003, 0.0005, 0.8)
    assert everything.head_learning_rate == 0.0005
    assert header.position.best_score == pytest.approx((0.0, -0.699647068977356))
    assert header.position.epochs_without_improvement == 0


def test_a_header_of_a_later_format_is_refused_in_one_line(witness):
    path = witness / "run" / "checkpoints" / "best" / "checkpoint.json"
    write_json(path, {**json.loads(path.read_text()), "format": FORMAT_VERSION + 1, "unheard": "of"})
    with pytest.raises(CheckpointError, match=f"has format {FORMAT_VERSION + 1}"):
        read_header(path.parent)


def test_an_old_recipe_is_read(witness):
    schedule = load_config(None, witness / "run" / "config.yaml").schedule
    assert (schedule.learning_rate, schedule.head_learning_rate, schedule.layer_decay) == (0.0005, 0.003, 0.8)
    assert (schedule.unfreeze, schedule.unfrozen_epochs, schedule.unfrozen_steps) == (6, 1, None)
    assert load_config(None, witness / "search" / "best.yaml").schedule == schedule


@pytest.mark.parametrize("old_key", [True, False])
@pytest.mark.parametrize("old_recipe", [True, False])
def test_an_override_wins_whether_it_or_the_recipe_has_old_keys(old_key, old_recipe):
    recipe = WITNESS / "run" / "config.yaml" if old_recipe else None
    key = "rate" if old_key else "learning_rate"
    overrides = ["backbone.name=efficientnet_lite0", f"schedule.{key}=0.007"]
    assert load_config("xray", recipe, overrides).schedule.learning_rate == 0.007


def test_every_old_key_has_a_key_of_today():
    assert set(OLD_KEYS.values()) <= ScheduleConfig.model_fields.keys()
    assert not OLD_KEYS.keys() & (ScheduleConfig.model_fields.keys() | Stage.model_fields.keys())
    for old, new in OLD_KEYS.items():
        assert current_key(f"schedule.{old}") == f"schedule.{new}"
    assert current_key("preprocessing.rate") == "preprocessing.rate"


def test_a_key_under_both_names_is_refused(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("modality: xray\nschedule: {rate: 1e-3, learning_rate: 1e-4}\n")
    with pytest.raises(ConfigError, match=r"no key schedule\.rate"):
        load_config(None, recipe)


def test_results_of_an_old_run_keep_their_identity() -> None:
    """The PACS listener sends a study again where the settings' hash differs: 0.1.0 computed this one."""
    identity = model_identity(load_finished(WITNESS / "run"))
    assert identity.settings_sha256.startswith("a393b520a238bcdf")
