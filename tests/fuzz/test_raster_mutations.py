"""Mutated PNG, JPEG, TIFF, BMP and WebP files: each is read or refused, and the process lives on."""

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image as PillowImage

from medtl.imaging.reader import read_images
from tests.fuzz.test_dicom_mutations import MOST_KIBIBYTES, mutate, peak_kibibytes, read_file
from tests.imaging.conftest import pattern
from tests.imaging.rasters.tiff_files import Page, build_tiff

# Mutated files of each kind: a thousand in all in an ordinary run, 16,000 by `make fuzz`.
FEW, MANY = 60, 1000

GREY = pattern(40, 36, dtype="uint8", top=255)
DEEP = pattern(40, 36, top=4095)
COLOUR = pattern(40, 36, 3, dtype="uint8", top=255)


def saved(values: np.ndarray, **options: Any) -> bytes:
    """Return a file that pillow writes."""
    stream = io.BytesIO()
    PillowImage.fromarray(values).save(stream, **options)
    return stream.getvalue()


KINDS: dict[str, Callable[[], bytes]] = {
    "png": lambda: saved(DEEP, format="PNG"),
    "jpeg": lambda: saved(COLOUR, format="JPEG"),
    "progressive": lambda: saved(GREY, format="JPEG", progressive=True),
    "lossless": lambda: imagecodecs.jpeg_encode(DEEP, lossless=True, bitspersample=12),
    "jpeg-ls": lambda: imagecodecs.jpegls_encode(DEEP),
    "tiff": lambda: build_tiff(Page(DEEP, strip=7, tags={270: "ImageJ=1.53\nimages=1\n"})),
    "tiff-lzw": lambda: build_tiff(Page(DEEP, compression=5, predictor=2), order=">"),
    "tiff-tiles": lambda: build_tiff(Page(DEEP, compression=8, tile=16, photometric=0)),
    "tiff-planes": lambda: build_tiff(Page(COLOUR, compression=32773, planar=2)),
    "tiff-jpeg": lambda: saved(COLOUR, format="TIFF", compression="jpeg"),
    "tiff-fax": lambda: saved(GREY > 90, format="TIFF", compression="group3"),
    "bigtiff": lambda: build_tiff(Page(DEEP, tile=16), Page(DEEP, tags={254: 1}), big=True),
    "bmp": lambda: saved(COLOUR, format="BMP"),
    "bmp-palette": lambda: saved(GREY, format="BMP"),
    "webp": lambda: saved(COLOUR, format="WEBP"),
    "webp-lossless": lambda: saved(COLOUR, format="WEBP", lossless=True),
}


def check_kind(kind: str, count: int, folder: Path) -> None:
    """Read mutations, and check that both outcomes occur and memory stays bounded."""
    before, original, path = peak_kibibytes(), KINDS[kind](), folder / f"a.{kind}"
    path.write_bytes(original)
    assert len(read_images(path)) == 1
    outcomes: Counter[str] = Counter()
    for number in range(count):
        generator = np.random.default_rng([number, *kind.encode()])
        path.write_bytes(mutate(bytes(132) + original, generator)[132:])
        outcomes += read_file(path)
    assert peak_kibibytes() - before < MOST_KIBIBYTES
    assert outcomes["raster-damaged"] and (outcomes["read"] or kind == "png"), outcomes


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_rasters_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    check_kind(kind, FEW, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_mutated_rasters_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    check_kind(kind, MANY, tmp_path)
