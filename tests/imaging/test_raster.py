"""PNG and JPEG files: read exactly, or refused by name."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from medtl.errors import ReadError
from medtl.imaging.image import Image
from medtl.imaging.reader import read_images
from tests.imaging.conftest import pattern, refusal


def read_one(path: Path) -> Image:
    (image,) = read_images(path)
    return image


def save(path: Path, values: np.ndarray, mode: str | None = None, **options: Any) -> Path:
    picture = PillowImage.fromarray(values)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("uint16", 65535)])
def test_grey_png_has_the_stored_values(tmp_path: Path, dtype: str, top: int) -> None:
    values = pattern(7, 5, dtype=dtype, top=top)
    image = read_one(save(tmp_path / "a.png", values))
    np.testing.assert_array_equal(image.pixels, values[None])
    assert image.pixels.dtype == np.float32 and image.affine is None and image.spacing_mm is None
    assert image.facts.bits == np.dtype(dtype).itemsize * 8 and image.facts.notes == ()


def test_colour_png_has_three_channels(tmp_path: Path) -> None:
    values = pattern(7, 5, 3, dtype="uint8", top=255)
    image = read_one(save(tmp_path / "a.png", values))
    np.testing.assert_array_equal(image.pixels, np.moveaxis(values, -1, 0))


def test_grey_stored_as_colour_is_one_channel(tmp_path: Path) -> None:
    values = pattern(7, 5, dtype="uint8", top=255)
    image = read_one(save(tmp_path / "a.png", np.stack([values] * 3, axis=-1)))
    np.testing.assert_array_equal(image.pixels, values[None])
    assert image.facts.notes == ("grey stored as colour",)


def test_alpha_is_dropped_with_a_note(tmp_path: Path) -> None:
    values = pattern(7, 5, 4, dtype="uint8", top=255)
    image = read_one(save(tmp_path / "a.png", values))
    np.testing.assert_array_equal(image.pixels, np.moveaxis(values[..., :3], -1, 0))
    assert image.facts.notes == ("alpha dropped",)


def test_a_palette_becomes_rgb_with_a_note(tmp_path: Path) -> None:
    picture = PillowImage.fromarray(pattern(7, 5, dtype="uint8", top=3)).convert("P")
    picture.putpalette([200, 0, 0, 0, 150, 0, 0, 0, 100, 9, 8, 7])
    picture.save(tmp_path / "a.png")
    image = read_one(tmp_path / "a.png")
    np.testing.assert_array_equal(image.pixels, np.moveaxis(np.asarray(picture.convert("RGB")), -1, 0))
    assert image.facts.notes == ("palette converted to RGB",)


@pytest.mark.parametrize("shape", [(16, 24), (16, 24, 3)], ids=["grey", "colour"])
def test_jpeg_equals_pillow(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = save(tmp_path / "a.jpg", pattern(*shape, dtype="uint8", top=255), quality=95)
    expected = np.asarray(PillowImage.open(path), dtype=np.float32)
    image = read_one(path)
    np.testing.assert_array_equal(
        image.pixels, expected[None] if expected.ndim == 2 else np.moveaxis(expected, -1, 0)
    )
    assert image.facts.decoder.startswith("pillow") and len(image.facts.sha256) == 64


def test_content_decides_and_not_the_extension(tmp_path: Path) -> None:
    values = pattern(7, 5, dtype="uint8", top=255)
    path = save(tmp_path / "a.jpg", values, format="PNG")
    np.testing.assert_array_equal(read_one(path).pixels[0], values)


def test_the_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    values = pattern(7, 5, dtype="uint8", top=255)
    image = read_one(save(tmp_path / "a.png", values, exif=exif))
    np.testing.assert_array_equal(image.pixels[0], np.rot90(values, -1))
    assert image.facts.notes == ("turned by its EXIF orientation",)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.995])
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, name: str, kept: float) -> None:
    path = save(tmp_path / name, pattern(64, 64, dtype="uint8", top=255))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    error = refusal(path)
    assert error.code == "raster-damaged" and error.where == str(path)


def test_any_corrupted_byte_of_a_png_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", pattern(16, 16, dtype="uint8", top=255))
    data = path.read_bytes()
    for place in range(8, len(data) - 12, 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ReadError):
            read_images(path)


def png_header(width: int, height: int, depth: int, colour_type: int) -> bytes:
    body = b"IHDR" + struct.pack(">2L5B", width, height, depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">L", 13) + body + struct.pack(">L", zlib.crc32(body))


@pytest.mark.parametrize("size", [(9000, 9000), (60000, 60000), (2**31 - 1, 2**31 - 1)], ids=str)
def test_a_size_that_lies_is_refused_before_decompression(
    tmp_path: Path, size: tuple[int, int], recwarn: Any
) -> None:
    path = tmp_path / "bomb.png"
    body = b"IDAT" + zlib.compress(b"\0" * 1000)
    chunk = struct.pack(">L", len(body) - 4) + body + struct.pack(">L", zlib.crc32(body))
    path.write_bytes(png_header(*size, 8, 0) + chunk)
    assert refusal(path).code == "raster-too-large"
    assert not recwarn.list


def test_sixteen_bits_of_colour_are_refused_since_pillow_would_cut_them(tmp_path: Path) -> None:
    body = b"IDAT" + zlib.compress((b"\0" + b"\1\2" * 6) * 2)
    end = struct.pack(">L", 0) + b"IEND" + struct.pack(">L", zlib.crc32(b"IEND"))
    chunk = struct.pack(">L", len(body) - 4) + body + struct.pack(">L", zlib.crc32(body))
    path = tmp_path / "deep.png"
    path.write_bytes(png_header(2, 2, 16, 2) + chunk + end)
    assert refusal(path).code == "raster-colour"


def test_several_frames_are_refused(tmp_path: Path) -> None:
    frames = [PillowImage.fromarray(pattern(8, 8, dtype="uint8", top=255, seed=seed)) for seed in range(2)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    assert refusal(tmp_path / "a.png").code == "raster-frames"


def test_cmyk_is_refused(tmp_path: Path) -> None:
    assert refusal(save(tmp_path / "a.jpg", pattern(8, 8, 3, dtype="uint8"), "CMYK")).code == "raster-colour"


@pytest.mark.parametrize("magic", [b"BM", b"II*\0", b"GIF89a"], ids=["BMP", "TIFF", "GIF"])
def test_other_rasters_named_png_are_refused(tmp_path: Path, magic: bytes) -> None:
    buffer = io.BytesIO(magic + b"\0" * 100)
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    assert refusal(tmp_path / "a.png").code == "file-unknown"
