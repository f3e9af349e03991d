"""Copies are found however they were made, different patients are not, and what is found stays together."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, zoom

from medtl.data import near_duplicates as module
from medtl.data.manifest import load_manifest
from medtl.data.near_duplicates import (
    NO_LINKS,
    describe_near_duplicates,
    find_close,
    find_near_duplicates,
    group_links,
    join_patients,
)
from medtl.data.prepared import STEPS, PreparedDataset, prepare_samples
from medtl.data.splits import NearDuplicates, SplitConfig, split_samples
from medtl.data.task import Sample, Task, TaskConfig
from medtl.imaging.preprocessing import PreprocessingConfig
from medtl.imaging.series import Series

ROOT = Path(__file__).parents[2]
BINARY = Task("binary", ("normal", "lesion"))


def draw(seed: int, size: tuple[int, ...] = (96, 96)) -> np.ndarray:
    """Return an image in [0, 1] that is smooth and has structures of every size, as anatomy has."""
    noise = np.random.default_rng(seed).normal(size=size)
    layers = [gaussian_filter(noise, width) * width ** (len(size) / 2) for width in (12, 6, 3, 1.5)]
    summed = sum(layers)
    return (summed - summed.min()) / np.ptp(summed)


def dataset(images: list[np.ndarray]) -> PreparedDataset:
    """Return images in [0, 1] of one size as a prepared dataset of one channel."""
    pixels = np.round(np.clip(np.stack(images), 0, 1) * STEPS).astype(np.uint16)[:, None]
    names = tuple(f"s{row}" for row in range(len(images)))
    return PreparedDataset(Path(), pixels, names, tuple(str(hash(one.tobytes())) for one in pixels), ())


def found(*images: np.ndarray) -> list[tuple[int, ...]]:
    """Return the links that are found among images."""
    return [tuple(link) for link in find_near_duplicates(dataset(list(images))).tolist()]


def resampled(image: np.ndarray) -> np.ndarray:
    """Return an image that was exported at 60% of its size and enlarged again."""
    small = zoom(image, 0.6, order=1)
    return zoom(small, np.array(image.shape) / small.shape, order=1)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda image: image,
    "brighter": lambda image: image**0.7,
    "darker": lambda image: image**1.4,
    "noise": lambda image: image + np.random.default_rng(0).normal(0, 0.01, image.shape),
    "8 bits": lambda image: np.round(image * 255) / 255,
    "resampled": resampled,
}


@pytest.mark.parametrize("size", [(96, 96), (28, 28), (16, 48, 48)], ids=str)
@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_is_found_and_nothing_else(change: str, size: tuple[int, ...]) -> None:
    images = [draw(seed, size) for seed in range(12)]
    assert found(*images, CHANGES[change](images[7])) == [(7, 12)]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_volumes_of_few_slices_are_compared(depth: int) -> None:
    images = [draw(seed, (depth, 48, 48)) for seed in range(12)]
    assert found(*images, images[3] ** 0.8) == [(3, 12)]


def test_a_patient_s_neighbouring_slices_are_found() -> None:
    volume = draw(0, (40, 64, 64))
    links = find_near_duplicates(dataset(list(volume)))
    assert np.diff(links, axis=1).max() <= 4
    groups = group_links(40, links)
    assert groups[20] == groups[21] == groups[22]


def test_a_mirrored_copy_is_not_taken_for_one() -> None:
    assert found(draw(0), draw(0)[:, ::-1]) == []


def test_copies_of_several_images_are_linked_each_to_its_own() -> None:
    assert found(draw(0), draw(1), draw(0), draw(0), draw(1)) == [(0, 2), (0, 3), (1, 4), (2, 3)]


def test_a_thousand_copies_cost_no_comparison_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VALUES_AT_ONCE", 1000 * 28 * 28)
    links = find_near_duplicates(dataset([draw(0, (28, 28))] * 1000))
    assert len(links) <= 1000 and not group_links(1000, links).any()


def test_a_film_of_similar_frames_is_joined_without_comparing_all_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "VALUES_AT_ONCE", 20 * 64 * 64)
    noise = np.random.default_rng(0)
    frames = dataset([draw(0) + noise.normal(0, 0.01, (96, 96)) for _ in range(100)])
    links = find_near_duplicates(frames)
    assert len(set(group_links(100, links).tolist())) == 1
    assert len(links) < 300


def test_images_of_one_value_are_linked_to_none() -> None:
    blank = np.full((96, 96), 0.5)
    assert found(blank, draw(0), blank, np.zeros((96, 96)), blank) == []


def test_channels_are_compared_as_grey() -> None:
    grey = dataset([draw(0), draw(1), draw(0) ** 0.8])
    colour = replace(grey, pixels=np.repeat(grey.pixels, 3, axis=1))
    assert find_near_duplicates(colour).tolist() == [[0, 2]]


def test_nothing_is_found_in_nothing() -> None:
    empty = PreparedDataset(Path(), np.empty((0, 1, 32, 32), np.uint16), (), (), ())
    assert find_near_duplicates(empty).shape == (0, 2)
    assert found(draw(0)) == []


def test_blocks_change_nothing_and_progress_reaches_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    images = dataset([draw(seed % 5) ** (1 + seed / 20) for seed in range(15)])
    whole = group_links(15, find_near_duplicates(images))
    assert np.bincount(whole).tolist() == [3] * 5
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", 3)
    monkeypatch.setattr(module, "VALUES_AT_ONCE", 4 * 96 * 96)
    steps: list[tuple[int, int]] = []
    parts = find_near_duplicates(images, progress=lambda done, total: steps.append((done, total)))
    assert group_links(15, parts).tolist() == whole.tolist()
    assert steps == [(4, 15), (8, 15), (12, 15), (15, 15)]


def make_codes(count: int, centres: int, flips: int, seed: int) -> np.ndarray:
    """Return codes that lie around some centres, each with up to `flips` bits changed."""
    generator = np.random.default_rng(seed)
    centre = generator.integers(0, 2**64, centres, dtype=np.uint64)
    codes = centre[generator.integers(0, centres, count)]
    for row in range(count):
        for bit in generator.integers(0, 64, generator.integers(0, flips + 1)):
            codes[row] ^= np.uint64(1) << np.uint64(bit)
    return codes


@pytest.mark.parametrize("distance", [0, 1, 2, 7, 8, 9, 20])
@pytest.mark.parametrize("at_once", [7, 2**20])
def test_close_codes_are_those_of_an_exhaustive_search_each_once(
    distance: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", at_once)
    codes = make_codes(400, centres=40, flips=7, seed=distance)
    apart = np.bitwise_count(codes[:, None] ^ codes[None])
    expected = {(i, j) for i, j in zip(*np.nonzero(apart <= distance), strict=True) if i < j}
    pairs = [tuple(pair) for block in find_close(codes, distance) for pair in block.tolist()]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == expected and expected


def test_links_become_groups() -> None:
    groups = group_links(6, np.array([[0, 3], [3, 5], [1, 2]]))
    assert groups[0] == groups[3] == groups[5] and groups[1] == groups[2]
    assert len(set(groups.tolist())) == 3
    assert len(set(group_links(3, NO_LINKS).tolist())) == 3


def make_samples(patients: list[str | None], parts: list[str | None] | None = None) -> list[Sample]:
    """Return a sample for each patient named; None stands for a patient who is not known."""
    samples = []
    for row, patient in enumerate(patients):
        path, name = Path(f"{row:03d}.png"), f"s{row}"
        part = parts[row] if parts else None
        samples.append(
            Sample(name, Series(path, (path,), "png"), patient or name, target=row % 2, split=part)
        )  # type: ignore[arg-type]
    return samples


def patients_of(samples: tuple[Sample, ...]) -> list[str]:
    return [sample.patient_id for sample in samples]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("group", ["A", "A", "A", "A", "s4", "s4"]),
        (None, ["A", "A", "A", "A", "s4", "s4"]),
        ("warn", ["A", "B", "s2", "A", "s4", "s5"]),
        ("ignore", ["A", "B", "s2", "A", "s4", "s5"]),
    ],
)
def test_the_policy_says_which_groups_are_joined(policy: NearDuplicates | None, expected: list[str]) -> None:
    """A and B are known, others are not: a group of A, B and an unknown, and one of two unknowns."""
    samples = make_samples(["A", "B", None, "A", None, None])
    joined = join_patients(samples, np.array([[0, 1], [1, 2], [4, 5]]), policy)
    assert patients_of(joined) == expected
    assert [replace(one, patient_id="") for one in joined] == [replace(one, patient_id="") for one in samples]


def test_a_group_of_known_patients_is_joined_on_request_only() -> None:
    samples = make_samples(["A", "B", None])
    assert patients_of(join_patients(samples, np.array([[0, 1]]), None)) == ["A", "B", "s2"]
    assert patients_of(join_patients(samples, np.array([[0, 1]]), "group")) == ["A", "A", "s2"]


def test_a_link_takes_the_whole_patient_along() -> None:
    joined = join_patients(make_samples(["A", "B", "A", "B"]), np.array([[2, 3]]), "group")
    assert patients_of(joined) == ["A"] * 4


def test_groups_depend_on_neither_row_order_nor_salt() -> None:
    samples = make_samples([None] * 30)
    links = np.array([[3, 17], [17, 20], [4, 9]])
    expected = Counter(frozenset(group) for group in members(join_patients(samples, links, None)))
    order = random.Random(0).sample(range(30), 30)
    place = {row: index for index, row in enumerate(order)}
    moved = np.array([[place[low], place[high]] for low, high in links.tolist()])
    salted = [replace(one, sample_id=f"x{one.sample_id}", patient_id=f"x{one.patient_id}") for one in samples]
    joined = join_patients([salted[row] for row in order], moved, None)
    assert Counter(frozenset(group) for group in members(joined)) == expected
    first = {one.series.path.stem: one.patient_id for one in joined}
    assert first["017"] == first["020"] == "xs3"  # the first in order of paths
    split = [
        {one.series.path: one.split for one in split_samples(entries, BINARY, SplitConfig())}
        for entries in (join_patients(samples, links, None), joined)
    ]
    assert split[0] == split[1]


def members(samples: tuple[Sample, ...]) -> list[list[str]]:
    """Return the paths of each patient's samples."""
    groups: dict[str, list[str]] = {}
    for sample in samples:
        groups.setdefault(sample.patient_id, []).append(sample.series.path.as_posix())
    return list(groups.values())


def test_parts_that_the_table_brings_are_not_joined() -> None:
    samples = make_samples([None] * 4, ["train", "train", "val", "val"])
    links = np.array([[0, 2], [1, 2], [2, 3]])
    joined = join_patients(samples, links, "group")
    assert patients_of(joined) == ["s0", "s0", "s2", "s2"]
    assert [one.split for one in split_samples(joined, BINARY, SplitConfig())] == ["train"] * 2 + ["val"] * 2


def describe(
    samples: list[Sample], parts: str, links: list[list[int]], contents: str
) -> list[tuple[str, str]]:
    """Describe samples, joined by the default policy, that were split into t(rain), v(al) and (t)e(st)."""
    names = {"t": "train", "v": "val", "e": "test"}
    array = np.array(links, dtype=np.int64).reshape(-1, 2)
    joined = join_patients(samples, array, None)
    split = [replace(one, split=names[part]) for one, part in zip(joined, parts, strict=True)]  # type: ignore[arg-type]
    return describe_near_duplicates(samples, split, array, list(contents))


def test_groups_kept_together_are_reported_in_a_line() -> None:
    notes = describe(make_samples([None] * 6), "ttttvv", [[0, 1], [1, 2], [4, 5]], "abcdef")
    text = "near-duplicates: 5 images in 2 groups of up to 3; each group counts as one patient"
    assert notes == [("note", text)]


def test_near_duplicates_of_different_patients_are_reported() -> None:
    ((label, text),) = describe(make_samples(["A", "B", "C"]), "ttv", [[0, 1]], "abc")
    assert label == "note" and text.startswith("2 images are near-duplicates of another patient's")


def test_near_duplicates_on_both_sides_are_counted_in_a_line() -> None:
    samples = make_samples(["A", "B", "C", "D", "E"])
    ((label, text),) = describe(samples, "ttvve", [[0, 2], [1, 3], [3, 4]], "abacd")
    assert label == "leak" and "near_duplicates=group" in text
    assert text.startswith(
        "3 validation or test images have a near-duplicate in training, 1 of them an exact one: metrics"
    )


def test_near_duplicates_on_both_sides_without_a_copy_are_counted() -> None:
    ((_, text),) = describe(make_samples(["A", "B"]), "tv", [[0, 1]], "ab")
    assert text.startswith(
        "1 validation or test images have a near-duplicate in training: metrics will be too optimistic"
    )


def test_exact_duplicates_are_reported_even_without_links() -> None:
    ((label, text),) = describe(make_samples(["A", "B", "C"]), "tvv", [], "aab")
    assert label == "leak"
    assert text.startswith("1 validation or test images are exact duplicates of training images")


def test_leaks_of_a_given_split_are_reported_and_it_is_kept() -> None:
    samples = make_samples([None] * 4, ["train", "train", "val", "val"])
    ((label, text),) = describe(samples, "ttvv", [[0, 2]], "abcd")
    assert label == "leak" and "the given split is kept" in text


def test_images_of_one_patient_need_no_word() -> None:
    assert describe(make_samples(["A", "A", "B"]), "ttv", [[0, 1]], "aab") == []


@pytest.mark.parametrize(("modality", "size"), [("xray", (160, 160)), ("mri", (16, 96, 96))])
def test_phantoms_of_different_patients_are_not_linked(modality: str, size: tuple[int, ...]) -> None:
    samples = load_manifest(ROOT / "sample_data" / modality, None, TaskConfig()).samples
    prepared = prepare_samples(samples, PreprocessingConfig(size=size))
    patient = {sample.sample_id: sample.patient_id for sample in samples}
    links = find_near_duplicates(prepared)
    assert not [link for link in links if len({patient[prepared.sample_ids[row]] for row in link}) > 1]


@pytest.mark.shared
def test_slices_of_one_patient_are_found_and_do_not_chain(shared_data: Path) -> None:
    """The archive has no patient ids, but its files are in their order: neighbours are of one patient."""
    samples = load_manifest(shared_data / "brain-mri-tumour", None, TaskConfig()).samples
    pituitary = [sample for sample in samples if sample.target == 3][:400]
    links = find_near_duplicates(prepare_samples(pituitary, PreprocessingConfig(size=(160, 160))))
    assert len(links) > 100
    assert np.mean(np.diff(links, axis=1) <= 20) > 0.85
    assert np.bincount(group_links(len(pituitary), links)).max() <= 10


@pytest.mark.shared
def test_chests_of_different_patients_are_not_linked(shared_data: Path) -> None:
    """Some archives of this source hold copies; whatever else is linked would be a look-alike."""
    archive = shared_data / "chest-xray-pneumonia" / "pneumoniamnist.npz"
    samples = load_manifest(archive, None, TaskConfig()).samples[:500]
    prepared = prepare_samples(samples, PreprocessingConfig(size=(96, 96)))
    links = find_near_duplicates(prepared)
    linked = [link for link in links if len({prepared.content_hashes[row] for row in link}) > 1]
    assert len(linked) <= 1
