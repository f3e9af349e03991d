"""Mutated volumes other than single NIfTI files: read or refused, in bounded time and memory."""

import gzip
import resource
import time
from collections import Counter
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medtl.errors import CODES, LINE_LIMIT, ReadError
from medtl.imaging.image import Image
from medtl.imaging.reader import read_images
from tests.fuzz.test_nifti_payloads import flip_bits, overwrite_run, swap_blocks, truncate
from tests.imaging.volumes import test_metaimage, test_nrrd
from tests.waiting import slowness

MOST_SECONDS = 10.0
MOST_KIBIBYTES = 2**20
# Mutated files of each kind: in an ordinary run, and by `make fuzz`.
FEW, MANY = 60, 1000

Files = dict[str, bytes]
Generator = np.random.Generator

i, j, k = np.indices((12, 10, 8))
NOISE = np.random.default_rng(0).integers(0, 20, size=i.shape)
VALUES = (500 * np.exp(-((i - 6) ** 2 + (j - 5) ** 2 + (k - 4) ** 2) / 20) + NOISE).astype(np.int16)
AFFINE = np.diag([2.0, 1.5, 3.0, 1.0])


def write_with_nibabel(kind: Any) -> Files:
    """Return the files of an image by their suffixes."""
    image = kind(VALUES, AFFINE) if kind is not nibabel.Spm99AnalyzeImage else kind(VALUES, None)
    if kind is nibabel.MGHImage:
        return {".mgh": image.to_bytes()}
    files = image.make_file_map()
    for holder in files.values():
        holder.fileobj = BytesIO()
    image.to_file_map(files)
    return {".hdr": files["header"].fileobj.getvalue(), ".img": files["image"].fileobj.getvalue()}


def packed(files: Files) -> Files:
    """Compress each file."""
    suffixes = {suffix: ".mgz" if suffix == ".mgh" else f"{suffix}.gz" for suffix in files}
    return {suffixes[suffix]: gzip.compress(data, mtime=0) for suffix, data in files.items()}


def split_nrrd() -> Files:
    """Return a header of NRRD and the file of its pixels."""
    head, _, data = test_nrrd.build(VALUES, "gzip", data_file="a.raw.gz").partition(b"\n\n")
    return {".nhdr": head + b"\n", ".raw.gz": data}


def metaimage(compressed: bool) -> Files:
    """Return a MetaImage."""
    return {".mha": b"".join(test_metaimage.build(VALUES, compressed))}


def split_metaimage() -> Files:
    """Return a header of MetaImage and the file of its pixels."""
    head, data = test_metaimage.build(VALUES, True, ElementDataFile="a.zraw")
    return {".mhd": head, ".zraw": data}


KINDS: Mapping[str, Callable[[], Files]] = {
    "NIfTI pair": lambda: write_with_nibabel(nibabel.Nifti1Pair),
    "NIfTI pair, gzip": lambda: packed(write_with_nibabel(nibabel.Nifti1Pair)),
    "Analyze": lambda: write_with_nibabel(nibabel.Spm99AnalyzeImage),
    "Analyze, gzip": lambda: packed(write_with_nibabel(nibabel.Spm99AnalyzeImage)),
    "MGH": lambda: write_with_nibabel(nibabel.MGHImage),
    "MGZ": lambda: packed(write_with_nibabel(nibabel.MGHImage)),
    "NRRD": lambda: {".nrrd": test_nrrd.build(VALUES)},
    "NRRD, gzip": lambda: {".nrrd": test_nrrd.build(VALUES, "gzip")},
    "NRRD in two files": split_nrrd,
    "MetaImage": lambda: metaimage(False),
    "MetaImage, zlib": lambda: metaimage(True),
    "MetaImage in two files": split_metaimage,
}


def other_digits(data: bytes, generator: Generator) -> bytes:
    """Replace a few digits, or the bytes of a header, by others."""
    changed = bytearray(data)
    head = min(len(data), 400)
    digits = [place for place in range(head) if data[place : place + 1].isdigit()] or list(range(head))
    for place in generator.choice(digits, size=generator.integers(1, 5)):
        changed[place] = generator.choice(list(b"0123456789-. %/")) if digits else generator.integers(256)
    return bytes(changed)


def header_bytes(data: bytes, generator: Generator) -> bytes:
    """Replace a few bytes among the first ones by any."""
    changed = bytearray(data)
    for place in generator.integers(min(len(data), 400), size=generator.integers(1, 9)):
        changed[place] = generator.integers(256)
    return bytes(changed)


def duplicate_lines(data: bytes, generator: Generator) -> bytes:
    """Repeat, drop or swap what stands between two line ends, as an editor may."""
    lines = data.split(b"\n", 20)
    first, second = generator.integers(len(lines), size=2)
    lines[first], lines[second] = lines[second], lines[second] if generator.integers(2) else lines[first]
    return b"\n".join(lines)


# Files of fewer bytes have no room for blocks and runs.
SHORT = 300

MUTATIONS = (flip_bits, overwrite_run, truncate, swap_blocks, other_digits, header_bytes, duplicate_lines)


def read_or_refused(folder: Path, name: str) -> tuple[list[Image], Counter[str]]:
    """Read a folder, and check what it gave."""
    refusals: list[ReadError] = []
    started = time.monotonic()
    try:
        images = read_images(folder, refusals=refusals)
    except ReadError as error:  # a folder in which nothing is an image any more
        images, refusals = [], [error]
    took = time.monotonic() - started
    assert took < MOST_SECONDS or took < MOST_SECONDS * slowness(), name
    for error in refusals:
        line = str(error)
        assert error.code in CODES and error.fix and "\n" not in line and len(line) <= LINE_LIMIT, name
    for image in images:
        assert image.pixels.dtype == np.float32 and np.isfinite(image.pixels).all(), name
        assert image.affine is None or np.isfinite(image.affine).all(), name
    assert images or refusals, name
    return images, Counter([error.code for error in refusals] or ["read"])


def check_kind(kind: str, count: int, folder: Path) -> None:
    """Read mutations; damage to a compressed stream must never change a value that is read."""
    files, outcomes = KINDS[kind](), Counter[str]()
    for suffix, data in files.items():
        (folder / f"a{suffix}").write_bytes(data)
    (sound,), _ = read_or_refused(folder, kind)
    np.testing.assert_array_equal(sound.pixels[0], VALUES)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        generator = np.random.default_rng(number)
        victim = list(files)[int(generator.integers(len(files)))]
        mutation = MUTATIONS[number % len(MUTATIONS)] if len(files[victim]) > SHORT else flip_bits
        for suffix, data in files.items():
            (folder / f"a{suffix}").write_bytes(mutation(data, generator) if suffix == victim else data)
        images, outcome = read_or_refused(folder, f"{kind}: {mutation.__name__} of {victim}, seed {number}")
        outcomes += outcome
        if victim.endswith((".img.gz", ".mgz", ".raw.gz", ".zraw")):
            for image in images:
                np.testing.assert_array_equal(image.pixels[0], VALUES)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_KIBIBYTES
    assert len(outcomes) > 2, outcomes


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    check_kind(kind, FEW, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_mutated_files_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    check_kind(kind, MANY, tmp_path)
