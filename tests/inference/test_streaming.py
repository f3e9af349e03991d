"""Scoring streams: rows depend on nothing but their image, what is known is kept, and memory stays flat."""

import os
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from medtl.core.journal import open_journal
from medtl.core.progress import StoppedError
from medtl.data.task import Task
from medtl.errors import CheckpointError, ConfigError, TrainingError
from medtl.imaging.augmentation import AugmentationConfig
from medtl.imaging.preprocessing import PreprocessingConfig
from medtl.imaging.reader import scan
from medtl.imaging.series import Series
from medtl.inference import predictor
from medtl.inference.ensemble import LARGEST_BATCH, Ensemble, make_ensemble
from medtl.inference.predictor import Forward, Prediction, score_series
from medtl.inference.streaming import Scoring
from medtl.training.checkpoint import Checkpoint, CheckpointHeader, TensorFile, describe_classifier

Make = Callable[..., Checkpoint]


@pytest.fixture
def make_checkpoint(make_classifier: Callable, tmp_path: Path) -> Make:
    """Return a builder of a tiny checkpoint whose weights are shifted by `shift`."""

    def build(shift: float = 0.0, task: Task | None = None, **header: object) -> Checkpoint:
        classifier = make_classifier(task, dropout=0.0).eval()
        with torch.no_grad():
            classifier.head.linear.weight.add_(shift)
        values = {
            **describe_classifier(classifier, 0.0),
            "preprocessing": PreprocessingConfig(size=(32, 32)),
            "augmentation": AugmentationConfig(),
            "schedule": (),
            "tensors": {"model": TensorFile(file="model", sha256=f"weights {shift}")},
            **header,
        }
        return Checkpoint(classifier, CheckpointHeader(**values), tmp_path)

    return build


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven images, the second and the last of them damaged."""
    return draw_folder(tmp_path / "studies", 11, bad=(1, 10))


def draw_folder(root: Path, count: int, bad: tuple[int, ...] = ()) -> Path:
    root.mkdir()
    for index in range(count):
        path = root / f"{index:04d}.png"
        pixels = np.random.default_rng(index).integers(0, 255, (30 + index % 7, 26), np.uint8)
        Picture.fromarray(pixels).save(path)
        if index in bad:
            path.write_bytes(path.read_bytes()[:-40])
    return root


def score(
    ensemble: Ensemble, folder: Path, out: Path, workers: int = 1, stop: Callable[[], bool] = lambda: False
) -> tuple[list[Prediction], int]:
    """Score a folder into a journal; return its rows and how many units were scored for them."""
    found = scan(folder)
    with open_journal(out) as journal:
        journal.open_for(ensemble.facts)
        scoring = Scoring(ensemble, folder, journal, workers=workers, stop=stop)
        units = scoring.unscored(found, try_again=True)
        for _ in scoring.stream(units):
            pass
        return list(scoring.rows(found)), len(units)


def test_rows_are_those_of_score_series(make_checkpoint: Make, folder: Path, tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    rows, scored = score(make_ensemble([checkpoint]), folder, tmp_path / "out")
    before = [scored.prediction for scored in score_series(checkpoint, scan(folder), folder)]
    assert scored == 11 and len(rows) == len(before) == 11
    for row, other in zip(rows, before, strict=True):
        assert replace(row, probabilities=()) == replace(other, probabilities=())
        assert row.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_rows_are_the_same_to_the_bit_from_children(
    make_checkpoint: Make, folder: Path, tmp_path: Path
) -> None:
    ensemble = make_ensemble([make_checkpoint()])
    alone, _ = score(ensemble, folder, tmp_path / "alone", workers=1)
    together, _ = score(ensemble, folder, tmp_path / "together", workers=3)
    assert alone == together


def test_a_row_does_not_depend_on_its_neighbours(make_checkpoint: Make, folder: Path, tmp_path: Path) -> None:
    ensemble = make_ensemble([make_checkpoint()])
    rows, _ = score(ensemble, folder, tmp_path / "all")
    by_source = {row.source: row for row in rows}
    for name in ("0000.png", "0003.png", "0009.png"):
        lone = tmp_path / f"lone {name}"
        lone.mkdir()
        shutil.copy(folder / name, lone)
        assert score(ensemble, lone, tmp_path / f"out {name}")[0] == [by_source[name]]


def test_what_came_new_or_was_changed_is_all_that_is_scored(
    make_checkpoint: Make, folder: Path, tmp_path: Path
) -> None:
    ensemble, out = make_ensemble([make_checkpoint()]), tmp_path / "out"
    before = {row.source: row for row in score(ensemble, folder, out)[0]}
    shutil.copy(folder / "0002.png", folder / "0003.png")
    shutil.copy(folder / "0004.png", folder / "0002a.png")
    (folder / "0005.png").unlink()
    rows, scored = score(ensemble, folder, out)
    after = {row.source: row for row in rows}
    assert scored == 2 and len(rows) == 11 and "0005.png" not in after
    assert after["0003.png"].probabilities == before["0002.png"].probabilities
    assert after["0002a.png"].probabilities == before["0004.png"].probabilities
    assert [row.source for row in rows] == sorted(after)


def test_a_copy_of_the_folder_keeps_its_rows_by_content(
    make_checkpoint: Make, folder: Path, tmp_path: Path
) -> None:
    ensemble, out = make_ensemble([make_checkpoint()]), tmp_path / "out"
    before, _ = score(ensemble, folder, out)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
        os.utime(copy / path.name, (1, 1))
    after, scored = score(ensemble, copy, out)
    assert scored == 2  # the refused ones: their content was never known
    assert [row.probabilities for row in after] == [row.probabilities for row in before]
    assert score(ensemble, copy, out)[1] == 0


def test_a_refusal_that_may_pass_is_tried_again(make_checkpoint: Make, folder: Path, tmp_path: Path) -> None:
    ensemble, found, out = make_ensemble([make_checkpoint()]), scan(folder), tmp_path / "out"
    path = folder / "0004.png"
    away = path.rename(tmp_path / "away.png")
    with open_journal(out) as journal:
        journal.open_for(ensemble.facts)
        scoring = Scoring(ensemble, folder, journal, workers=1)
        scoring.score(found)
        codes = {row.source: row.code for row in scoring.rows(found)}
    assert codes["0004.png"] == "file-missing"
    away.rename(path)
    rows, scored = score(ensemble, folder, out)
    assert scored == 1 and {row.source: row.status for row in rows}["0004.png"] == "scored"


def test_another_model_threshold_or_precision_scores_again(
    make_checkpoint: Make, folder: Path, tmp_path: Path
) -> None:
    first = make_ensemble([make_checkpoint()])
    others = [
        make_ensemble([make_checkpoint(shift=0.5)]),
        make_ensemble([make_checkpoint(thresholds=(0.3,))]),
        make_ensemble([make_checkpoint(preprocessing=PreprocessingConfig(size=(32, 40)))]),
        first.with_precision("bf16"),
    ]
    for ensemble in [first, *others]:
        assert score(ensemble, folder, tmp_path / "out")[1] == 11
    for ensemble in [first, *others]:
        assert score(ensemble, folder, tmp_path / "out")[1] == 0


def test_a_stop_keeps_whole_batches_and_the_next_run_does_the_rest(
    make_checkpoint: Make, folder: Path, tmp_path: Path
) -> None:
    ensemble, out = make_ensemble([make_checkpoint()]), tmp_path / "out"
    whole, _ = score(ensemble, folder, tmp_path / "whole")
    with pytest.raises(StoppedError) as caught:
        score(ensemble, folder, out, stop=lambda: True)
    assert "run the same command to resume" in str(caught.value)
    rows, scored = score(ensemble, folder, out)
    assert scored == 11 - LARGEST_BATCH and rows == whole


def test_a_stop_after_the_last_batch_is_none(make_checkpoint: Make, folder: Path, tmp_path: Path) -> None:
    asked = iter([False, False, True])
    rows, _ = score(make_ensemble([make_checkpoint()]), folder, tmp_path / "out", stop=lambda: next(asked))
    assert len(rows) == 11


@pytest.mark.parametrize("stopping", [False, True])
def test_a_child_that_is_killed_is_one_error(
    stopping: bool, make_checkpoint: Make, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, parent = predictor.read_series, os.getpid()

    def die(series: Series) -> object:
        if series.path.name == "0006.png" and os.getpid() != parent:
            os.kill(os.getpid(), 9)
        return read(series)

    monkeypatch.setattr(predictor, "read_series", die)
    ensemble, out = make_ensemble([make_checkpoint()]), tmp_path / "out"
    asked = iter([False] * stopping)
    with pytest.raises(TrainingError) as caught:
        score(ensemble, folder, out, 2, stop=lambda: stopping and next(asked, True))
    assert caught.value.code == ("interrupted" if stopping else "worker-lost")
    assert len(score(ensemble, folder, out)[0]) == 11


def test_weights_that_give_no_numbers_are_one_error_from_children_too(
    make_checkpoint: Make, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as caught:
        score(make_ensemble([make_checkpoint(shift=float("nan"))]), folder, tmp_path / "out", workers=2)
    assert caught.value.code == "scores-invalid"


def test_the_mean_of_several_runs_is_that_of_their_probabilities(
    make_checkpoint: Make, folder: Path, tmp_path: Path
) -> None:
    members = [make_checkpoint(thresholds=(0.2,)), make_checkpoint(0.7, thresholds=(0.6,))]
    apart = [score(make_ensemble([one]), folder, tmp_path / f"{one.sha256}")[0] for one in members]
    together = make_ensemble(members)
    rows, _ = score(together, folder, tmp_path / "together")
    assert together.lead.header.thresholds == pytest.approx((0.4,))
    for first, second, row in zip(*apart, rows, strict=True):
        assert row.status == first.status and row.prediction_set == ""
        if row.status == "scored":
            mean = np.mean([first.probabilities, second.probabilities], axis=0)
            assert row.probabilities == pytest.approx(tuple(mean))
            assert row.predicted == ("normal", "lesion")[int(mean[1] >= 0.4)]


def test_a_study_is_read_once_for_all_members(
    make_checkpoint: Make, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, seen = predictor.read_series, []

    def counting(series: Series) -> object:
        seen.append(series.path.name)
        return read(series)

    monkeypatch.setattr(predictor, "read_series", counting)
    score(make_ensemble([make_checkpoint(), make_checkpoint(0.7)]), folder, tmp_path / "out")
    assert sorted(seen) == [f"{index:04d}.png" for index in range(11)]


@pytest.mark.parametrize(
    "task", [Task("binary", ("normal", "other")), Task("multilabel", ("normal", "lesion"))]
)
def test_runs_of_other_classes_are_not_ensembled(task: Task, make_checkpoint: Make) -> None:
    with pytest.raises(CheckpointError) as caught:
        make_ensemble([make_checkpoint(), make_checkpoint(task=task)])
    assert caught.value.code == "ensemble-mixed"


def test_runs_that_ask_something_else_of_the_readers_are_not_ensembled(make_checkpoint: Make) -> None:
    first, other = make_checkpoint(), make_checkpoint()
    asked = other.preprocessing.model_copy(update={"fill_nan": True})
    other = replace(other, header=other.header.model_copy(update={"preprocessing": asked}))
    with pytest.raises(CheckpointError, match="other options of reading"):
        make_ensemble([first, other])


def test_mirror_images_are_averaged_where_training_saw_them(make_checkpoint: Make, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(augmentation=AugmentationConfig(flip=True))
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 255, (32, 32), np.uint8)
        for name, drawn in (("seen", pixels), ("mirrored", pixels[:, ::-1])):
            (tmp_path / name).mkdir(exist_ok=True)
            Picture.fromarray(drawn).save(tmp_path / name / f"{index}.png")
    plain, _ = score(make_ensemble([checkpoint]), tmp_path / "seen", tmp_path / "plain")
    ensemble = make_ensemble([checkpoint], flips=True)
    rows, _ = score(ensemble, tmp_path / "seen", tmp_path / "both")
    mirrored, _ = score(ensemble, tmp_path / "mirrored", tmp_path / "both of mirrored")
    for one, other, without in zip(rows, mirrored, plain, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        assert one.probabilities != pytest.approx(without.probabilities, abs=1e-4)


def test_mirror_images_that_training_never_saw_are_refused(make_checkpoint: Make) -> None:
    with pytest.raises(ConfigError) as caught:
        make_ensemble([make_checkpoint()], flips=True)
    assert caught.value.code == "config-value" and "--tta" in str(caught.value)
    mixed = [make_checkpoint(), make_checkpoint(augmentation=AugmentationConfig(flip=True))]
    assert [how.flips for how in make_ensemble(mixed, flips=True).forwards] == [False, True]


def test_bf16_differs_from_fp32_and_hardly(make_checkpoint: Make, folder: Path, tmp_path: Path) -> None:
    ensemble = make_ensemble([make_checkpoint()])
    plain, _ = score(ensemble, folder, tmp_path / "fp32")
    short, _ = score(ensemble.with_precision("bf16"), folder, tmp_path / "bf16")
    differ = [one.probabilities != other.probabilities for one, other in zip(plain, short, strict=True)]
    assert any(differ)
    for one, other in zip(plain, short, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=0.02)


def test_forward_is_plain_unless_told() -> None:
    assert Forward() == Forward("fp32", flips=False, batch_size=0)


def peak_bytes(ensemble: Ensemble, folder: Path, out: Path) -> int:
    """Return the most that Python and NumPy held while the rows of a scanned folder were made and read."""
    found = scan(folder)
    with open_journal(out) as journal:
        journal.open_for(ensemble.facts)
        scoring = Scoring(ensemble, folder, journal, workers=1)
        units = scoring.unscored(found, try_again=True)
        tracemalloc.start()
        try:
            for _ in scoring.stream(units):
                pass
            assert sum(1 for _ in scoring.rows(found)) == len(units)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


def test_memory_is_flat_in_the_number_of_studies(make_checkpoint: Make, tmp_path: Path) -> None:
    ensemble = make_ensemble([make_checkpoint()])
    few, many = draw_folder(tmp_path / "few", 20), draw_folder(tmp_path / "many", 200)
    peak_bytes(ensemble, few, tmp_path / "warm")
    small = peak_bytes(ensemble, few, tmp_path / "small")
    large = peak_bytes(ensemble, many, tmp_path / "large")
    assert large - small < 180 * 1000, (small, large)  # bytes: what a Path remembers of itself
