"""Find near-duplicates among prepared images, so that a split can keep them together.

pixels -> thumbnails -> a 64-bit code and the fine detail of each -> pairs of close codes -> pairs of similar
detail -> links -> groups that count as one patient. This finds copies that were compressed, brightened or
resampled, and many neighbouring slices of one patient; no mirrored or shifted copies (docs/decisions/0010).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medtl.data.prepared import PreparedDataset, Progress
from medtl.data.splits import NearDuplicates
from medtl.data.task import Sample, has_patient_id, place_of

# By spatial dimensions: the longest side of a thumbnail, and the cosine frequencies per axis in its code.
SIDES = {2: 64, 3: 32}
WAVES = {2: 8, 3: 4}

# Detail is what a Gaussian of this many thumbnail pixels removes. This and the next two were chosen on real
# images: slices of one patient are found, chests of different patients are not (docs/decisions/0010).
BLUR = 1.5
DISTANCE = 8
CORRELATION = 0.8

VALUES_AT_ONCE = 2**22
PAIRS_AT_ONCE = 2**20

Links = NDArray[np.int64]
NO_LINKS: Links = np.empty((0, 2), dtype=np.int64)


def find_near_duplicates(prepared: PreparedDataset, *, progress: Progress | None = None) -> Links:
    """Return links (n, 2) between rows, the lower one first, that join near-duplicates into groups.

    Two images are near-duplicates where their codes differ in at most DISTANCE bits and their detail
    correlates by CORRELATION or more; two that earlier links join are not compared again. A constant image is
    linked to none. Memory: 8 KB an image, 32 KB a volume.
    """
    codes, details = _describe_images(prepared, progress)
    detailed = np.flatnonzero(details.any(axis=1))
    close = (detailed[pairs] for pairs in find_close(codes[detailed], DISTANCE))
    return _link_similar(close, details)


def find_close(codes: NDArray[np.uint64], distance: int) -> Iterator[Links]:
    """Yield the pairs of rows, the lower one first, whose codes (N,) differ in at most `distance` bits.

    Every pair is compared: 20,000 images take a second or two, 200,000 some minutes.
    """
    at_once = max(1, PAIRS_AT_ONCE // max(1, len(codes)))
    for start in range(0, len(codes), at_once):
        apart = np.bitwise_count(codes[start : start + at_once, None] ^ codes[start:])
        low, high = np.nonzero(np.triu(apart <= distance, 1))
        yield np.column_stack([low, high]) + start


def group_links(count: int, links: Links) -> NDArray[np.int64]:
    """Return the number of the group (N,) of each of `count` rows; a row without links is a group."""
    graph = coo_array((np.ones(len(links), dtype=np.int8), (links[:, 0], links[:, 1])), (count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def join_patients(
    samples: Sequence[Sample], links: Links, policy: NearDuplicates | None
) -> tuple[Sample, ...]:
    """Give the samples of a group one patient_id: that of the first by path.

    links: between indices of samples. policy: as in SplitConfig. Samples that the label table puts into
    different parts of the split are not joined.
    """
    patients = _link_equal([sample.patient_id for sample in samples])
    groups = group_links(len(samples), np.concatenate([_link_joined(samples, links, policy), patients]))
    names: dict[int, str] = {}
    for index in sorted(range(len(samples)), key=lambda index: place_of(samples[index])):
        names.setdefault(int(groups[index]), samples[index].patient_id)
    pairs = zip(samples, groups, strict=True)
    return tuple(replace(sample, patient_id=names[int(group)]) for sample, group in pairs)


def describe_near_duplicates(
    samples: Sequence[Sample], split: Sequence[Sample], links: Links, contents: Sequence[str]
) -> list[tuple[str, str]]:
    """Describe in (label, text) lines which groups were kept together, and which cross the split.

    samples: as in the label table. split: the same, joined and split. contents: (N,), a hash of each sample's
    pixels.
    """
    notes = _joined_notes(samples, split)
    copies = _link_equal(contents)
    leaks, exact = _count_leaks(split, np.concatenate([links, copies])), _count_leaks(split, copies)
    if not leaks:
        return [*notes, *_mixed_notes(split, links)]
    what = "are exact duplicates of training images"
    if exact < leaks:
        what = "have a near-duplicate in training" + (f", {exact} of them an exact one" if exact else "")
    given = any(sample.split for sample in samples)
    fix = "the given split is kept" if given else "split.near_duplicates=group keeps them together"
    text = f"{leaks} validation or test images {what}: metrics will be too optimistic ({fix})"
    return [*notes, ("leak", text)]


def _mixed_notes(split: Sequence[Sample], links: Links) -> list[tuple[str, str]]:
    patients: dict[int, set[str]] = defaultdict(set)
    groups = group_links(len(split), links).tolist()
    for group, sample in zip(groups, split, strict=True):
        patients[group].add(sample.patient_id)
    mixed = sum(len(patients[group]) > 1 for group in groups)
    text = f"{mixed} images are near-duplicates of another patient's: does a patient have two ids?"
    return [("note", f"{text} (split.near_duplicates=group joins them)")] if mixed else []


def _describe_images(
    prepared: PreparedDataset, progress: Progress | None
) -> tuple[NDArray[np.uint64], NDArray[np.float16]]:
    """Return the code (N,) and the detail (N, pixels), of length one or zero, of each image's thumbnail."""
    count, *shape = prepared.pixels.shape  # (N, C, *spatial)
    grid = [min(SIDES[len(shape) - 1], extent) for extent in shape[1:]]
    codes = np.empty(count, np.uint64)
    details = np.empty((count, math.prod(grid)), np.float16)
    at_once = max(1, VALUES_AT_ONCE // math.prod(shape))
    for start in range(0, count, at_once):
        rows = np.arange(start, min(start + at_once, count))
        grey = prepared.read(rows).mean(dim=1, keepdim=True)
        thumbnails = F.interpolate(grey, size=grid, mode="area")[:, 0].numpy()
        codes[rows], details[rows] = _make_codes(thumbnails), _take_details(thumbnails)
        if progress:
            progress(int(rows[-1]) + 1, count)
    return codes, details


def _make_codes(thumbnails: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return the perceptual hash (n,): which of the lowest cosine frequencies are above their median."""
    dims = thumbnails.ndim - 1
    waves = dctn(thumbnails, axes=range(1, dims + 1), norm="ortho")
    low = waves[(slice(None), *[slice(WAVES[dims])] * dims)].reshape(len(waves), -1)
    rounding = 1e-6 * np.abs(low).max(axis=1, keepdims=True)
    bits = low > np.median(low[:, 1:], axis=1, keepdims=True) + rounding
    bits = np.pad(bits, [(0, 0), (0, 64 - bits.shape[1])])  # a volume of fewer slices than frequencies
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def _take_details(thumbnails: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return the detail finer than BLUR (n, pixels), each row of length one, or zero where there is none."""
    blurred = gaussian_filter(thumbnails, (0, *[BLUR] * (thumbnails.ndim - 1)))
    details = (thumbnails - blurred).reshape(len(thumbnails), -1)
    details -= details.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(details, axis=1, keepdims=True)
    return np.divide(details, lengths, out=np.zeros_like(details), where=lengths > 1e-4).astype(np.float16)


def _link_similar(blocks: Iterable[Links], details: NDArray[np.float16]) -> Links:
    """Return the pairs whose details correlate by CORRELATION or more, without those already in one group.

    So a thousand similar frames cost about a thousand comparisons, not half a million.
    """
    at_once = max(1, VALUES_AT_ONCE // details.shape[1])
    links, groups = NO_LINKS, np.arange(len(details))
    for block in blocks:
        while len(block := block[groups[block[:, 0]] != groups[block[:, 1]]]):
            pairs, block = block[:at_once], block[at_once:]
            one, other = (details[rows].astype(np.float32) for rows in pairs.T)
            similar = pairs[np.einsum("ij,ij->i", one, other) >= CORRELATION]
            if len(similar):
                links = np.concatenate([links, similar])
                groups = group_links(len(details), links)
    return links


def _link_equal(values: Sequence[str]) -> Links:
    """Link each row to the first with the same value."""
    _, first, kind = np.unique(np.array(values, dtype=np.str_), return_index=True, return_inverse=True)
    copies = np.flatnonzero(first[kind] != np.arange(len(values)))
    return np.column_stack([first[kind][copies], copies])


def _link_joined(samples: Sequence[Sample], links: Links, policy: NearDuplicates | None) -> Links:
    """Link the samples of each group that the policy joins, within each part of the split."""
    groups = group_links(len(samples), links)
    unknown = np.array([not has_patient_id(sample) for sample in samples], dtype=bool)
    joins = np.isin(groups, groups[unknown]) if policy is None else np.full(len(samples), policy == "group")
    rows = np.flatnonzero(joins)
    places = [f"{groups[row]} {samples[row].split}" for row in rows.tolist()]
    return rows[_link_equal(places)]


def _joined_notes(samples: Sequence[Sample], split: Sequence[Sample]) -> list[tuple[str, str]]:
    members: dict[str, set[str]] = defaultdict(set)
    for before, after in zip(samples, split, strict=True):
        members[after.patient_id].add(before.patient_id)
    sizes = Counter(sample.patient_id for sample in split if len(members[sample.patient_id]) > 1)
    if not sizes:
        return []
    text = f"near-duplicates: {sizes.total()} images in {len(sizes)} groups of up to {max(sizes.values())}"
    return [("note", f"{text}; each group counts as one patient")]


def _count_leaks(split: Sequence[Sample], links: Links) -> int:
    """Count the samples outside train whose group has a sample in train."""
    train = np.array([sample.split == "train" for sample in split])
    groups = group_links(len(split), links)
    return int((~train & np.isin(groups, groups[train])).sum())
