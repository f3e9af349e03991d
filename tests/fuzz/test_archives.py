"""Damaged zip archives and gzip files of DICOM are read exactly or refused: none is ever silently wrong."""

import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import MRImageStorage

from medtl.errors import LINE_LIMIT, MedtlError, ReadError
from medtl.imaging.image import Image
from medtl.imaging.reader import read_images
from tests.fuzz.test_nifti_payloads import DAMAGES
from tests.imaging.conftest import AXIAL, build_dataset, pattern

MUTATIONS = 350
SLICES = [pattern(24, 20, seed=k) for k in range(4)]


def slice_bytes(k: int) -> bytes:
    """Return a slice of an MR series as a file."""
    buffer = io.BytesIO()
    place = {"ImageOrientationPatient": list(AXIAL), "ImagePositionPatient": [0, 0, 2.5 * k]}
    dataset = build_dataset(SLICES[k], MRImageStorage, BitsStored=12, SOPInstanceUID=f"1.2.{k}", **place)
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def zipped(method: int) -> bytes:
    """Return a zip archive of a series, and a text beside it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for k in range(len(SLICES)):
            archive.writestr(f"mr/IM{k}", slice_bytes(k))
        archive.writestr("notes.txt", "notes")
    return buffer.getvalue()


def read(path: Path) -> list[Image]:
    """Return the images of a file, whose refusals must be lines of medtl's own."""
    refusals: list[MedtlError] = []
    images = []
    try:
        images = read_images(path, refusals=refusals)  # type: ignore[arg-type]
    except ReadError as error:
        refusals.append(error)
    assert images or refusals
    for error in refusals:
        line = str(error)
        assert error.code != "file-unreadable" and len(line) <= LINE_LIMIT and "\n" not in line, line
    return images


@pytest.mark.parametrize("name", ["stored.zip", "deflated.zip", "a.dcm.gz"])
def test_what_is_read_of_a_damaged_archive_is_what_was_packed(tmp_path: Path, name: str) -> None:
    methods = {"stored.zip": zipfile.ZIP_STORED, "deflated.zip": zipfile.ZIP_DEFLATED}
    sound = zipped(methods[name]) if name in methods else gzip.compress(slice_bytes(0))
    generator = np.random.default_rng(0)
    for number in range(MUTATIONS):
        damage = DAMAGES[number % len(DAMAGES)]
        (tmp_path / name).write_bytes(damage(sound, generator))
        for image in read(tmp_path / name):
            for plane in image.pixels.reshape(-1, 24, 20):
                assert any(np.array_equal(plane, original) for original in SLICES), number
