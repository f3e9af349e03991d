"""The jobs behind the commands, as a Python user calls them."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medtl import demo
from medtl.config import RunConfig, load_config
from medtl.errors import CheckpointError, LabelError
from medtl.imaging import read_images
from medtl.imaging.manifest import TaskConfig, load_manifest
from medtl.imaging.splits import read_splits
from medtl.learning.checkpoint import load_checkpoint
from medtl.prediction.scoring import score_images
from medtl.runs import (
    TrainOutcome,
    evaluate_run,
    localise_run,
    report_run,
    sample_data,
    score_run,
    train_run,
)
from tests.cli import jobs


class Recorder:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, str]] = []
        self.stages: list[tuple[int, int, str]] = []
        self.epochs: list[Mapping[str, Any]] = []
        self.steps: dict[str, list[tuple[int, int]]] = {}

    def note(self, label: str, text: str) -> None:
        self.notes.append((label, text))

    def stage(self, number: int, of: int, stage: Any, plan: Any) -> None:
        self.stages.append((number, of, stage.name))

    def progress(self, what: str, done: int, total: int) -> None:
        self.steps.setdefault(what, []).append((done, total))

    def epoch(self, row: Mapping[str, Any]) -> None:
        self.epochs.append(row)


def recipe(*overrides: str) -> RunConfig:
    """Return the tiny recipe."""
    return load_config("xray", None, (*jobs.SETTINGS, *overrides))


@pytest.fixture
def watcher() -> Recorder:
    """A watcher."""
    return Recorder()


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """A folder of labelled PNGs."""
    return jobs.write_images(tmp_path / "studies")


@pytest.fixture
def outcome(studies: Path, tmp_path: Path, watcher: Recorder) -> TrainOutcome:
    """A run that was trained on them."""
    return train_run(studies, None, tmp_path / "run", recipe(), watcher)


def test_training_tells_the_watcher_of_every_stage_epoch_and_file(
    outcome: TrainOutcome, watcher: Recorder
) -> None:
    assert watcher.stages == [(1, 2, "head"), (2, 2, "all")]
    assert [row["stage"] for row in watcher.epochs] == ["head", "all"]
    assert watcher.steps["reading"][-1] == (24, 24)
    assert any("positive" in text for _, text in watcher.notes)


def test_training_returns_what_the_command_prints(outcome: TrainOutcome) -> None:
    assert outcome.refusals == () and len(outcome.plans) == 2
    assert outcome.evaluation.samples == 8 and outcome.evaluation.patients == 4
    assert outcome.seconds["total"] > 0


def test_a_prefix_is_computed_once_where_epochs_repeat_it(studies: Path, tmp_path: Path) -> None:
    watcher = Recorder()
    found = train_run(studies, None, tmp_path / "run", recipe("schedule.head_epochs=4"), watcher)
    assert [plan.cached for plan in found.plans] == [True, False]
    assert [row["cached"] for row in watcher.epochs] == [True] * 4 + [False]
    assert watcher.steps["frozen prefix"][-1][0] == watcher.steps["frozen prefix"][-1][1]


def test_a_split_of_the_table_is_kept(studies: Path, tmp_path: Path, watcher: Recorder) -> None:
    parts = ("train", "train", "val", "test")
    rows = jobs.read_rows(studies / "labels.csv")
    rows = [{**row, "split": parts[index // 2 // 2 % 4]} for index, row in enumerate(rows)]
    jobs.write_labels(studies, rows)
    train_run(studies, None, tmp_path / "run", recipe(), watcher)
    splits = [row.split for row in read_splits(tmp_path / "run/splits.csv").values()]
    assert [splits.count(part) for part in ("train", "val", "test")] == [16, 4, 4]
    evaluated = evaluate_run(tmp_path / "run", studies, None, tmp_path / "out", watcher, part="test")
    assert evaluated.evaluation.samples == 4


def test_a_part_that_is_empty_is_refused(
    outcome: TrainOutcome, studies: Path, tmp_path: Path, watcher: Recorder
) -> None:
    with pytest.raises(LabelError) as caught:
        evaluate_run(outcome.run.root, studies, None, tmp_path / "out", watcher, part="test")
    assert caught.value.code == "split-empty" and not (tmp_path / "out").exists()


def test_a_checkpoint_needs_nothing_but_images(
    outcome: TrainOutcome, studies: Path, tmp_path: Path, watcher: Recorder, own_home: Path
) -> None:
    rows = score_run(outcome.run.root, studies, tmp_path / "out", watcher).predictions
    images = read_images(studies / "images")
    moved = shutil.move(outcome.run.best, tmp_path / "elsewhere")
    for gone in (outcome.run.root, studies, own_home):
        shutil.rmtree(gone)
    again = score_images(load_checkpoint(moved), images)
    assert len(again) == 24
    for before, after in zip(rows, again, strict=True):
        assert after.probabilities == pytest.approx(before.probabilities, abs=1e-6)


def test_provenance_holds_counts_and_versions_and_no_place(outcome: TrainOutcome, tmp_path: Path) -> None:
    provenance = load_checkpoint(outcome.run.root).header.provenance
    assert provenance["samples"] == "16 train, 8 val" and provenance["patients"] == "8 train, 4 val"
    assert {"torch", "monai", "python", "seed"} <= provenance.keys()
    assert str(tmp_path) not in " ".join(provenance.values())


def test_scoring_and_reporting_count_alike(
    outcome: TrainOutcome, studies: Path, tmp_path: Path, watcher: Recorder
) -> None:
    (studies / "images/000.png").write_bytes(b"")
    scored = score_run(outcome.run.root, studies, tmp_path / "scores", watcher)
    reported = report_run(outcome.run.root, tmp_path / "scores", tmp_path / "report", watcher)
    refused = sum(row.status == "refused" for row in scored.predictions)
    assert (reported.studies, reported.refused) == (len(scored.predictions) - refused, refused) == (23, 1)
    assert scored.skipped == 1  # labels.csv
    assert watcher.steps["explaining"][-1] == (24, 24)


def test_maps_are_compared_with_the_masks_there_are(outcome: TrainOutcome, studies: Path) -> None:
    samples = load_manifest(studies, None, TaskConfig()).samples
    masks = {samples[0].sample_id: np.ones((24, 20)), samples[1].sample_id: np.zeros((24, 20))}
    rows = localise_run(outcome.run.root, samples, lambda sample: masks.get(sample.sample_id))
    assert len(rows) <= 1  # none at all where nothing raised the score
    for row in rows:
        assert row.energy == pytest.approx(1) and row.chance == 1 and row.hit


@pytest.mark.parametrize("modality", ["xray", "mri"])
def test_phantoms_have_labels(modality: str) -> None:
    assert (sample_data(modality) / "labels.csv").is_file()


def test_the_demo_tours_both_modalities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With tiny networks: that the tour holds together, not that it is right."""
    tiny = {"xray": jobs.SETTINGS, "mri": (*jobs.SETTINGS, *jobs.SETTINGS_3D)}

    def load(modality: str | None, file: Path | None, overrides: tuple[str, ...] = ()) -> RunConfig:
        return load_config(modality, file, (*overrides, *(tiny[modality] if modality else ())))

    monkeypatch.setattr(demo, "load_config", load)
    for tour in demo.run_demo(tmp_path, Recorder()):
        assert tour.scored > 0 and 0 <= tour.right <= tour.scored
        assert tour.report.is_file() and tour.evaluation.is_file()
        assert 0 <= tour.test["auroc"].value <= 1


def test_pixels_that_are_on_both_sides_are_told_and_count_as_training(
    studies: Path, tmp_path: Path, watcher: Recorder
) -> None:
    images = sorted(studies.rglob("*.png"))
    shutil.copy(images[0], images[1])
    outcome = train_run(studies, None, tmp_path / "run", recipe("split.val=0.5"), watcher)
    parts = {row.split for row in read_splits(outcome.run.splits).values()}
    assert parts == {"train", "val"}
    told = [text for label, text in watcher.notes if label == "leak"]
    rows = read_splits(outcome.run.splits)
    manifest = load_manifest(studies, None, TaskConfig())
    ends = {rows[s.sample_id].split for s in manifest.samples if s.series.path in (images[0], images[1])}
    assert bool(told) == (ends == {"train", "val"})


def test_a_run_that_was_not_finished_is_not_evaluated(
    outcome: TrainOutcome, studies: Path, tmp_path: Path
) -> None:
    header = outcome.run.best / "checkpoint.json"
    content = json.loads(header.read_text())
    header.write_text(json.dumps({**content, "thresholds": None}))
    with pytest.raises(CheckpointError) as caught:
        evaluate_run(outcome.run.root, studies, None, tmp_path / "out", Recorder())
    assert caught.value.code == "run-unfinished"


def test_scores_of_another_model_are_not_reported(
    outcome: TrainOutcome, studies: Path, tmp_path: Path
) -> None:
    score_run(outcome.run.root, studies, tmp_path / "scores", Recorder())
    record = tmp_path / "scores" / "scores.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "model_sha256": "another"}))
    with pytest.raises(CheckpointError) as caught:
        report_run(outcome.run.root, tmp_path / "scores", tmp_path / "pages", Recorder())
    assert caught.value.code == "run-changed"


@pytest.mark.parametrize("name", ["metrics.json", "history.csv"])
@pytest.mark.parametrize("content", ["", "{", "[]", "stage,epoch\na,b\n"])
def test_damaged_records_of_a_run_are_told(
    outcome: TrainOutcome, studies: Path, tmp_path: Path, name: str, content: str
) -> None:
    if name == "history.csv" and "," not in content:
        pytest.skip("has no row, so nothing is wrong in it")
    (outcome.run.root / name).write_text(content)
    with pytest.raises(CheckpointError) as caught:
        report_run(outcome.run.root, studies, tmp_path / "pages", Recorder())
    assert caught.value.code == "checkpoint-damaged"
