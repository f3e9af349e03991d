"""MedMNIST archives: every item read exactly, or the archive refused by name."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medtl.errors import ReadError
from medtl.imaging import medmnist
from medtl.imaging.medmnist import archive_labels
from medtl.imaging.reader import read_images, read_series, scan
from medtl.imaging.series import Series
from tests.imaging.conftest import pattern, refusal


def test_every_item_is_a_series_and_comes_back(make_archive: Callable) -> None:
    path = make_archive()
    found = scan(path)
    assert [series.item for series in found.series] == ["train/0", "train/1", "train/2", "test/0", "test/1"]
    image = read_series(found.series[4])
    np.testing.assert_array_equal(image.pixels, pattern(2, 8, 8, dtype="uint8", top=255, seed=1)[1][None])
    assert image.pixels.dtype == np.float32 and image.affine is None
    assert image.facts.source == f"{path}#test/1" and image.facts.format == "medmnist"


@pytest.mark.parametrize(
    ("shape", "expected"), [((2, 8, 8, 3), (3, 8, 8)), ((2, 6, 8, 8), (1, 6, 8, 8))], ids=["colour", "volume"]
)
def test_colour_and_volumes_keep_their_axes(make_archive: Callable, shape: tuple, expected: tuple) -> None:
    stored = pattern(*shape, dtype="uint8", top=255)
    images = read_images(make_archive(val_images=stored))
    assert [image.pixels.shape for image in images] == [expected] * 2
    expected = np.moveaxis(stored[1], -1, 0) if shape[-1] == 3 else stored[1][None]
    np.testing.assert_array_equal(images[1].pixels, expected)


def test_the_array_is_decompressed_once(make_archive: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    real = np.lib.format.read_array
    monkeypatch.setattr(np.lib.format, "read_array", lambda *a, **k: reads.append(1) or real(*a, **k))
    read_images(make_archive(train_images=pattern(50, 8, 8, dtype="uint8")))
    assert len(reads) == 1


def test_a_rewritten_archive_is_read_again(make_archive: Callable) -> None:
    path = make_archive(train_images=np.zeros((1, 8, 8), np.uint8))
    assert read_images(path)[0].pixels.max() == 0
    make_archive(train_images=np.full((1, 8, 8), 9, np.uint8))
    assert read_images(path)[0].pixels.max() == 9


def test_labels_are_given_by_item(make_archive: Callable) -> None:
    labels = archive_labels(make_archive())
    assert labels == {"train/0": (0,), "train/1": (1,), "train/2": (1,), "test/0": (1,), "test/1": (0,)}


def test_several_labels_of_an_item_are_kept(make_archive: Callable) -> None:
    images = pattern(2, 8, 8, dtype="uint8")
    path = make_archive(train_images=images, train_labels=np.array([[0, 1, 1], [1, 0, 0]]), val_images=images)
    assert archive_labels(path) == {"train/0": (0, 1, 1), "train/1": (1, 0, 0)}


@pytest.mark.parametrize(
    "labels",
    [np.zeros((3, 1), np.uint8), np.zeros((2, 1)), np.uint8(1)],
    ids=["count", "fractions", "scalar"],
)
def test_labels_that_do_not_fit_are_refused(make_archive: Callable, labels: np.ndarray) -> None:
    path = make_archive(train_images=pattern(2, 8, 8, dtype="uint8"), train_labels=labels)
    with pytest.raises(ReadError) as caught:
        archive_labels(path)
    assert caught.value.code == "archive-layout"


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 8, 8), np.float32), np.zeros((2, 8), np.uint8), np.zeros((2, 0, 8), np.uint8)],
    ids=str,
)
def test_arrays_of_another_layout_are_refused(make_archive: Callable, images: np.ndarray) -> None:
    assert refusal(make_archive(train_images=images)).code == "archive-layout"


def test_pickled_objects_are_refused_unopened(make_archive: Callable) -> None:
    assert refusal(make_archive(train_images=np.array([{"a": 1}], dtype=object))).code == "archive-damaged"


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.98])
def test_a_truncated_file_is_refused_by_name(make_archive: Callable, kept: float) -> None:
    path = make_archive()
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    error = refusal(path)
    assert error.code in ("file-unknown", "archive-damaged") and error.where == str(path)


def test_a_corrupted_byte_is_noticed(make_archive: Callable) -> None:
    path = make_archive(train_images=pattern(4, 16, 16, dtype="uint8", top=255))
    data = bytearray(path.read_bytes())
    data[400] ^= 1
    path.write_bytes(data)
    refusals: list[ReadError] = []
    assert read_images(path, refusals=refusals) == []
    assert {error.code for error in refusals} == {"archive-damaged"}


def test_an_array_beyond_the_limit_is_refused(
    make_archive: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(medmnist, "MOST_BYTES", 100)
    assert refusal(make_archive(train_images=pattern(2, 8, 8, dtype="uint8"))).code == "archive-too-large"


@pytest.mark.parametrize("item", ["train/3", "train/-1", "val/0", "other/0", "train", None])
def test_an_item_that_is_not_there_is_refused(make_archive: Callable, item: str | None) -> None:
    path = make_archive()
    with pytest.raises(ReadError) as caught:
        read_series(Series(path, (path,), "medmnist", item=item))
    assert caught.value.code == "archive-item"


@pytest.mark.shared
def test_the_real_archive_has_its_documented_items(shared_data: Path) -> None:
    path = shared_data / "chest-xray-pneumonia" / "pneumoniamnist.npz"
    found = scan(path)
    labels = archive_labels(path)
    train = [labels[f"train/{row}"] for row in range(4708)]
    assert len(found.series) == 4708 + 524 == len(labels)
    assert (train.count((0,)), train.count((1,))) == (1214, 3494)
    with np.load(path) as arrays:
        np.testing.assert_array_equal(read_series(found.series[17]).pixels[0], arrays["train_images"][17])
