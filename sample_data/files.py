"""Write NIfTI volumes and PNG masks whose bytes depend on their content alone."""

import gzip
import io
import struct
import zlib
from pathlib import Path
from typing import TypeVar

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from .randomness import Array

Number = TypeVar("Number", bound=np.generic)


def write_nifti(array: NDArray[np.generic], affine: Array, path: Path) -> None:
    """Write an array and its affine to RAS+ mm as .nii.gz, with qform and sform set and equal."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(image.get_qform(), code=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_gzip(image.to_bytes()))


def write_mask_png(mask: NDArray[np.bool_], path: Path) -> None:
    """Write a mask (rows, columns) as an 8-bit grey PNG of 0 and 255 (ISO/IEC 15948)."""
    rows, columns = mask.shape
    grey = np.where(mask, 255, 0).astype(np.uint8)
    scanlines = np.pad(grey, ((0, 0), (1, 0))).tobytes()  # a leading 0 per row: no filter
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(scanlines, 9)), (b"IEND", b""))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(*chunk) for chunk in chunks))


def reorient(volume: NDArray[Number], affine: Array, orientation: str) -> tuple[NDArray[Number], Array]:
    """Turn (slices up, rows back, columns left) into x, y, z, RAS or LAS; each voxel stays where it is."""
    turned = np.transpose(volume, (2, 1, 0))
    axes = affine[:, [2, 1, 0, 3]]
    flips = (0, 1) if orientation == "RAS" else (1,)
    for axis in flips:
        turned = np.flip(turned, axis)
        axes[:, 3] += (turned.shape[axis] - 1) * axes[:, axis]
        axes[:, axis] *= -1
    return np.ascontiguousarray(turned), axes


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _gzip(content: bytes) -> bytes:
    """Compress without a file name and without a date."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as file:
        file.write(content)
    return buffer.getvalue()
