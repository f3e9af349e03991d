"""Mutated DICOM files: each is read or refused, in bounded time and memory, and the process lives on."""

import resource
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jpeg_ls
import numpy as np
import pytest
from numpy.random import Generator
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ComputedRadiographyImageStorage, JPEG2000Lossless, JPEGLSLossless, RLELossless

from medtl.errors import CODES, LINE_LIMIT, ReadError
from medtl.imaging.reader import read_images
from tests.imaging.conftest import (
    AXIAL,
    build_dataset,
    build_enhanced,
    build_mosaic,
    compress_with_jpeg,
    compress_with_lossless_jpeg,
    encapsulate_frames,
    pattern,
    save,
)
from tests.waiting import slowness

MOST_SECONDS = 10.0
MOST_KIBIBYTES = 2**20
# Mutated files of each kind: 1,000 in all in an ordinary run, 10,000 by `make fuzz`.
FEW, MANY = 100, 1000

EXTREMES = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def build_radiograph(dtype: str = "uint16", bits: int = 12) -> Dataset:
    """Return an uncompressed radiograph of 40 x 36 pixels."""
    pixels = pattern(40, 36, dtype=dtype, top=2**bits - 1)
    return build_dataset(pixels, ComputedRadiographyImageStorage, BitsStored=bits)


def build_compressed(syntax: UID, plugin: str) -> Dataset:
    """Return a radiograph that one of pydicom's plugins compressed."""
    dataset = build_radiograph()
    dataset.compress(syntax, encoding_plugin=plugin)
    return dataset


def build_colour() -> Dataset:
    """Return a colour image, compressed with JPEG-LS."""
    pixels = pattern(40, 36, 3, dtype="uint8", top=255)
    dataset = build_dataset(pixels, ComputedRadiographyImageStorage)
    dataset.compress(JPEGLSLossless, encoding_plugin="pyjpegls")
    return dataset


def build_with_tables() -> Dataset:
    """Return a radiograph with a Modality LUT and a VOI LUT."""
    table = Dataset()
    table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [4, 0, 16], [1, 20, 300, 4000], "US"
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    dataset = build_radiograph("uint8", 2)
    dataset.ModalityLUTSequence = dataset.VOILUTSequence = [table]
    return dataset


def build_frames() -> Dataset:
    """Return an enhanced image of four frames."""
    positions = [(0, 0, 2.5 * place) for place in range(4)]
    return build_enhanced(pattern(4, 16, 12), positions, AXIAL, frame_RescaleSlope=[1, 2, 3, 4])


def build_packed_tables() -> Dataset:
    """Return signed values in the upper bits, with tables of bytes and padding."""
    table = Dataset()
    table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [256, 65408, 8], bytes(range(256)), "US"
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
    words = (pattern(40, 36, top=255) << 8).astype("int16")
    dataset = build_dataset(words, ComputedRadiographyImageStorage, BitsStored=8, HighBit=15)
    dataset.PixelPaddingValue = -100
    dataset.ModalityLUTSequence = dataset.VOILUTSequence = [table]
    return dataset


def build_compressed_frames() -> Dataset:
    """Return an enhanced image of four frames in JPEG-LS, each of several fragments."""
    dataset = build_frames()
    frames = np.frombuffer(dataset.PixelData, "uint16").reshape(4, 16, 12)
    streams = [bytes(jpeg_ls.encode_buffer(frame.tobytes(), 16, 12, 1, 12)) for frame in frames]
    return encapsulate_frames(dataset, encapsulate(streams, fragments_per_frame=3), JPEGLSLossless)


KINDS: dict[str, Callable[[], Dataset]] = {
    "uncompressed": build_radiograph,
    "RLE": lambda: build_compressed(RLELossless, "pylibjpeg"),
    "JPEG 2000": lambda: build_compressed(JPEG2000Lossless, "pylibjpeg"),
    "JPEG-LS": lambda: build_compressed(JPEGLSLossless, "pyjpegls"),
    "JPEG": lambda: compress_with_jpeg(build_radiograph("uint8", 8)),
    "JPEG-LS, in colour": build_colour,
    "tables": build_with_tables,
    "JPEG Lossless": lambda: compress_with_lossless_jpeg(build_radiograph()),
    "enhanced": build_frames,
    "packed tables": build_packed_tables,
    "compressed frames": build_compressed_frames,
    "mosaic": lambda: build_mosaic(pattern(7, 8, 6)),
}


# Mutations: bytes and a generator make other bytes


def flip_bits(data: bytearray, generator: Generator) -> bytearray:
    """Flip one to eight bits anywhere."""
    for place in generator.integers(132, len(data), size=generator.integers(1, 9)):
        data[place] ^= 1 << int(generator.integers(8))
    return data


def overwrite(data: bytearray, generator: Generator) -> bytearray:
    """Overwrite a run with random bytes."""
    start, length = int(generator.integers(132, len(data))), int(generator.integers(1, 64))
    data[start : start + length] = generator.bytes(min(length, len(data) - start))
    return data


def truncate(data: bytearray, generator: Generator) -> bytearray:
    """Keep only the start."""
    return data[: int(generator.integers(len(data)))]


def swap(data: bytearray, generator: Generator) -> bytearray:
    """Swap two blocks of one length."""
    length = int(generator.integers(1, 64))
    first, second = sorted(int(place) for place in generator.integers(132, len(data) - length, size=2))
    if second - first >= length:
        one, other = data[first : first + length], data[second : second + length]
        data[first : first + length], data[second : second + length] = other, one
    return data


def stretch(data: bytearray, generator: Generator) -> bytearray:
    """Set a number of two or four bytes, as lengths and sizes are, to an extreme."""
    size = int(generator.choice([2, 4]))
    place = int(generator.integers(132, len(data) - size))
    value = int(generator.choice(EXTREMES)) % 2 ** (8 * size)
    data[place : place + size] = value.to_bytes(size, generator.choice(["little", "big"]))  # type: ignore[arg-type]
    return data


MUTATIONS = (flip_bits, overwrite, truncate, swap, stretch)


def mutate(data: bytes, generator: Generator) -> bytes:
    """Return a file with one or two mutations; its preamble stays."""
    changed = bytearray(data)
    for _ in range(int(generator.integers(1, 3))):
        if len(changed) > 300:
            changed = MUTATIONS[generator.integers(len(MUTATIONS))](changed, generator)
    return bytes(changed)


def read_mutations(kind: str, count: int, folder: Path) -> Counter[str]:
    """Read mutations of one kind of file; return how often each code, or "read", resulted."""
    original = save(KINDS[kind](), folder / "original.dcm").read_bytes()
    assert len(read_images(folder / "original.dcm")) == 1
    outcomes: Counter[str] = Counter()
    for number in range(count):
        path = folder / f"{kind}-{number}.dcm"
        path.write_bytes(mutate(original, np.random.default_rng([number, *kind.encode()])))
        outcomes += read_file(path)
        path.unlink()
    return outcomes


def read_file(path: Path) -> Counter[str]:
    """Read one file in bounded time; return its codes, or "read"."""
    refusals: list[ReadError] = []
    start = time.perf_counter()
    images = read_images(path, refusals=refusals)
    seconds = time.perf_counter() - start
    assert seconds < MOST_SECONDS or seconds < MOST_SECONDS * slowness(), path.name
    assert len(images) + len(refusals) >= 1, path.name
    for error in refusals:
        line = str(error)
        assert error.code in CODES and error.fix and "\n" not in line and len(line) <= LINE_LIMIT, path.name
        assert "canary" not in line.lower(), path.name
    for image in images:
        assert image.pixels.dtype == np.float32 and np.isfinite(image.pixels).all(), path.name
    return Counter([error.code for error in refusals] or ["read"])


def peak_kibibytes() -> int:
    """Return the most memory that this process, or a child that has ended, held at once."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds)


def check_kind(kind: str, count: int, folder: Path) -> None:
    """Read mutations, and check that both outcomes occur and memory stays bounded."""
    before = peak_kibibytes()
    outcomes = read_mutations(kind, count, folder)
    assert peak_kibibytes() - before < MOST_KIBIBYTES
    assert outcomes["read"] and len(outcomes) > 3, outcomes


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    check_kind(kind, FEW, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_mutated_files_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    check_kind(kind, MANY, tmp_path)
