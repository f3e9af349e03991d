"""JPEG frame headers (ITU-T T.81 B.2.2); and what pillow does not decode, deep JPEG and JPEG-LS, decoded."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from numpy.typing import NDArray

from medtl.errors import ReadError
from medtl.imaging.rasters.faults import check_bytes, damaged, decode_apart

MAGIC = b"\xff\xd8\xff"
# An index of pictures (CIPA DC-007), the tag that counts them, and how many bytes of a segment lead to it.
MULTI_PICTURE_MARKER, MULTI_PICTURE, NUMBER_OF_IMAGES, MOST_NEEDED = 0xE2, b"MPF\0", 0xB001, 64

# How a frame is coded, by the marker that begins its header.
BASELINE, EXTENDED, PROGRESSIVE, LOSSLESS, JPEG_LS = 0xC0, 0xC1, 0xC2, 0xC3, 0xF7
PROCESSES = {
    BASELINE: "baseline",
    EXTENDED: "extended",
    PROGRESSIVE: "progressive",
    LOSSLESS: "lossless",
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical"),
    **dict.fromkeys((0xC9, 0xCA, 0xCB), "arithmetic-coded"),
    JPEG_LS: "JPEG-LS",
}
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
END_MARKER = bytes((0xFF, END_OF_IMAGE))
# Restart markers, the start of an image and TEM stand alone; all others have a length.
ALONE = frozenset({*range(0xD0, 0xD9), 0x01})

# The transfer syntax, plugin and distribution that decode one grey component of a process.
DECODERS = {
    EXTENDED: ("1.2.840.10008.1.2.4.51", "gdcm", "python-gdcm"),
    LOSSLESS: ("1.2.840.10008.1.2.4.57", "gdcm", "python-gdcm"),
    JPEG_LS: ("1.2.840.10008.1.2.4.81", "pyjpegls", "pyjpegls"),
}
# The depths that it decodes.
DEPTHS = {EXTENDED: range(12, 13), LOSSLESS: range(9, 17), JPEG_LS: range(2, 17)}
# What pillow decodes exactly, in 8 bits.
IN_PILLOW = frozenset({BASELINE, EXTENDED, PROGRESSIVE, LOSSLESS, 0xC9, 0xCA})


@dataclass(frozen=True)
class Frame:
    """What the frame header says; multi_picture: whether an index of further pictures precedes it."""

    process: int
    bits: int
    height: int
    width: int
    components: int
    multi_picture: bool = False

    @property
    def in_pillow(self) -> bool:
        """Whether pillow decodes it."""
        return self.bits == 8 and self.process in IN_PILLOW and self.components in (1, 3, 4)


def find_frame(file: IO[bytes]) -> Frame | None:
    """Return the first frame header; None where there is none before the first scan."""
    file.seek(2)
    several = False
    while (marker := _next_marker(file)) not in (None, START_OF_SCAN, END_OF_IMAGE):
        if marker in ALONE:
            continue
        length = int.from_bytes(file.read(2)) - 2
        body = file.read(min(length, MOST_NEEDED)) if length > 0 else b""
        if marker in PROCESSES:
            return _frame(marker, body, several) if len(body) >= 6 else None
        several = several or (marker == MULTI_PICTURE_MARKER and _names_several(body))
        file.seek(max(length - MOST_NEEDED, 0), 1)
    return None


def check_decodable(frame: Frame, path: Path) -> None:
    """Raise ReadError raster-colour where neither pillow nor another decoder reads such a frame."""
    if frame.in_pillow or (frame.components == 1 and frame.bits in DEPTHS.get(frame.process, ())):
        return
    reason = f"is {PROCESSES[frame.process]} JPEG of {frame.components} x {frame.bits} bits"
    raise ReadError("raster-colour", reason, where=path, fix="convert it to PNG")


def decode(data: bytes, frame: Frame, path: Path) -> NDArray:
    """Decode a grey frame that pillow does not, in a child process, to (H, W).

    Raises ReadError raster-damaged, raster-too-large.
    """
    check_bytes(frame.height * frame.width, len(data), path)
    if END_MARKER not in data:  # a JPEG-LS decoder would look for it for seconds
        raise damaged(path)
    syntax, plugin, _ = DECODERS[frame.process]
    request = {
        "transfer_syntax": syntax,
        "plugin": plugin,
        "rows": frame.height,
        "columns": frame.width,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": 16 if frame.bits > 8 else 8,
        "bits_stored": frame.bits,
        "pixel_representation": 0,
    }
    values = decode_apart(data, request, frame.height * frame.width, path)
    if values.shape != (frame.height, frame.width) or values.max() >= 2**frame.bits:
        raise damaged(path)
    return values


def _names_several(body: bytes) -> bool:
    """Say whether a segment is an index of more than one picture; a damaged one may be."""
    if not body.startswith(MULTI_PICTURE):
        return False
    order = ">" if body[4:6] == b"MM" else "<"
    entry = struct.pack(order + "HHL", NUMBER_OF_IMAGES, 4, 1)
    return entry + struct.pack(order + "L", 1) not in body


def _next_marker(file: IO[bytes]) -> int | None:
    """Return the code of the next marker, before which any number of fill bytes may stand."""
    if file.read(1) != b"\xff":
        return None
    while (code := file.read(1)) == b"\xff":
        pass
    return code[0] if code else None


def _frame(marker: int, body: bytes, several: bool) -> Frame:
    return Frame(
        marker, body[0], int.from_bytes(body[1:3]), int.from_bytes(body[3:5]), body[5], multi_picture=several
    )
