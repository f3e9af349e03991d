"""Bombs: small files that announce or hold very much are refused in under 2 s and 512 MB.

Each is read in a process of its own, whose memory is added to that of its largest decoder; the time is that
of reading alone, without the start of Python and the imports.
"""

import json
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image as PillowImage
from pydicom import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from tests.imaging.conftest import (
    AXIAL,
    build_dataset,
    build_deflate_bomb,
    build_enhanced,
    build_mosaic,
    csa_header,
    deflated_zeros,
    pattern,
    save,
)
from tests.imaging.rasters.tiff_files import Page, build_tiff
from tests.waiting import PATIENCE, slowness

MOST_SECONDS = 2.0
MOST_MEBIBYTES = 512
# What protects the machine where a bomb is not refused.
LIMIT_BYTES = 2**32

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux reports it")

READER = """
import atexit, json, resource, sys, time

def report():  # after the decoders have ended: what was registered first runs last
    # Not RUSAGE_SELF, which counts the memory of the process that started this one.
    own = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    kibibytes = int(own.split()[1]) + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps({**outcome, "mebibytes": kibibytes / 1024}))

outcome = {}
atexit.register(report)
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
from medtl.imaging.reader import read_images
import medtl.imaging.reader, medtl.imaging.dicom.decoder_process

refusals, start = [], time.perf_counter()
try:
    outcome["images"] = len(read_images(sys.argv[1], refusals=refusals))
except Exception as error:
    outcome["error"] = type(error).__name__
outcome["seconds"] = time.perf_counter() - start
outcome["codes"] = [error.code for error in refusals]
"""


@dataclass(frozen=True)
class Outcome:
    """What became of a bomb: images read, codes of refusals, and what it took."""

    codes: list[str]
    seconds: float
    mebibytes: float
    images: int = 0
    error: str = ""


def read_apart(path: Path) -> Outcome:
    """Read a file in a process of its own."""
    command = [sys.executable, "-c", READER, str(path), str(LIMIT_BYTES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stdout, done.stderr[-300:]
    return Outcome(**json.loads(done.stdout))


# DICOM


def radiograph(**elements: Any) -> Dataset:
    """Return a radiograph of 64 x 64 pixels."""
    elements = {"BitsStored": 12, **elements}
    return build_dataset(pattern(64, 64), ComputedRadiographyImageStorage, **elements)


def compressed(syntax: UID, frame: bytes, rows: int, columns: int, **elements: Any) -> Dataset:
    """Return a radiograph of any announced size, with one compressed frame."""
    return _encapsulate(radiograph(Rows=rows, Columns=columns, **elements), [frame], syntax)


def blank_rle(values: int, planes: int = 2) -> bytes:
    """Compress zeros with RLE: two bytes say 128 of them (PS3.5 G.3.1)."""
    plane = b"\x81\0" * (values // 128)
    offsets = [64 + len(plane) * number for number in range(planes)]
    return struct.pack("<16L", planes, *offsets, *[0] * (15 - planes)) + plane * planes


def announced_j2k(rows: int, columns: int) -> bytes:
    """Return a JPEG 2000 codestream of 64 x 64 pixels that announces another size, in one tile."""
    dataset = radiograph()
    dataset.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg")
    stream = bytearray(dataset.PixelData[dataset.PixelData.index(b"\xff\x4f\xff\x51") :])
    stream[8:16] = stream[24:32] = struct.pack(">2L", columns, rows)
    return bytes(stream)


def announced_jpeg_ls(rows: int, columns: int) -> bytes:
    """Return a JPEG-LS codestream of 64 x 64 pixels that announces another size."""
    dataset = radiograph()
    dataset.compress(JPEGLSLossless, encoding_plugin="pyjpegls")
    stream = bytearray(dataset.PixelData[dataset.PixelData.index(b"\xff\xd8\xff\xf7") :])
    stream[7:11] = struct.pack(">2H", rows, columns)
    return bytes(stream)


def announced_jpeg(rows: int, columns: int) -> bytes:
    """Return a baseline JPEG of 64 x 64 pixels that announces another size."""
    stream = BytesIO()
    PillowImage.fromarray(pattern(64, 64, dtype="uint8", top=255)).save(stream, "JPEG")
    data = bytearray(stream.getvalue())
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">2H", rows, columns)
    return bytes(data)


def blank_colour(side: int) -> Dataset:
    """Return a black colour image, compressed with JPEG 2000 to a thousand bytes."""
    stream = BytesIO()
    PillowImage.new("RGB", (side, side)).save(stream, "JPEG2000", no_jp2=True)
    dataset = build_dataset(
        np.zeros((1, 1, 3), np.uint8),
        ComputedRadiographyImageStorage,
        Rows=side,
        Columns=side,
        PhotometricInterpretation="YBR_RCT",
    )
    return _encapsulate(dataset, [stream.getvalue()], JPEG2000Lossless)


def deep(levels: int) -> bytes:
    """Return a radiograph with sequences of undefined length inside one another."""
    sequence = struct.pack("<HH2sHL", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    buffer = BytesIO()
    radiograph().save_as(buffer, enforce_file_format=True)
    data = buffer.getvalue()
    at = data.rindex(struct.pack("<HH", 0x7FE0, 0x0010))
    return data[:at] + (sequence + item) * levels + data[at:]


def long_element(length: int) -> bytes:
    """Return a radiograph with an element that announces a length."""
    buffer = BytesIO()
    radiograph().save_as(buffer, enforce_file_format=True)
    data = buffer.getvalue()
    at = data.rindex(struct.pack("<HH", 0x7FE0, 0x0010))
    return data[:at] + struct.pack("<HH2sHL", 0x0040, 0xA170, b"UN", 0, length) + data[at:]


def lying_mosaic(tiles: int, side: int) -> Dataset:
    """Return a mosaic that says it has very many tiles, of one pixel each."""
    dataset = build_mosaic(pattern(4, 8, 8), Rows=side, Columns=side)
    dataset[0x00291010].value = csa_header(tiles, (0, 0, 1))
    return dataset


def blank_frames(count: int, side: int) -> Dataset:
    """Return an enhanced image of blank frames, compressed with JPEG 2000 to some hundred bytes each."""
    blank = radiograph()
    blank.Rows, blank.Columns, blank.PixelData = side, side, bytes(2 * side * side)
    blank.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg")
    frame = get_frame(blank.PixelData, 0, number_of_frames=1)
    positions = [(0, 0, float(place)) for place in range(count)]
    dataset = build_enhanced(np.zeros((1, side, side), np.uint16), positions, AXIAL, NumberOfFrames=count)
    return _encapsulate(dataset, [frame] * count, JPEG2000Lossless)


def _encapsulate(dataset: Dataset, frames: list[bytes], syntax: UID) -> Dataset:
    dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def deflated(mebibytes: int) -> bytes:
    """Return a deflated radiograph, with zeros behind its pixels."""
    buffer = BytesIO()
    radiograph().save_as(buffer, enforce_file_format=True)
    return build_deflate_bomb(buffer.getvalue(), mebibytes)


DICOM: dict[str, tuple[Callable[[], Dataset | bytes], str]] = {
    "65535 x 65535": (lambda: radiograph(Rows=65535, Columns=65535), "dicom-too-large"),
    "65535 x 65535 in JPEG 2000": (
        lambda: compressed(JPEG2000Lossless, announced_j2k(65535, 65535), 65535, 65535),
        "dicom-too-large",
    ),
    "16384 x 16384 in JPEG 2000": (
        lambda: compressed(JPEG2000Lossless, announced_j2k(16384, 16384), 16384, 16384),
        "dicom-too-large",
    ),
    "16384 x 16384 in JPEG-LS": (
        lambda: compressed(JPEGLSLossless, announced_jpeg_ls(16384, 16384), 16384, 16384),
        "dicom-too-large",
    ),
    "16384 x 16384 in JPEG": (
        lambda: compressed(
            JPEGBaseline8Bit, announced_jpeg(16384, 16384), 16384, 16384, BitsAllocated=8, BitsStored=8
        ),
        "dicom-too-large",
    ),
    "16384 x 16384 blank in RLE": (
        lambda: compressed(RLELossless, blank_rle(16384**2), 16384, 16384),
        "dicom-decoder",
    ),
    "16384 x 16384 in RLE of few bytes": (
        lambda: compressed(RLELossless, blank_rle(128), 16384, 16384),
        "dicom-too-large",
    ),
    "5760 x 5760 blank in JPEG 2000, in colour": (lambda: blank_colour(5760), "dicom-too-large"),
    "a codestream larger than its header": (
        lambda: compressed(JPEG2000Lossless, announced_j2k(40000, 40000), 64, 64),
        "dicom-pixels",
    ),
    "2,000,000,000 frames": (lambda: radiograph(NumberOfFrames=2 * 10**9), "dicom-multiframe"),
    "2,000,000,000 frames of an enhanced image": (
        lambda: build_enhanced(pattern(1, 8, 8), [(0, 0, 0)], AXIAL, NumberOfFrames=2 * 10**9),
        "dicom-header",
    ),
    "512 blank frames": (lambda: blank_frames(512, 512), "dicom-too-large"),
    "a mosaic of a million tiles": (lambda: lying_mosaic(1024**2, 1024), "dicom-mosaic"),
    "deflated: 4 GiB": (lambda: deflated(4096), "dicom-too-large"),
    "sequences 20,000 deep": (lambda: deep(20_000), "dicom-header"),
    "an element of 4 GiB": (lambda: long_element(0xFFFFFFF0), "dicom-truncated"),
}


# Other formats


def png(width: int, height: int, colour_type: int = 0, data: bytes = b"", extra: bytes = b"") -> bytes:
    """Write a PNG of 8 bits from its compressed rows."""
    head = _chunk(b"IHDR", struct.pack(">2L5B", width, height, 8, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def zlib_zeros(mebibytes: int) -> bytes:
    """Return zeros as a zlib stream, whose checksum is the last thing in it."""
    checksum = (mebibytes * 2**20 % 65521) << 16 | 1
    return b"\x78\x9c" + deflated_zeros(mebibytes) + b"\x03\0" + struct.pack(">L", checksum)


def gzip_nifti(shape: tuple[int, ...], dtype: str, mebibytes: int) -> bytes:
    """Return a gzip stream of a NIfTI header, and zeros as its voxels."""
    image = nibabel.Nifti1Image(np.zeros((1, 1, 1), dtype), np.eye(4))
    image.header["vox_offset"] = 352
    image.header["dim"][: len(shape) + 1] = (len(shape), *shape)
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    head = packer.compress(image.header.binaryblock + bytes(4)) + packer.flush(zlib.Z_FULL_FLUSH)
    size = (352 + mebibytes * 2**20) % 2**32
    end = b"\x03\0" + struct.pack("<2L", 0, size)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + head + deflated_zeros(mebibytes) + end


def npz(shape: tuple[int, ...], mebibytes: int = 0) -> bytes:
    """Return a MedMNIST archive of zeros, which may be fewer than its header announces."""
    buffer, header = BytesIO(), BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("train_images.npy", header.getvalue() + bytes(mebibytes * 2**20))
    return buffer.getvalue()


def zipped_zeros(mebibytes: int, declared: int) -> bytes:
    """Return a zip archive whose one member, a radiograph with zeros behind it, announces a size."""
    buffer = BytesIO()
    radiograph().save_as(buffer, enforce_file_format=True)
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = packer.compress(buffer.getvalue()) + packer.flush(zlib.Z_FULL_FLUSH)
    body += deflated_zeros(mebibytes) + b"\x03\0"
    facts = struct.pack("<3L2H", 0, len(body), declared, 5, 0)
    local = b"PK\3\4" + struct.pack("<5H", 20, 0, 8, 0, 0) + facts + b"a.dcm"
    listed = b"PK\1\2" + struct.pack("<6H", 20, 20, 0, 8, 0, 0) + facts + bytes(14) + b"a.dcm"
    end = b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 1, 1, len(listed), len(local) + len(body), 0)
    return local + body + listed + end


def overlapping(count: int) -> bytes:
    """Return a zip archive whose many members are one and the same compressed megabytes."""
    content = zipped_zeros(100, 100 * 2**20)
    start, end = content.rindex(b"PK\1\2"), content.rindex(b"PK\5\6")
    listed = content[start:end]
    members = b"".join(listed[:-5] + f"{number:05d}".encode() for number in range(count))
    end = struct.pack("<4H2LH", 0, 0, count, count, len(members), start, 0)
    return content[:start] + members + b"PK\5\6" + end


def long_list(mebibytes: int) -> bytes:
    """Return a zip archive of very many empty members."""
    listed = b"PK\1\2" + bytes(42)
    members = listed * (mebibytes * 2**20 // len(listed))
    end = struct.pack("<4H2LH", 0, 0, 65535, 65535, len(members), 30, 0)
    return b"PK\3\4" + bytes(26) + members + b"PK\5\6" + end


def gzip_dicom(mebibytes: int) -> bytes:
    """Return a gzip stream of a radiograph with zeros behind it."""
    buffer = BytesIO()
    radiograph().save_as(buffer, enforce_file_format=True)
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    head = packer.compress(buffer.getvalue()) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + head + deflated_zeros(mebibytes) + b"\x03\0" + bytes(8)


def blank_tiff(side: int, data: bytes = b"", tile: int = 0) -> bytes:
    """Return a grey TIFF of any announced size, whose one strip or tile is deflated."""
    shape = {322: tile, 323: tile} if tile else {278: side}
    page = Page(np.zeros((1, 1), np.uint8), compression=8, tags={256: side, 257: side, **shape})
    file = build_tiff(replace(page, tile=1) if tile else page)
    strip = zlib.compress(b"\0")
    return file.replace(strip, data or strip) if len(data) <= len(strip) else _appended(file, data)


def _appended(file: bytes, data: bytes) -> bytes:
    """Put a longer strip behind a TIFF of one."""
    place = struct.pack("<2HL", 273, 4, 1)
    count = struct.pack("<2HL", 279, 4, 1)
    changed = bytearray(file)
    for entry, value in ((place, len(file)), (count, len(data))):
        start = file.index(entry) + len(entry)
        changed[start : start + 4] = struct.pack("<L", value)
    return bytes(changed) + data


def many_pages(count: int) -> bytes:
    """Return a TIFF of so many directories without an entry, each of which leads to the next."""
    links = (struct.pack("<HL", 0, 8 + 6 * (number + 1)) for number in range(count - 1))
    return b"II*\0" + struct.pack("<L", 8) + b"".join(links) + struct.pack("<HL", 0, 0)


def heavy_pages(count: int) -> bytes:
    """Return a TIFF of directories whose tags all hold the same million values."""
    rows = b"".join(struct.pack("<2HLL", tag, 4, 2**20, 8) for tag in (258, 277, 338, 339))
    start, size = 8 + 2**22, 2 + len(rows) + 4
    links = [start + size * (number + 1) for number in range(count - 1)] + [0]
    pages = b"".join(struct.pack("<H", 4) + rows + struct.pack("<L", link) for link in links)
    return b"II*\0" + struct.pack("<L", start) + bytes(2**22) + pages


def blank_webp(side: int) -> bytes:
    """Return a lossless WebP of one colour, whose decoder asks for memory when it is made."""
    stream = BytesIO()
    PillowImage.new("RGB", (64, 64)).save(stream, "WEBP", lossless=True)
    data = bytearray(stream.getvalue())
    place = data.index(b"VP8L") + 9
    bits = (side - 1) | (side - 1) << 14
    data[place : place + 4] = struct.pack("<L", struct.unpack_from("<L", data, place)[0] >> 28 << 28 | bits)
    return bytes(data)


def packed_bmp(side: int) -> bytes:
    """Return a run-length encoded BMP, which may end before its rows do (BI_RLE8)."""
    head = struct.pack("<L2l2H6L", 40, side, side, 1, 8, 1, 4, 0, 0, 256, 0)
    return struct.pack("<2sL2HL", b"BM", 1084, 0, 0, 1078) + head + bytes(1024) + b"\xff\0\0\1"


def gzip_zeros(head: bytes, mebibytes: int) -> bytes:
    """Return a gzip stream of a head, and zeros behind it."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    size = (len(head) + mebibytes * 2**20) % 2**32
    end = b"\x03\0" + struct.pack("<2L", 0, size)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + start + deflated_zeros(mebibytes) + end


def mgh_header(i: int, j: int, k: int, frames: int) -> bytes:
    """Return the header of an MGH file of 16 bits."""
    places = struct.pack(">15f", 1, 1, 1, -1, 0, 0, 0, 0, -1, 0, 1, 0, 0, 0, 0)
    return (struct.pack(">7ih", 1, i, j, k, frames, 4, 0, 1) + places).ljust(284, b"\0")


def nrrd_header(sizes: str, encoding: str) -> bytes:
    """Return the header of an NRRD of 16 bits."""
    lines = ("NRRD0004", "type: short", "dimension: 3", "space: RAS", f"sizes: {sizes}", "endian: little")
    places = ("space directions: (1,0,0) (0,1,0) (0,0,1)", "space origin: (0,0,0)", f"encoding: {encoding}")
    return "\n".join([*lines, *places, "", ""]).encode()


def metaimage_header(sizes: str, compressed: bool) -> bytes:
    """Return the header of a MetaImage of 16 bits."""
    lines = (
        "ObjectType = Image",
        "NDims = 3",
        f"DimSize = {sizes}",
        "ElementType = MET_SHORT",
        "ElementSpacing = 1 1 1",
    )
    data = (f"CompressedData = {compressed}", "BinaryDataByteOrderMSB = False", "ElementDataFile = LOCAL")
    return "\n".join([*lines, *data, ""]).encode()


OTHERS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "MGZ of 2 GiB that its header announces": (
        "a.mgz",
        lambda: gzip_zeros(mgh_header(1024, 1024, 256, 4), 2048),
        "volume-too-large",
    ),
    "MGZ of 4 GiB behind a small header": (
        "a.mgz",
        lambda: gzip_zeros(mgh_header(4, 5, 6, 1), 4096),
        "volume-too-large",
    ),
    "NRRD of 65536 cubed": (
        "a.nrrd",
        lambda: nrrd_header("65536 65536 65536", "raw") + bytes(64),
        "volume-too-large",
    ),
    "NRRD of 512 MiB of gzip that its header announces": (
        "a.nrrd",
        lambda: nrrd_header("1024 1024 256", "gzip") + gzip_zeros(b"", 512),
        "volume-too-large",
    ),
    "NRRD of 4 GiB of gzip behind a small header": (
        "a.nrrd",
        lambda: nrrd_header("4 5 6", "gzip") + gzip_zeros(b"", 4096),
        "volume-too-large",
    ),
    "MetaImage of 65536 cubed": (
        "a.mha",
        lambda: metaimage_header("65536 65536 65536", False) + bytes(64),
        "volume-too-large",
    ),
    "MetaImage of 4 GiB of zlib behind a small header": (
        "a.mha",
        lambda: metaimage_header("4 5 6", True) + zlib_zeros(4096),
        "volume-too-large",
    ),
    "PNG of 60000 x 60000": ("a.png", lambda: png(60000, 60000), "raster-too-large"),
    "PNG of 60000 x 60000, with its rows": (
        "a.png",
        lambda: png(60000, 60000, data=zlib_zeros(3434)),
        "raster-too-large",
    ),
    "blank PNG of 6000 x 6000 in colour": (
        "a.png",
        lambda: png(6000, 6000, 6, zlib_zeros(138)),
        "raster-too-large",
    ),
    "TIFF of 60000 x 60000": ("a.tif", lambda: blank_tiff(60000), "raster-too-large"),
    "blank TIFF of 8000 x 8000": ("a.tif", lambda: blank_tiff(8000, zlib_zeros(64)), "raster-too-large"),
    "TIFF of a tile of 60000 x 60000": ("a.tif", lambda: blank_tiff(64, tile=60000), "raster-too-large"),
    "TIFF of a tile of 8000 x 8000": ("a.tif", lambda: blank_tiff(64, tile=8000), "raster-too-large"),
    "TIFF of pages in a long row": ("a.tif", lambda: many_pages(200_000), "raster-frames"),
    "TIFF of pages with a million values each": ("a.tif", lambda: heavy_pages(1000), "raster-frames"),
    "WebP of 16383 x 16383": ("a.webp", lambda: blank_webp(16383), "raster-too-large"),
    "BMP of 60000 x 60000": ("a.bmp", lambda: packed_bmp(60000), "raster-too-large"),
    "packed BMP of 8000 x 8000": ("a.bmp", lambda: packed_bmp(8000), "raster-too-large"),
    "JPEG-LS of 65535 x 65535": ("a.jls", lambda: announced_jpeg_ls(65535, 65535), "raster-too-large"),
    "JPEG-LS of 8000 x 8000": ("a.jls", lambda: announced_jpeg_ls(8000, 8000), "raster-too-large"),
    "JPEG of 65500 x 65500": ("a.jpg", lambda: announced_jpeg(65500, 65500), "raster-too-large"),
    "npz that announces images of 10 GB": (
        "a.npz",
        lambda: npz((100, 10**5, 10**5), 1),
        "archive-damaged",
    ),
    "npz of 8 million images of one pixel": (
        "a.npz",
        lambda: npz((8 * 2**20, 1, 1), 8),
        "archive-too-large",
    ),
    "gzip of 4 GiB behind a small header": (
        "a.nii.gz",
        lambda: gzip_nifti((4, 5, 6), "int16", 4096),
        "nifti-too-large",
    ),
    "gzip of 2 GiB that its header announces": (
        "a.nii.gz",
        lambda: gzip_nifti((512, 512, 1024), "float64", 2048),
        "nifti-too-large",
    ),
    "gzip of 3 GiB as 3,072 volumes": (
        "a.nii.gz",
        lambda: gzip_nifti((64, 64, 128, 3072), "int16", 3072),
        "nifti-too-large",
    ),
    "gzip of DICOM with 4 GiB": ("a.dcm.gz", lambda: gzip_dicom(4096), "archive-too-large"),
    "zip that announces 2 GiB": ("a.zip", lambda: zipped_zeros(2048, 2**31), "archive-too-large"),
    "zip that hides 2 GiB": ("a.zip", lambda: zipped_zeros(2048, 10_000), "archive-damaged"),
    "zip of 60,000 overlapping members": ("a.zip", lambda: overlapping(60_000), "archive-packed"),
    "zip with a list of 100 MiB": ("a.zip", lambda: long_list(100), "archive-too-large"),
    "zip with a list of 8 MiB": ("a.zip", lambda: long_list(8), "file-unknown"),
    "NIfTI of 32767 cubed": (
        "a.nii.gz",
        lambda: gzip_nifti((32767, 32767, 32767), "int16", 1),
        "nifti-too-large",
    ),
}


def cases(table: dict[str, Any]) -> list[Any]:
    """Return the cases of a table."""
    return [pytest.param(*row, id=name) for name, row in table.items()]


def check(path: Path, code: str) -> None:
    """Check that a bomb is refused, with a code, in time and in memory."""
    outcome = read_apart(path)
    assert (outcome.error, outcome.images, outcome.codes) == ("", 0, [code]), outcome
    assert outcome.seconds < MOST_SECONDS * slowness(), outcome
    assert outcome.mebibytes < MOST_MEBIBYTES, outcome


@pytest.mark.parametrize(("build", "code"), cases(DICOM))
def test_a_dicom_bomb_is_refused(tmp_path: Path, build: Callable[[], Dataset | bytes], code: str) -> None:
    bomb, path = build(), tmp_path / "bomb.dcm"
    if isinstance(bomb, bytes):
        path.write_bytes(bomb)
    else:
        save(bomb, path)
    check(path, code)


@pytest.mark.parametrize(("name", "build", "code"), cases(OTHERS))
def test_a_bomb_of_another_format_is_refused(
    tmp_path: Path, name: str, build: Callable[[], bytes], code: str
) -> None:
    (tmp_path / name).write_bytes(build())
    check(tmp_path / name, code)


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_metadata_that_is_a_bomb_is_not_inflated(tmp_path: Path, kind: bytes) -> None:
    extra = _chunk(kind, b"a\0\0" + zlib_zeros(2048))
    (tmp_path / "a.png").write_bytes(png(8, 8, data=zlib.compress(bytes(72)), extra=extra))
    outcome = read_apart(tmp_path / "a.png")
    assert (outcome.error, outcome.images, outcome.codes) == ("", 1, [])
    assert outcome.seconds < MOST_SECONDS * slowness() and outcome.mebibytes < MOST_MEBIBYTES


def test_a_sound_file_is_read_by_the_same_measure(tmp_path: Path) -> None:
    outcome = read_apart(save(radiograph(), tmp_path / "sound.dcm"))
    assert (outcome.error, outcome.images, outcome.codes) == ("", 1, [])
    assert 0 < outcome.seconds < MOST_SECONDS * slowness() and 20 < outcome.mebibytes < MOST_MEBIBYTES
