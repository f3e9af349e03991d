"""Scoring goes in batches, names what it scored as the splits do, and holds no more than it must."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from medtl.data.manifest import load_manifest
from medtl.data.task import TaskConfig
from medtl.imaging.augmentation import AugmentationConfig
from medtl.imaging.image import Image, ImageFacts
from medtl.imaging.preprocessing import PreprocessingConfig
from medtl.imaging.reader import scan
from medtl.imaging.series import Series
from medtl.inference import predictor as scoring
from medtl.inference.predictor import score_batch, score_series
from medtl.training.checkpoint import Checkpoint, CheckpointHeader, describe_classifier


@pytest.fixture
def checkpoint(make_classifier: Callable, tmp_path: Path) -> Checkpoint:
    """A seeded, untrained classifier of 32 x 32 pixels."""
    classifier = make_classifier(dropout=0.0).eval()
    header = CheckpointHeader(
        **describe_classifier(classifier, 0.0),
        preprocessing=PreprocessingConfig(size=(32, 32)),
        augmentation=AugmentationConfig(),
        schedule=(),
    )
    return Checkpoint(classifier, header, tmp_path)


@pytest.fixture
def batch_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that reach the network."""
    sizes: list[int] = []
    predict = scoring.predict_features

    def counting(checkpoint: Checkpoint, images: torch.Tensor, *how: object) -> tuple[np.ndarray, np.ndarray]:
        sizes.append(len(images))
        return predict(checkpoint, images, *how)

    monkeypatch.setattr(scoring, "predict_features", counting)
    return sizes


def make_image(seed: int, shape: tuple[int, ...] = (1, 40, 30)) -> Image:
    pixels = np.random.default_rng(seed).random(shape, dtype=np.float32)
    return Image(pixels, None, None, ImageFacts(f"{seed}.png", "raster"))


def make_folder(root: Path, count: int = 5) -> Path:
    """PNG files of growing size, the second of them empty."""
    root.mkdir()
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 255, (10 + index, 20), np.uint8)
        Picture.fromarray(pixels).save(root / f"{index}.png")
    (root / "1.png").write_bytes(b"")
    return root


def count_alive(references: list[weakref.ref]) -> int:
    gc.collect()
    return sum(reference() is not None for reference in references)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 2000), (1, 2000, 1), (1, 7, 5), (3, 300, 200)])
def test_an_image_of_any_size_goes_into_a_batch_with_others(
    checkpoint: Checkpoint, shape: tuple[int, ...], tmp_path: Path
) -> None:
    series = scan(make_folder(tmp_path / "data", 3)).series
    images = dict(zip(series, (make_image(0), make_image(1, shape)), strict=True))
    rows = score_batch(checkpoint, series, tmp_path / "data", read=images.__getitem__)
    assert all(sum(row.prediction.probabilities) == pytest.approx(1) for row in rows)


def test_a_file_that_goes_after_the_scan_is_a_refused_row_of_its_batch(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    root = make_folder(tmp_path / "data")
    found = scan(root)
    (root / "2.png").unlink()
    rows = [entry.prediction for entry in score_series(checkpoint, found, root)]
    assert [(row.source, row.code) for row in rows] == [
        ("1.png", "file-empty"),
        ("0.png", ""),
        ("2.png", "file-missing"),
        ("3.png", ""),
        ("4.png", ""),
    ]


def test_ids_are_those_of_the_manifest_of_the_same_folder(checkpoint: Checkpoint, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data")
    table = "\n".join(["path,label", "0.png,a", "2.png,b", "3.png,a", "4.png,b"])
    (root / "labels.csv").write_text(table)
    samples = load_manifest(root, None, TaskConfig()).samples
    rows = [entry.prediction for entry in score_series(checkpoint, scan(root), root)]
    assert [row.sample_id for row in rows if row.status == "scored"] == [s.sample_id for s in samples]


@pytest.mark.parametrize(("keep_images", "most"), [(True, 2), (False, 0)])
def test_no_image_but_those_of_a_batch_is_alive_while_the_next_is_read(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_images: bool, most: int
) -> None:
    root = make_folder(tmp_path / "data", count=9)
    alive: list[weakref.ref] = []
    counts: list[int] = []
    read_series = scoring.read_series

    def tracking(series: Series) -> Image:
        counts.append(count_alive(alive))
        image = read_series(series)
        alive.append(weakref.ref(image))
        return image

    monkeypatch.setattr(scoring, "read_series", tracking)
    for entry in score_series(checkpoint, scan(root), root, batch_size=2, keep_images=keep_images):
        assert (entry.image is not None) == (keep_images and entry.prediction.status == "scored")
    assert len(alive) == 8
    assert max(counts) == most
