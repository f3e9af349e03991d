"""Write TIFF files from arrays, byte by byte, so that readers can be compared with what was written."""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import imagecodecs
import numpy as np

SIGNED_KINDS = {"u": 1, "i": 2, "f": 3}
PACKERS: dict[int, Callable[[bytes], bytes]] = {
    1: bytes,
    5: imagecodecs.lzw_encode,
    8: zlib.compress,
    32773: imagecodecs.packbits_encode,
}


@dataclass(frozen=True)
class Page:
    """How one page is written. values: (H, W) or (H, W, samples); bits below 8 or 16 are packed."""

    values: np.ndarray
    bits: int = 0
    compression: int = 1
    photometric: int | None = None
    tile: int = 0
    strip: int = 0
    planar: int = 1
    fill_order: int = 1
    predictor: int = 1
    tags: dict[int, Any] = field(default_factory=dict)
    drop_parts: int = 0

    def parts(self, order: str) -> list[bytes]:
        """Return the strips or tiles."""
        layers = [self.values] if self.planar == 1 else list(np.moveaxis(self.values, -1, 0))
        parts = [part for layer in layers for part in self._cut(layer)]
        packed = [PACKERS[self.compression](self._pack(part, order)) for part in parts]
        if self.fill_order == 2:
            packed = [_reverse_bits(part) for part in packed]
        return packed[: len(packed) - self.drop_parts]

    def directory(self) -> dict[int, Any]:
        """Return the tags, without where the parts lie."""
        height, width = self.values.shape[:2]
        samples = self.values.shape[2] if self.values.ndim == 3 else 1
        bits = self.bits or self.values.dtype.itemsize * 8
        meaning = self.photometric if self.photometric is not None else (2 if samples > 2 else 1)
        kind = SIGNED_KINDS[self.values.dtype.kind]
        shape = {322: self.tile, 323: self.tile} if self.tile else {278: self.strip or height}
        tags = {256: width, 257: height, 258: (bits,) * samples, 259: self.compression, 262: meaning}
        tags |= {266: self.fill_order, 277: samples, 284: self.planar, 317: self.predictor}
        return {**tags, 339: (kind,) * samples, **shape, **self.tags}

    def _cut(self, layer: np.ndarray) -> list[np.ndarray]:
        height, width = layer.shape[:2]
        if not self.tile:
            rows = self.strip or height
            return [layer[start : start + rows] for start in range(0, height, rows)]
        size = self.tile
        margins = ((0, -height % size), (0, -width % size), (0, 0))[: layer.ndim]
        wide = np.pad(layer, margins)
        places = [(row, column) for row in range(0, height, size) for column in range(0, width, size)]
        return [wide[row : row + size, column : column + size] for row, column in places]

    def _pack(self, part: np.ndarray, order: str) -> bytes:
        if self.predictor == 2:
            part = np.concatenate([part[:, :1], np.diff(part, axis=1)], axis=1)
        rows = part.reshape(len(part), -1)
        if not self.bits:
            return rows.astype(rows.dtype.newbyteorder(order)).tobytes()  # type: ignore[arg-type]
        digits = (rows[..., None] >> np.arange(self.bits - 1, -1, -1)) & 1
        return np.packbits(digits.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


def build_tiff(*pages: Page, order: str = "<", big: bool = False) -> bytes:
    """Return a TIFF file, or a BigTIFF file where `big`."""
    offset, size = ("Q", 8) if big else ("L", 4)
    head = struct.pack(order + "3HQ", 43, 8, 0, 16) if big else struct.pack(order + "HL", 42, 8)
    file, link = bytearray((b"II" if order == "<" else b"MM") + head), 0
    for page in pages:
        if link:
            struct.pack_into(order + offset, file, link, len(file))
        parts, tags = page.parts(order), page.directory()
        places, counts = (324, 325) if page.tile else (273, 279)
        entries = {**tags, places: (0,) * len(parts), counts: tuple(map(len, parts))}
        start = len(file) + (8 if big else 2) + len(entries) * (20 if big else 12) + size
        entries[places] = tuple(start + sum(map(len, parts[:n])) for n in range(len(parts)))
        beyond = start + sum(map(len, parts))
        rows, extra = bytearray(), bytearray()
        for tag, value in sorted(entries.items()):
            kind, count, data = _encode(tag, value, order)
            rows += struct.pack(order + "HH" + offset, tag, kind, count)
            if len(data) <= size:
                rows += data.ljust(size, b"\0")
            else:
                rows += struct.pack(order + offset, beyond + len(extra))
                extra += data
        file += struct.pack(order + ("Q" if big else "H"), len(entries)) + rows
        link = len(file)
        file += bytes(size) + b"".join(parts) + extra
    return bytes(file)


def _encode(tag: int, value: Any, order: str) -> tuple[int, int, bytes]:
    """Return the type of a tag (ASCII, SHORT or LONG), its count and its bytes."""
    if isinstance(value, str):
        return 2, len(value) + 1, value.encode() + b"\0"
    values = value if isinstance(value, tuple) else (value,)
    long = tag in (254, 256, 257, 273, 279, 324, 325)
    return (
        (4 if long else 3),
        len(values),
        struct.pack(f"{order}{len(values)}{'L' if long else 'H'}", *values),
    )


def _reverse_bits(data: bytes) -> bytes:
    return np.packbits(np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")).tobytes()
