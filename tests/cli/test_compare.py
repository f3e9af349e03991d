"""medtl compare, and training on a budget of labels: from the command line to the page."""

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from medtl.training.checkpoint import load_checkpoint
from tests.cli import jobs
from tests.cli.conftest import Trained
from tests.report.pages import check_page, read_pages


@pytest.fixture(scope="module")
def ladder(studies: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four runs on one split: scratch and gradual, on 8 labels and on all 16."""
    root = tmp_path_factory.mktemp("ladder")
    with pytest.MonkeyPatch.context() as patch, jobs.tiny_backbones_registered():
        patch.setenv("MEDTL_HOME", str(root / "home"))
        patch.setenv("MEDTL_SALT", "test")
        return [
            train(studies, root / f"{schedule}-{budget}", budget, schedule)
            for schedule in ("scratch", "gradual")
            for budget in ("8", "")
        ]


def train(data: Path, run: Path, budget: str, schedule: str = "scratch") -> Path:
    more = ["--label-budget", budget] if budget else []
    result = jobs.train(data, run, "--seed", "3", *more, overrides=(f"schedule={schedule}",))
    assert result.exit_code == 0, result.output
    return run


def own(runs: Sequence[Path], tmp_path: Path) -> list[Path]:
    """Return copies of runs, to be damaged."""
    return [Path(shutil.copytree(run, tmp_path / run.name)) for run in runs]


def test_a_label_budget_is_recorded_and_the_rest_lies_idle(ladder: list[Path], studies: Path) -> None:
    metrics = json.loads((ladder[0] / "metrics.json").read_text())
    assert metrics["recipe"] == {
        "backbone": "tiny",
        "schedule": "scratch",
        "seed": 3,
        "label_budget": 8,
        "labels": 8,
        "labels_available": 16,
    }
    provenance = load_checkpoint(ladder[0]).header.provenance
    assert provenance["samples"] == "8 train, 8 val" and provenance["patients"] == "4 train, 4 val"
    assert provenance["label budget"] == "8" and provenance["seed"] == "3"
    splits = [(run / "splits.csv").read_text() for run in ladder]
    assert len(set(splits)) == 1, "training samples that lie idle are not unseen"


def test_more_labels_than_there_are_are_refused(studies: Path, tmp_path: Path) -> None:
    result = jobs.train(studies, tmp_path / "run", "--label-budget", "17")
    assert jobs.fault(result) == "label-budget" and "training has 16" in result.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("more", [("--label-budget", "0"), ("--label-budget", "x"), ("--seed", "x")])
def test_what_is_no_number_is_a_usage_error(more: tuple[str, str], studies: Path, tmp_path: Path) -> None:
    assert jobs.train(studies, tmp_path / "run", *more).exit_code == 2


def test_a_ladder_becomes_json_a_table_and_a_page(ladder: list[Path], tmp_path: Path) -> None:
    result = jobs.medtl("compare", *ladder, "--out", tmp_path, "--reference", "gradual-8")
    assert result.exit_code == 0, result.output
    assert "gradual-8" in result.stdout and "the reference" in result.stdout
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert [run["name"] for run in found["runs"]] == ["scratch-8", "scratch-", "gradual-8", "gradual-"]
    assert [bool(run["differences"]) for run in found["runs"]] == [True, True, False, True]
    assert found["counts"] == {"samples": 8, "patients": 4} and found["adjusted_for"] == 3
    assert [[p["labels"] for p in curve["points"]] for curve in found["curves"]] == [[8, 16], [8, 16]]
    first = found["runs"][0]
    kept = json.loads((ladder[0] / "metrics.json").read_text())["split"]["val"]
    assert first["metrics"]["auroc"] == kept["auroc"], "the same numbers as the run's own"
    with (tmp_path / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * len(first["metrics"])
    assert rows[0]["schedule"] == "scratch" and rows[0]["labels"] == "8" and rows[0]["seed"] == "3"
    page = read_pages(tmp_path)["comparison.html"]
    check_page(page, tmp_path / "comparison.html")
    assert (
        "gradual unfreezing, 16 labels, seed 3" in page.words and "metrics are too optimistic" in page.words
    )
    assert len(page.values("img", "src")) == 2


def test_evaluations_are_compared_as_runs_are(ladder: list[Path], studies: Path, tmp_path: Path) -> None:
    judged = [tmp_path / run.name for run in ladder[:2]]
    for run, out in zip(ladder, judged, strict=False):
        assert jobs.medtl("evaluate", run, "--data", studies, "--out", out).exit_code == 0
    result = jobs.medtl("compare", *judged, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["counts"]["samples"] == 8 and found["notes"] == []
    assert found["runs"][1]["recipe"]["labels"] == 16


def test_runs_on_other_samples_are_refused_unless_the_common_ones_are_asked_for(
    ladder: list[Path], tmp_path: Path
) -> None:
    runs = own(ladder[:2], tmp_path)
    table = runs[1] / "predictions.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:-1]))
    result = jobs.medtl("compare", *runs, "--out", tmp_path / "out")
    assert jobs.fault(result) == "runs-differ" and "1 of 8 samples" in result.stderr
    assert not (tmp_path / "out").exists()
    result = jobs.medtl("compare", *runs, "--out", tmp_path / "out", "--common", "--json")
    assert json.loads(result.stdout)["counts"]["samples"] == 7


def test_runs_on_other_labels_are_refused(ladder: list[Path], tmp_path: Path) -> None:
    runs = own(ladder[:2], tmp_path)
    table = runs[1] / "predictions.csv"
    table.write_text(table.read_text().replace(",lesion,", ",normal,", 1))
    result = jobs.medtl("compare", *runs, "--out", tmp_path / "out", "--common")
    assert jobs.fault(result) == "runs-differ" and "different labels" in result.stderr


def test_runs_of_other_tasks_are_refused(ladder: list[Path], tmp_path: Path) -> None:
    runs = own(ladder[:2], tmp_path)
    for name in ("metrics.json", "predictions.csv"):
        path = runs[1] / name
        path.write_text(path.read_text().replace("lesion", "other"))
    assert jobs.fault(jobs.medtl("compare", *runs, "--out", tmp_path / "out")) == "runs-differ"


def test_what_is_no_run_is_refused(ladder: list[Path], tmp_path: Path) -> None:
    def refused(*arguments: str | Path) -> str:
        return jobs.fault(jobs.medtl("compare", *arguments, "--out", tmp_path / "out"))

    absent, empty = tmp_path / "absent", tmp_path / "empty"
    empty.mkdir()
    assert refused(ladder[0], absent) == refused(ladder[0], empty) == "run-missing"
    assert refused(ladder[0], ladder[0]) == "config-value"
    assert refused(*ladder[:2], "--reference", "absent") == "config-value"
    (bare, damaged) = own(ladder[:2], tmp_path)
    (bare / "predictions.csv").unlink()
    assert refused(ladder[2], bare) == "predictions-missing"
    (damaged / "predictions.csv").write_bytes(b"\xff\x00")
    assert refused(ladder[2], damaged) == "checkpoint-damaged"
    (damaged / "metrics.json").write_text("[]")
    assert refused(ladder[2], damaged) == "checkpoint-damaged"
    (damaged / "metrics.json").write_text('{"task": {"kind": "binary"}}')
    assert refused(ladder[2], damaged) == "checkpoint-damaged"


def test_a_place_that_cannot_be_written_is_told_in_one_line(ladder: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = jobs.medtl("compare", *ladder[:2], "--out", tmp_path / "file" / "out")
    assert jobs.fault(result) == "output-unwritable"


def test_one_run_is_a_usage_error(ladder: list[Path], tmp_path: Path) -> None:
    assert jobs.medtl("compare", ladder[0], "--out", tmp_path / "out").exit_code == 2


def test_runs_without_a_recipe_are_compared_without_curves(
    ladder: list[Path], trained: Trained, tmp_path: Path
) -> None:
    runs = own(ladder[:2], tmp_path)
    for run in runs:
        metrics = json.loads((run / "metrics.json").read_text())
        del metrics["recipe"]
        (run / "metrics.json").write_text(json.dumps(metrics))
    result = jobs.medtl("compare", *runs, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["curves"] == []


def test_a_repeated_run_is_compared_and_counts_once_in_the_curves(ladder: list[Path], tmp_path: Path) -> None:
    (again,) = own([ladder[2]], tmp_path)
    result = jobs.medtl("compare", *ladder, again, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert len(found["runs"]) == 5
    assert [p["seeds"] for curve in found["curves"] for p in curve["points"]] == [1, 1, 1, 1]
    (note,) = [note for note in found["notes"] if "the learning curves leave it out" in note]
    assert note.count("gradual-8") == 2 and note in " ".join(result.stderr.split())
    result = jobs.medtl("compare", ladder[2], again, "--out", tmp_path / "out", "--json")
    assert not any("leave it out" in note for note in json.loads(result.stdout)["notes"]), "no curves"


def test_names_are_told_apart_and_run_nowhere(ladder: list[Path], tmp_path: Path) -> None:
    evil = "=cmd()<script>alert(1)<script>"
    for place, run in zip(("a", "b"), ladder, strict=False):
        shutil.copytree(run, tmp_path / place / evil)
    result = jobs.medtl("compare", tmp_path / "a" / evil, tmp_path / "b" / evil, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    page = read_pages(tmp_path / "out")["comparison.html"]
    assert "script" not in {tag for tag, _ in page.tags} and f"a/{evil}" in page.words
    run, third = tmp_path / "a" / evil, tmp_path / "third"
    shutil.copytree(ladder[2], third)
    assert jobs.medtl("compare", run, third, "--out", tmp_path / "out").exit_code == 0
    with (tmp_path / "out" / "comparison.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["run"] == "'" + evil


def test_neither_a_comparison_nor_a_checkpoint_tells_who_the_patients_are(
    ladder: list[Path], trained_3d: Trained, tmp_path: Path
) -> None:
    assert jobs.medtl("compare", *ladder, "--out", tmp_path).exit_code == 0
    kept = [*tmp_path.iterdir(), *(trained_3d.run / "checkpoints" / "best").iterdir()]
    assert len(kept) == 6, "two tensor files and a header, beside the comparison's three"
    for path in kept:
        assert b"canary" not in path.read_bytes().lower(), path.name
