"""Run: what a trained run does for a Python user."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

import medtl
from medtl.errors import CheckpointError, ConfigError
from tests.cli import jobs


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of studies and a run in it, kept for the tests of this file."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch, jobs.tiny_backbones_registered():
        patch.setenv("MEDTL_HOME", str(folder / "home"))
        patch.setenv("MEDTL_SALT", "test")
        data = jobs.write_images(folder / "studies")
        (data / "images/bad.png").write_bytes(b"")
        medtl.train("xray", data=data, out=folder / "run", overrides=jobs.SETTINGS)
        yield folder


@pytest.fixture
def run(home: Path) -> medtl.Run:
    """The run, loaded."""
    return medtl.load_run(str(home / "run"))


def test_predictions_are_the_rows_that_score_writes(run: medtl.Run, home: Path, tmp_path: Path) -> None:
    rows = run.predict(str(home / "studies"))
    medtl.score_folder(run, home / "studies", tmp_path / "out")
    with (tmp_path / "out/scores.csv").open(newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert [(row.sample_id, row.status, row.predicted) for row in rows] == [
        (row["sample_id"], row["status"], row["predicted"]) for row in written
    ]
    assert [row.source for row in rows if row.status == "refused"] == ["images/bad.png"]
    assert len(rows) == 25


def test_one_file_can_be_predicted(run: medtl.Run, home: Path) -> None:
    (row,) = run.predict(home / "studies/images/000.png")
    assert row.source == "000.png" and sum(row.probabilities) == pytest.approx(1)


def test_an_evaluation_without_a_folder_writes_nothing(run: medtl.Run, home: Path, tmp_path: Path) -> None:
    before = sorted(home.rglob("*"))
    outcome = run.evaluate(home / "studies", part="val")
    assert outcome.page is None and outcome.evaluation.samples == 8
    assert outcome.content["auroc"]["value"] == pytest.approx(run.validation["auroc"][0])
    assert sorted(path for path in home.rglob("*") if "home" not in path.parts) == [
        path for path in before if "home" not in path.parts
    ]


def test_explanations_pages_and_models_are_one_call_each(run: medtl.Run, home: Path, tmp_path: Path) -> None:
    assert run.explain(home / "studies", tmp_path / "maps").table.is_file()
    assert run.report(home / "studies", tmp_path / "pages", check_images=0).studies == 24
    assert run.export(tmp_path / "model", "torch").size > 0


def test_a_notebook_shows_the_validation_metrics(run: medtl.Run) -> None:
    shown = run._repr_html_()
    assert "normal against lesion" in shown and "<td>AUROC</td>" in shown and "95% interval" in shown


def test_a_run_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        medtl.load_run(tmp_path)
    assert caught.value.code == "run-missing"


def test_a_recipe_can_be_given_as_an_object_with_overrides(home: Path, tmp_path: Path) -> None:
    recipe = medtl.load_config("xray", overrides=jobs.SETTINGS)
    run = medtl.train(data=home / "studies", out=tmp_path / "run", config=recipe, seed=3)
    assert run.metrics["recipe"]["seed"] == 3
    assert [error.code for error in run.refusals] == []


@pytest.mark.parametrize(("modality", "words"), [(None, "no recipe is named"), ("ct", "'ct' is not known")])
def test_a_modality_is_needed_and_known(modality: str | None, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        medtl.train(modality, out=tmp_path / "run")  # type: ignore[arg-type]
    assert caught.value.code == "config-missing" and "xray or mri" in caught.value.fix
