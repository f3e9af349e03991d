"""Damaged NIfTI files are read exactly or refused: none is ever silently wrong."""

import gzip
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medtl.errors import ReadError
from medtl.imaging.image import Image
from medtl.imaging.reader import read_images

PAYLOADS, HEADERS = 600, 300
HEADER_BYTES = 352

Generator = np.random.Generator


@pytest.fixture(scope="module")
def volume() -> bytes:
    """The bytes of a volume that looks like one: smooth, with noise, so that gzip has matches to corrupt."""
    i, j, k = np.indices((12, 10, 8))
    noise = np.random.default_rng(0).integers(0, 20, size=i.shape)
    values = (500 * np.exp(-((i - 6) ** 2 + (j - 5) ** 2 + (k - 4) ** 2) / 20) + noise).astype(np.int16)
    return nibabel.Nifti1Image(values, np.diag([2.0, 1.5, 3.0, 1.0])).to_bytes()


def flip_bits(data: bytes, generator: Generator) -> bytes:
    damaged = bytearray(data)
    for place in generator.integers(len(data), size=generator.integers(1, 4)):
        damaged[place] ^= 1 << generator.integers(8)
    return bytes(damaged)


def overwrite_run(data: bytes, generator: Generator) -> bytes:
    """Overwrite a run of bytes with one value, as a bad sector would, or with noise."""
    length = int(generator.integers(1, 64))
    place = int(generator.integers(len(data) - length))
    run = bytes(length) if generator.integers(2) else generator.bytes(length)
    return data[:place] + run + data[place + length :]


def truncate(data: bytes, generator: Generator) -> bytes:
    return data[: int(generator.integers(1, len(data)))]


def swap_blocks(data: bytes, generator: Generator) -> bytes:
    """Exchange two blocks, as a download that was put together in the wrong order."""
    length = int(generator.integers(4, len(data) // 4))
    first = int(generator.integers(len(data) - 2 * length))
    second = int(generator.integers(first + length, len(data) - length + 1))
    return b"".join(
        [
            data[:first],
            data[second : second + length],
            data[first + length : second],
            data[first : first + length],
            data[second + length :],
        ]
    )


DAMAGES: tuple[Callable[[bytes, Generator], bytes], ...] = (flip_bits, overwrite_run, truncate, swap_blocks)


def outcome(path: Path, data: bytes) -> Image | ReadError:
    path.write_bytes(data)
    try:
        (image,) = read_images(path)
    except ReadError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) <= 200
        return error
    return image


def same(image: Image, original: Image) -> bool:
    return np.array_equal(image.pixels, original.pixels) and np.array_equal(image.affine, original.affine)  # type: ignore[arg-type]


def test_600_damaged_gzip_payloads_are_refused_or_read_exactly(volume: bytes, tmp_path: Path) -> None:
    path = tmp_path / "t1.nii.gz"
    whole = gzip.compress(volume, mtime=0)
    original = outcome(path, whole)
    assert isinstance(original, Image)
    silent, refused = [], Counter[str]()
    for number in range(PAYLOADS):
        damage = DAMAGES[number % len(DAMAGES)]
        damaged = damage(whole, np.random.default_rng(number))
        found = outcome(path, damaged)
        if isinstance(found, ReadError):
            refused[found.code] += 1
        elif not same(found, original):
            silent.append(f"{damage.__name__} with seed {number}")
    assert not silent, f"{len(silent)} of {PAYLOADS} silently wrong: {silent}; refused: {dict(refused)}"
    # Flips in the time or the system of gzip's header are harmless, and a run may be what it was.
    assert sum(refused.values()) > 0.95 * PAYLOADS, refused


def test_300_mutated_headers_are_read_or_refused_with_nothing_else_raised(
    volume: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "t1.nii"
    found = Counter[str]()
    for number in range(HEADERS):
        generator = np.random.default_rng(number)
        mutated = bytearray(volume)
        for place in generator.integers(HEADER_BYTES, size=generator.integers(1, 9)):
            mutated[place] = generator.integers(256)
        path.write_bytes(mutated)
        refusals: list[ReadError] = []
        images = read_images(path, refusals=refusals)
        assert all(np.isfinite(image.pixels).all() for image in images)
        found.update(error.code for error in refusals)
        found["read"] += len(images)
        assert images or refusals, f"seed {number}: neither read nor refused"
    assert found["read"] and len(found) > 3, found  # the mutations reach more than the magic
