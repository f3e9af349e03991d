"""Scores of medtl 0.1.0, as they lie in tests/witness, are continued: valid rows are not scored again."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import torch

from medtl.core.journal import key_of
from medtl.data.task import Task
from medtl.evaluation.predictions import read_predictions
from tests.cli import jobs

WITNESS = Path(__file__).parents[1] / "witness" / "v0.1.0"
STUDIES = 12


@pytest.fixture(autouse=True)
def tiny_backbone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Register the network of the witness, and give it a home."""
    monkeypatch.setenv("MEDTL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MEDTL_SALT", "witness")


@pytest.fixture
def old_scores(tmp_path: Path) -> Path:
    """A copy of the scores, whose journal says that they come from this machine's torch and processor."""
    copy = Path(shutil.copytree(WITNESS / "scores", tmp_path / "scores"))
    with closing(sqlite3.connect(copy / "journal.sqlite")) as journal, journal:
        ((text,),) = journal.execute("select value from facts")
        here = {"torch": torch.__version__, "instructions": torch.backends.cpu.get_cpu_capability()}
        facts = {**json.loads(text), **here}
        journal.execute("update facts set key = ?, value = ?", (key_of(facts), json.dumps(facts)))
        assert journal.execute("update rows set judge = ?", (key_of(facts),)).rowcount == STUDIES
    return copy


def score(out: Path, *more: str) -> str:
    with jobs.tiny_backbones_registered():
        result = jobs.medtl("score", WITNESS / "run", WITNESS / "studies", "--out", out, *more)
    assert result.exit_code == 0, result.output
    return result.stdout


def without_ids(table: Path) -> list[str]:
    """Return a table's lines without the salted ids."""
    return [line.split(",", 1)[1] for line in table.read_text(encoding="utf-8").splitlines()]


def test_rows_that_are_valid_are_not_scored_again(old_scores: Path) -> None:
    before = without_ids(old_scores / "scores.csv")
    assert f"({STUDIES} rows were already there)" in score(old_scores)
    header, *rows = without_ids(old_scores / "scores.csv")
    assert header == before[0].replace(",screening", ",ood") and rows == before[1:]
    assert f"({STUDIES} rows were already there)" in score(old_scores), "the next time, too"
    facts = json.loads((old_scores / "scores.json").read_text())
    assert (facts["engine"], facts["precision"]) == ("torch", "fp32")


def test_rows_of_another_torch_are_scored_again(old_scores: Path) -> None:
    with closing(sqlite3.connect(old_scores / "journal.sqlite")) as journal, journal:
        journal.execute("update rows set judge = 'of another torch'")
    assert "rows were already there" not in score(old_scores)


def test_predictions_tables_of_old_runs_are_read() -> None:
    found = read_predictions(WITNESS / "run/predictions.csv", Task("binary", ("normal", "lesion")))
    assert len(found.sample_ids) == len(found.targets) == len(found.probabilities) > 0
