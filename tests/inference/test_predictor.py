"""Scoring: the same number for the same image whatever lies beside it, and a row for every input."""

import csv
import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from medtl.data.naming import sample_key
from medtl.data.task import Task
from medtl.errors import CheckpointError, OutputError
from medtl.imaging.augmentation import AugmentationConfig
from medtl.imaging.preprocessing import PreprocessingConfig
from medtl.imaging.reader import scan
from medtl.inference.predictor import Prediction, predicted_class, score_batch, score_series, write_scores
from medtl.training.checkpoint import Checkpoint, CheckpointHeader, describe_classifier

Make = Callable[..., Checkpoint]
BINARY = Task("binary", ("normal", "lesion"))


@pytest.fixture
def make_checkpoint(make_classifier: Callable, tmp_path: Path) -> Make:
    """Return a builder of a checkpoint with a seeded, untrained classifier."""

    def build(task: Task = BINARY, thresholds: tuple[float, ...] | None = None) -> Checkpoint:
        classifier = make_classifier(task).eval()
        header = CheckpointHeader(
            **describe_classifier(classifier, 0.2),
            preprocessing=PreprocessingConfig(size=(32, 32)),
            augmentation=AugmentationConfig(),
            schedule=(),
            thresholds=thresholds,
        )
        return Checkpoint(classifier, header, tmp_path)

    return build


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images, and one that is empty."""
    place = tmp_path / "studies"
    place.mkdir()
    for row in range(5):
        pixels = np.random.default_rng(row).integers(0, 50 * (row + 1), (30, 26)).astype(np.uint8)
        PillowImage.fromarray(pixels).save(place / f"{row}.png")
    (place / "1-empty.png").write_bytes(b"")
    return place


def rows_of(checkpoint: Checkpoint, folder: Path, batch_size: int = 16) -> list[Prediction]:
    """Score a folder."""
    return [scored.prediction for scored in score_series(checkpoint, scan(folder), folder, batch_size)]


def test_refusals_come_first_and_series_follow_in_order(make_checkpoint: Make, folder: Path) -> None:
    rows = rows_of(make_checkpoint(), folder)
    assert [row.source for row in rows] == ["1-empty.png", *(f"{row}.png" for row in range(5))]
    assert [row.status for row in rows] == ["refused"] + ["scored"] * 5
    assert rows[0].code == "file-empty" and rows[0].reason and rows[0].fix and rows[0].probabilities == ()


def test_probabilities_do_not_depend_on_the_batch(make_checkpoint: Make, folder: Path) -> None:
    checkpoint = make_checkpoint()
    one, two, all_at_once = (rows_of(checkpoint, folder, size) for size in (1, 2, 16))
    for a, b, c in zip(one, two, all_at_once, strict=True):
        assert a.source == b.source == c.source
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-6)
        assert a.probabilities == pytest.approx(c.probabilities, abs=1e-6)
    assert len({row.probabilities for row in one if row.status == "scored"}) == 5


def test_an_image_that_the_model_does_not_take_is_refused(make_checkpoint: Make, folder: Path) -> None:
    from medtl.imaging.image import Image, ImageFacts

    volume = Image(np.zeros((1, 4, 8, 8), np.float32), np.eye(4), (1.0, 1.0, 1.0), ImageFacts("v", "nifti"))
    series = scan(folder).series[:1]
    (scored,) = score_batch(make_checkpoint(), series, folder, read=lambda _: volume)
    assert (scored.prediction.status, scored.prediction.code) == ("refused", "image-dimensions")


def test_a_damaged_image_does_not_move_its_neighbours(make_checkpoint: Make, folder: Path) -> None:
    checkpoint = make_checkpoint()
    before = {row.source: row for row in rows_of(checkpoint, folder, 16)}
    damaged = folder / "2.png"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    after = {row.source: row for row in rows_of(checkpoint, folder, 16)}
    assert after["2.png"].status == "refused" and after["2.png"].sample_id == before["2.png"].sample_id
    for name in ("0.png", "1.png", "3.png", "4.png"):
        assert after[name].probabilities == pytest.approx(before[name].probabilities, abs=1e-6)


@pytest.mark.parametrize(
    ("thresholds", "probability", "expected"),
    [(None, 0.49, "normal"), (None, 0.5, "lesion"), ((0.2,), 0.2, "lesion"), ((0.8,), 0.79, "normal")],
)
def test_binary_is_cut_at_its_threshold(
    thresholds: tuple[float, ...] | None, probability: float, expected: str, make_checkpoint: Make
) -> None:
    checkpoint = make_checkpoint(thresholds=thresholds)
    assert predicted_class(checkpoint, np.array([1 - probability, probability])) == expected


def test_multiclass_is_the_most_probable(make_checkpoint: Make) -> None:
    checkpoint = make_checkpoint(Task("multiclass", ("a", "b", "c")))
    assert predicted_class(checkpoint, np.array([0.2, 0.5, 0.3])) == "b"


def test_multilabel_is_every_class_above_its_own_threshold(make_checkpoint: Make) -> None:
    checkpoint = make_checkpoint(Task("multilabel", ("a", "b", "c")), thresholds=(0.1, 0.9, 0.5))
    assert predicted_class(checkpoint, np.array([0.2, 0.8, 0.5])) == "a|c"
    assert predicted_class(checkpoint, np.array([0.05, 0.8, 0.4])) == ""


def test_multilabel_probabilities_need_not_sum_to_one(make_checkpoint: Make, folder: Path) -> None:
    rows = rows_of(make_checkpoint(Task("multilabel", ("a", "b", "c"))), folder)
    sums = [sum(row.probabilities) for row in rows if row.status == "scored"]
    assert len(sums) == 5 and not any(total == pytest.approx(1, abs=1e-3) for total in sums)


def test_keys_depend_on_the_salt_and_show_no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sample_key("canary/a.png")
    assert before == sample_key("canary/a.png") != sample_key("canary/b.png")
    assert "canary" not in before
    monkeypatch.setenv("MEDTL_SALT", "another")
    assert sample_key("canary/a.png") != before


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@sum", "\tx", "\rx"])
def test_formulas_are_quoted(text: str, tmp_path: Path) -> None:
    assert written_source(text, tmp_path) == "'" + text


@pytest.mark.parametrize("text", ["a=1", "images/0.png", "1-2", "é.png", "a'b"])
def test_other_text_is_left_alone(text: str, tmp_path: Path) -> None:
    assert written_source(text, tmp_path) == text


def written_source(source: str, folder: Path) -> str:
    """Return what the table says of a source."""
    write_scores(folder / "scores.csv", ("a", "b"), [Prediction("s1", source, "refused", "file-empty")])
    with (folder / "scores.csv").open(newline="", encoding="utf-8") as file:
        return next(csv.DictReader(file))["source"]


def test_the_table_reads_back_as_it_was_written(tmp_path: Path) -> None:
    rows = [
        Prediction("s1", 'a "b", c\nd.png', "scored", predicted="lesion", probabilities=(0.25, 0.75)),
        Prediction("s2", "=b.png", "refused", "file-empty", "has no bytes", "copy it again"),
    ]
    write_scores(tmp_path / "out/scores.csv", ("normal", "=lesion"), rows)
    with (tmp_path / "out/scores.csv").open(newline="", encoding="utf-8") as file:
        header, first, second = list(csv.reader(file))
    assert header == [
        "sample_id",
        "source",
        "status",
        "code",
        "reason",
        "predicted",
        "p_normal",
        "p_=lesion",
        "set",
        "ood",
    ]
    assert first == ["s1", 'a "b", c\nd.png', "scored", "", "", "lesion", "0.250000", "0.750000", "", ""]
    assert second == ["s2", "'=b.png", "refused", "file-empty", "has no bytes", "", "", "", "", ""]


def test_a_table_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    table = tmp_path / "scores.csv"
    write_scores(table, ("a", "b"), [])
    before = table.read_bytes()
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OutputError):
        write_scores(table, ("a", "b"), [Prediction("s1", "a.png", "refused", "file-empty")])
    assert table.read_bytes() == before and list(tmp_path.iterdir()) == [table]


def test_weights_that_give_no_numbers_are_an_error(make_checkpoint: Make, folder: Path) -> None:
    checkpoint = make_checkpoint()
    with torch.no_grad():
        next(checkpoint.classifier.head.parameters()).fill_(float("nan"))
    with pytest.raises(CheckpointError) as caught:
        rows_of(checkpoint, folder)
    assert caught.value.code == "scores-invalid"


def test_a_constant_image_is_scored_with_a_warning(make_checkpoint: Make, tmp_path: Path) -> None:
    blank = tmp_path / "blank.png"
    PillowImage.fromarray(np.full((30, 26), 7, np.uint8)).save(blank)
    (scored,) = score_series(make_checkpoint(), scan(blank), tmp_path)
    assert (scored.prediction.status, scored.prediction.code) == ("scored", "image-constant")


def test_a_lenient_checkpoint_takes_any_modality(make_checkpoint: Make) -> None:
    strict = make_checkpoint()
    narrow = strict.preprocessing.model_copy(update={"modalities": ("MR",), "body_parts": ("BRAIN",)})
    strict = replace(strict, header=strict.header.model_copy(update={"preprocessing": narrow}))
    lenient = strict.for_any_modality()
    assert lenient.preprocessing.modalities is None and lenient.preprocessing.body_parts is None
    assert strict.preprocessing.modalities == ("MR",)
