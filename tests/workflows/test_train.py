"""The jobs behind the commands, as a Python user calls them."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medtl.config import RunConfig, load_config, sample_data
from medtl.data.manifest import load_manifest
from medtl.data.splits import read_splits
from medtl.data.task import TaskConfig
from medtl.errors import CheckpointError, LabelError, SplitError, TrainingError
from medtl.imaging.preprocessing import prepare_image
from medtl.imaging.reader import read_images
from medtl.inference.predictor import Prediction, predict
from medtl.training.checkpoint import load_checkpoint
from medtl.workflows import demo
from medtl.workflows.demo import localise_run
from medtl.workflows.evaluate import evaluate
from medtl.workflows.report import report_folder
from medtl.workflows.score import score_folder
from medtl.workflows.train import TrainOutcome, train_run
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
    evaluated = evaluate(tmp_path / "run", studies, out=tmp_path / "out", part="test")
    assert evaluated.evaluation.samples == 4


def test_a_part_that_is_empty_is_refused(
    outcome: TrainOutcome, studies: Path, tmp_path: Path, watcher: Recorder
) -> None:
    with pytest.raises(LabelError) as caught:
        evaluate(outcome.run.root, studies, out=tmp_path / "out", part="test")
    assert caught.value.code == "split-empty" and not (tmp_path / "out").exists()


def test_a_checkpoint_needs_nothing_but_images(
    outcome: TrainOutcome, studies: Path, tmp_path: Path, watcher: Recorder, own_home: Path
) -> None:
    rows: list[Prediction] = []
    score_folder(outcome.run.root, studies, tmp_path / "out", on_row=rows.append)
    images = read_images(studies / "images")
    moved = shutil.move(outcome.run.best, tmp_path / "elsewhere")
    for gone in (outcome.run.root, studies, own_home):
        shutil.rmtree(gone)
    checkpoint = load_checkpoint(moved)
    prepared = [prepare_image(image, checkpoint.preprocessing).pixels for image in images]
    again = predict(checkpoint, torch.from_numpy(np.stack(prepared)))
    assert len(again) == 24
    for before, after in zip(rows, again, strict=True):
        assert after == pytest.approx(before.probabilities, abs=1e-6)


def test_provenance_holds_counts_and_versions_and_no_place(outcome: TrainOutcome, tmp_path: Path) -> None:
    provenance = load_checkpoint(outcome.run.root).header.provenance
    assert provenance["samples"] == "16 train, 8 val" and provenance["patients"] == "8 train, 4 val"
    assert {"torch", "monai", "python", "seed"} <= provenance.keys()
    assert str(tmp_path) not in " ".join(provenance.values())


def test_scoring_and_reporting_count_alike(
    outcome: TrainOutcome, studies: Path, tmp_path: Path, watcher: Recorder
) -> None:
    (studies / "images/000.png").write_bytes(b"")
    scored = score_folder(outcome.run.root, studies, tmp_path / "scores")
    reported = report_folder(outcome.run.root, tmp_path / "scores", tmp_path / "report", watcher=watcher)
    assert (reported.studies, reported.refused) == (scored.scored, scored.refused) == (23, 1)
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

    def load(modality: str, config: None, overrides: tuple[str, ...]) -> RunConfig:
        return load_config(modality, config, (*overrides, *tiny[modality]))

    monkeypatch.setattr("medtl.workflows.train.load_config", load)
    for tour in demo.run_demo(tmp_path):
        assert tour.scored > 0 and 0 <= tour.correct <= tour.scored
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
        evaluate(outcome.run.root, studies, out=tmp_path / "out")
    assert caught.value.code == "run-unfinished"


def test_scores_of_another_model_are_not_reported(
    outcome: TrainOutcome, studies: Path, tmp_path: Path
) -> None:
    score_folder(outcome.run.root, studies, tmp_path / "scores")
    record = tmp_path / "scores" / "scores.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "model_sha256": "another"}))
    with pytest.raises(CheckpointError) as caught:
        report_folder(outcome.run.root, tmp_path / "scores", tmp_path / "pages")
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
        report_folder(outcome.run.root, studies, tmp_path / "pages")
    assert caught.value.code == "checkpoint-damaged"


def write_anonymous(folder: Path, originals: Mapping[int, int], count: int = 24) -> Path:
    """Write images without patient ids; `originals` names those that are another one, brightened."""
    rows = []
    for row in range(count):
        pixels = jobs.draw(originals.get(row, row), row % 2, (48, 48))
        gamma = 0.7 + row / 100 if row in originals else 1.0
        jobs.write_png(folder / f"{row:03d}.png", (255 * (pixels / 255) ** gamma).astype(np.uint8))
        rows.append({"path": f"{row:03d}.png", "label": ("normal", "lesion")[row % 2]})
    jobs.write_labels(folder, rows)
    return folder


def parts_by_name(data: Path, run: Path) -> dict[str, str]:
    """Return the part of each image of a run."""
    rows = read_splits(run / "splits.csv")
    samples = load_manifest(data, None, TaskConfig()).samples
    return {s.series.path.stem: rows[s.sample_id].split for s in samples if s.sample_id in rows}


COPIES = {row: row % 4 for row in range(8, 24, 4)} | {row: row % 4 for row in range(9, 24, 4)}


def test_near_duplicates_without_patient_ids_stay_together(tmp_path: Path, watcher: Recorder) -> None:
    data = write_anonymous(tmp_path / "data", COPIES)
    outcome = train_run(data, None, tmp_path / "run", recipe(), watcher)
    parts = parts_by_name(data, outcome.run.root)
    for first in (0, 1):
        copies = {parts[f"{row:03d}"] for row, original in COPIES.items() if original == first}
        assert copies == {parts[f"{first:03d}"]}
    assert any("near-duplicates: 10 images in 2 groups of up to 5" in text for _, text in watcher.notes)
    assert not [text for label, text in watcher.notes if label == "leak"]
    assert any("24 samples of 16 patients" in text for _, text in watcher.notes)
    assert watcher.steps["comparing"][-1] == (24, 24)


def test_near_duplicates_that_are_ignored_may_lie_on_both_sides(tmp_path: Path, watcher: Recorder) -> None:
    data = write_anonymous(tmp_path / "data", COPIES)
    for policy, told in (("warn", True), ("ignore", False)):
        watcher.notes.clear()
        settings = recipe(f"split.near_duplicates={policy}")
        train_run(data, None, tmp_path / policy, settings, watcher)
        parts = parts_by_name(data, tmp_path / policy)
        assert {parts["000"], *(parts[f"{row:03d}"] for row in COPIES if row % 2 == 0)} == {"train", "val"}
        leaks = [text for label, text in watcher.notes if label == "leak"]
        assert bool(leaks) == told
        assert all("have a near-duplicate in training" in text for text in leaks)


def test_a_grouped_run_is_resumed_to_the_same_bits(tmp_path: Path, watcher: Recorder) -> None:
    data = write_anonymous(tmp_path / "data", COPIES)
    config = recipe("split.folds=3", "split.fold=1")
    first = train_run(data, None, tmp_path / "run", config, watcher)
    before = load_checkpoint(first.run.root).sha256
    again = train_run(data, None, tmp_path / "run", config, watcher, resume=True)
    assert load_checkpoint(again.run.root).sha256 == before
    jobs.write_png(data / "023.png", jobs.draw(999, 1, (48, 48)))
    with pytest.raises(TrainingError, match="run-changed"):
        train_run(data, None, tmp_path / "run", config, watcher, resume=True)


def test_near_duplicates_that_leave_a_class_one_patient_are_refused(
    tmp_path: Path, watcher: Recorder
) -> None:
    data = write_anonymous(tmp_path / "data", dict.fromkeys(range(3, 24, 2), 1))
    with pytest.raises(SplitError) as caught:
        train_run(data, None, tmp_path / "run", recipe(), watcher)
    assert caught.value.code == "class-too-small"
    assert "near-duplicates count as one patient" in str(caught.value)
    assert "near_duplicates=warn" in caught.value.fix
    assert not (tmp_path / "run/splits.csv").exists()


def test_a_class_that_cannot_be_read_is_refused_with_the_first_reason(
    studies: Path, tmp_path: Path, watcher: Recorder
) -> None:
    for row in range(24):
        if row // 2 % 2:
            path = studies / f"images/{row:03d}.png"
            path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(SplitError) as caught:
        train_run(studies, None, tmp_path / "run", recipe(), watcher)
    assert caught.value.code == "class-too-small" and "12 inputs cannot be read" in caught.value.reason
    assert "raster-damaged" in caught.value.fix


def test_what_cannot_be_split_is_refused_before_anything_is_read(
    studies: Path, tmp_path: Path, watcher: Recorder
) -> None:
    with pytest.raises(SplitError, match="one for each fold"):
        train_run(studies, None, tmp_path / "run", recipe("split.folds=9"), watcher)
    assert "reading" not in watcher.steps


def test_folds_take_turns_in_validation(studies: Path, tmp_path: Path, watcher: Recorder) -> None:
    held_out: list[str] = []
    for fold in range(3):
        config = recipe("split.folds=3", f"split.fold={fold}")
        outcome = train_run(studies, None, tmp_path / str(fold), config, watcher)
        rows = read_splits(outcome.run.splits)
        held_out += [name for name, row in rows.items() if row.split == "val"]
        provenance = load_checkpoint(outcome.run.root).header.provenance
        assert provenance["split"] == f"val is fold {fold} of 0 to 2"
    assert sorted(held_out) == sorted(rows)
    assert any("(val is fold 1 of 0 to 2)" in text for _, text in watcher.notes)
