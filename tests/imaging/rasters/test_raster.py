"""PNG, JPEG, BMP and WebP files: read exactly, or refused by name."""

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


@pytest.mark.parametrize("magic", [b"BM", b"GIF89a"], ids=["BMP", "GIF"])
def test_other_content_named_png_is_refused(tmp_path: Path, magic: bytes) -> None:
    buffer = io.BytesIO(magic + b"\0" * 100)
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    assert refusal(tmp_path / "a.png").code == "file-unknown"


def test_a_text_that_begins_like_bmp_is_no_image(tmp_path: Path) -> None:
    save(tmp_path / "a.png", pattern(7, 5, dtype="uint8", top=255))
    (tmp_path / "notes.csv").write_text("BMI,age\n22.5,61\n23.5,62\n")
    assert len(read_images(tmp_path)) == 1


# PNG


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))


def with_chunk(path: Path, added: bytes) -> Path:
    """Put a chunk behind the header of a PNG."""
    data = path.read_bytes()
    path.write_bytes(data[:33] + added + data[33:])
    return path


METADATA = {
    "a colour profile of 1.2 MB": b"iCCP" + b"profile\0\0" + zlib.compress(bytes(1_200_000)),
    "XMP of 1.1 MB": b"iTXt" + b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"x" * 1_100_000),
    "text of 2 MB": b"tEXt" + b"Comment\0" + b"x" * 2_000_000,
    "compressed text of 64 MiB": b"zTXt" + b"Comment\0\0" + zlib.compress(bytes(2**26)),
    "a profile that is not zlib": b"iCCP" + b"profile\0\0" + b"broken",
    "a gamma of 1": b"gAMA" + struct.pack(">L", 100_000),
    "12 significant bits": b"sBIT" + b"\x0c",
}


@pytest.mark.parametrize("body", METADATA.values(), ids=METADATA)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_metadata_of_a_png_changes_nothing(tmp_path: Path, body: bytes, dtype: str) -> None:
    values = pattern(7, 5, dtype=dtype, top=255)
    image = read_one(with_chunk(save(tmp_path / "a.png", values), chunk(body[:4], body[4:])))
    np.testing.assert_array_equal(image.pixels[0], values)
    assert image.facts.notes == ()


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("transparent", [False, True])
def test_few_bits_of_grey_are_stretched_to_eight(tmp_path: Path, bits: int, transparent: bool) -> None:
    values = pattern(7, 8, dtype="uint8", top=2**bits - 1)
    digits = np.unpackbits(values[..., None], axis=2)[..., 8 - bits :].reshape(7, -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in digits)
    transparency = chunk(b"tRNS", b"\0\0") if transparent else b""
    tail = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(png_header(8, 7, bits, 0) + transparency + tail)
    image = read_one(tmp_path / "a.png")
    np.testing.assert_array_equal(image.pixels[0], values * (255 // (2**bits - 1)))
    assert image.facts.notes == (("alpha dropped",) if transparent else ())


def test_an_interlaced_png_is_read(tmp_path: Path) -> None:
    import imagecodecs

    values = pattern(16, 16, dtype="uint16", top=65535)
    passes = [
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ]
    rows = b"".join(
        b"\0" + row.astype(">u2").tobytes()
        for y, x, down, right in passes
        for row in values[y::down, x::right]
    )
    body = b"IHDR" + struct.pack(">2L5B", 16, 16, 16, 0, 0, 0, 1)
    data = b"\x89PNG\r\n\x1a\n" + chunk(body[:4], body[4:]) + chunk(b"IDAT", zlib.compress(rows))
    (tmp_path / "a.png").write_bytes(data + chunk(b"IEND", b""))
    np.testing.assert_array_equal(imagecodecs.png_decode((tmp_path / "a.png").read_bytes()), values)
    np.testing.assert_array_equal(read_one(tmp_path / "a.png").pixels[0], values)


def test_what_follows_the_end_of_a_png_is_not_read(tmp_path: Path) -> None:
    values = pattern(7, 5, dtype="uint8", top=255)
    path = save(tmp_path / "a.png", values)
    path.write_bytes(path.read_bytes() + b"more")
    np.testing.assert_array_equal(read_one(path).pixels[0], values)


@pytest.mark.parametrize("kind", [b"tEXt", b"iCCP"])
def test_damaged_metadata_of_a_png_is_noticed(tmp_path: Path, kind: bytes) -> None:
    path = save(tmp_path / "a.png", pattern(7, 5, dtype="uint8", top=255))
    assert refusal(with_chunk(path, chunk(kind, b"a\0b")[:-1] + b"!")).code == "raster-damaged"


# JPEG


def jpeg(values: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    PillowImage.fromarray(values).save(stream, options.pop("format", "JPEG"), **options)
    return stream.getvalue()


def shown(data: bytes) -> np.ndarray:
    """Return what pillow shows of a file: its first picture, (C, H, W)."""
    with PillowImage.open(io.BytesIO(data)) as picture:
        values = np.asarray(picture)
    return values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)


@pytest.mark.parametrize("further", [1, 3])
def test_the_first_picture_of_a_phone_is_read_with_a_note(tmp_path: Path, further: int) -> None:
    photo = PillowImage.fromarray(pattern(64, 80, 3, dtype="uint8", top=255))
    previews = [photo.resize((40, 32))] * further
    photo.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=previews)
    image = read_one(tmp_path / "a.jpg")
    np.testing.assert_array_equal(image.pixels, shown(jpeg(np.asarray(photo))))
    assert image.facts.notes == ("the first picture of several",)


def test_an_index_of_one_picture_needs_no_note(tmp_path: Path) -> None:
    photo = PillowImage.fromarray(pattern(64, 80, 3, dtype="uint8", top=255))
    photo.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[photo.resize((40, 32))])
    two, one = (struct.pack("<HHLL", 0xB001, 4, 1, count) for count in (2, 1))
    data = (tmp_path / "a.jpg").read_bytes()
    assert data.count(two) == 1
    (tmp_path / "a.jpg").write_bytes(data.replace(two, one))
    image = read_one(tmp_path / "a.jpg")
    np.testing.assert_array_equal(image.pixels, shown(jpeg(np.asarray(photo))))
    assert image.facts.notes == ()


def test_a_damaged_index_of_pictures_costs_nothing(tmp_path: Path) -> None:
    photo = PillowImage.fromarray(pattern(64, 80, 3, dtype="uint8", top=255))
    photo.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[photo.resize((40, 32))])
    data = bytearray((tmp_path / "a.jpg").read_bytes())
    place = data.index(b"MPF\0")
    data[place + 4 : place + 12] = b"\xff" * 8
    (tmp_path / "a.jpg").write_bytes(data)
    np.testing.assert_array_equal(read_one(tmp_path / "a.jpg").pixels, shown(jpeg(np.asarray(photo))))


@pytest.mark.parametrize(
    "change",
    [lambda data: data + b"trailer" * 50, lambda data: data[:2] + b"\xff\xff\xff" + data[2:]],
    ids=["bytes behind the end", "fill bytes"],
)
def test_harmless_bytes_in_a_jpeg_change_nothing(tmp_path: Path, change: Any) -> None:
    data = jpeg(pattern(16, 24, dtype="uint8", top=255), progressive=True)
    (tmp_path / "a.jpg").write_bytes(change(data))
    np.testing.assert_array_equal(read_one(tmp_path / "a.jpg").pixels, shown(data))


def test_a_damaged_exif_leaves_the_image_as_stored_with_a_note(tmp_path: Path) -> None:
    values = pattern(16, 24, dtype="uint8", top=255)
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    data = jpeg(values, exif=exif)
    (tmp_path / "a.jpg").write_bytes(data.replace(b"MM\0*", b"XX\0*"))
    image = read_one(tmp_path / "a.jpg")
    np.testing.assert_array_equal(image.pixels, shown(jpeg(values)))
    assert image.facts.notes == ("EXIF orientation cannot be read: taken as upright",)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_does_not_exist_is_upright(tmp_path: Path, orientation: int) -> None:
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    values = pattern(7, 5, dtype="uint8", top=255)
    image = read_one(save(tmp_path / "a.png", values, exif=exif))
    np.testing.assert_array_equal(image.pixels[0], values)
    assert image.facts.notes == ()


@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize(("bits", "dtype"), [(8, "uint8"), (12, "uint16"), (16, "uint16")])
def test_lossless_jpeg_is_exact(tmp_path: Path, bits: int, dtype: str, predictor: int) -> None:
    import imagecodecs

    values = pattern(40, 37, dtype=dtype, top=2**bits - 1)
    data = imagecodecs.jpeg_encode(values, lossless=True, predictor=predictor, bitspersample=bits)
    (tmp_path / "a.jpg").write_bytes(data)
    image = read_one(tmp_path / "a.jpg")
    np.testing.assert_array_equal(image.pixels[0], values)
    assert image.facts.bits == bits and image.facts.notes == ()


def test_twelve_bit_jpeg_equals_libjpeg(tmp_path: Path) -> None:
    import imagecodecs

    rows, columns = np.indices((64, 48))
    values = ((rows * 40 + columns * 20) % 4096).astype(np.uint16)
    data = imagecodecs.jpeg_encode(values, bitspersample=12, level=95)
    (tmp_path / "a.jpg").write_bytes(data)
    image = read_one(tmp_path / "a.jpg")
    expected = imagecodecs.jpeg_decode(data).astype(int)
    assert expected.max() > 3400 and np.abs(image.pixels[0] - expected).max() <= 1
    assert image.facts.bits == 12 and image.facts.decoder.startswith("python-gdcm")


@pytest.mark.parametrize(("bits", "dtype"), [(8, "uint8"), (12, "uint16"), (16, "uint16")])
@pytest.mark.parametrize("name", ["a.jls", "a.jpg"])
def test_jpeg_ls_is_exact(tmp_path: Path, name: str, bits: int, dtype: str) -> None:
    import imagecodecs

    values = pattern(40, 37, dtype=dtype, top=2**bits - 1)
    (tmp_path / name).write_bytes(imagecodecs.jpegls_encode(values))
    np.testing.assert_array_equal(read_one(tmp_path / name).pixels[0], values)


@pytest.mark.parametrize(("marker", "name"), [(0xC5, "hierarchical"), (0xCB, "arithmetic-coded")])
def test_other_kinds_of_jpeg_are_named(tmp_path: Path, marker: int, name: str) -> None:
    data = jpeg(pattern(16, 24, dtype="uint8", top=255))
    (tmp_path / "a.jpg").write_bytes(data.replace(b"\xff\xc0", bytes([0xFF, marker])))
    error = refusal(tmp_path / "a.jpg")
    assert error.code == "raster-colour" and name in error.reason and "PNG" in error.fix


def test_deep_jpeg_in_colour_is_named(tmp_path: Path) -> None:
    import imagecodecs

    values = pattern(16, 24, 3, top=4095)
    (tmp_path / "a.jpg").write_bytes(imagecodecs.jpeg_encode(values, bitspersample=12, level=95))
    error = refusal(tmp_path / "a.jpg")
    assert error.code == "raster-colour" and "3 x 12 bits" in error.reason


def test_a_jpeg_of_two_components_is_named(tmp_path: Path) -> None:
    data = jpeg(pattern(16, 24, 3, dtype="uint8", top=255))
    place = data.index(b"\xff\xc0") + 9
    (tmp_path / "a.jpg").write_bytes(data[:place] + b"\2" + data[place + 1 :])
    error = refusal(tmp_path / "a.jpg")
    assert error.code == "raster-colour" and "2 x 8 bits" in error.reason


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_truncated_lossless_jpeg_is_refused(tmp_path: Path, kept: float) -> None:
    import imagecodecs

    data = imagecodecs.jpeg_encode(pattern(64, 64, top=4095), lossless=True, bitspersample=12)
    (tmp_path / "a.jpg").write_bytes(data[: int(len(data) * kept)])
    assert refusal(tmp_path / "a.jpg").code == "raster-damaged"


# WebP and BMP


@pytest.mark.parametrize(
    "options", [{"lossless": True, "exact": True}, {"quality": 90}], ids=["exact", "lossy"]
)
def test_webp_equals_pillow(tmp_path: Path, options: dict[str, Any]) -> None:
    values = pattern(40, 36, 3, dtype="uint8", top=255)
    path = save(tmp_path / "a.webp", values, **options)
    image = read_one(path)
    np.testing.assert_array_equal(image.pixels, shown(path.read_bytes()))
    assert image.facts.notes == () and (image.pixels == np.moveaxis(values, -1, 0)).all() == (
        "exact" in options
    )


def test_alpha_of_webp_is_dropped_with_a_note(tmp_path: Path) -> None:
    values = pattern(40, 36, 4, dtype="uint8", top=255)
    image = read_one(save(tmp_path / "a.webp", values, lossless=True, exact=True))
    np.testing.assert_array_equal(image.pixels, np.moveaxis(values[..., :3], -1, 0))
    assert image.facts.notes == ("alpha dropped",)


def test_an_animated_webp_is_refused(tmp_path: Path) -> None:
    frames = [PillowImage.fromarray(pattern(8, 8, 3, dtype="uint8", top=255, seed=seed)) for seed in range(2)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    assert refusal(tmp_path / "a.webp").code == "raster-frames"


def bmp(
    rows: bytes, bits: int, height: int, palette: bytes = b"", masks: bytes = b"", packing: int = 0
) -> bytes:
    """Return a BMP of width 8 from its rows, which lie from bottom to top where the height is positive."""
    start = 54 + len(masks) + len(palette)
    size = (8, height, 1, bits, packing, len(rows), 0, 0, len(palette) // 4, 0)
    head = struct.pack("<2sL2HL", b"BM", start + len(rows), 0, 0, start) + struct.pack("<L2l2H6L", 40, *size)
    return head + palette + rows


def grey_palette(levels: np.ndarray) -> bytes:
    return np.pad(np.repeat(levels[:, None], 3, axis=1), ((0, 0), (0, 1))).astype(np.uint8).tobytes()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("inverted", [False, True])
def test_the_palette_of_a_bmp_says_what_is_bright(
    tmp_path: Path, bits: int, inverted: bool, turned: bool
) -> None:
    values = pattern(8, 8, dtype="uint8", top=2**bits - 1)
    levels = np.linspace(0, 255, 2**bits).astype(np.uint8)
    levels = levels[::-1] if inverted else levels
    digits = np.unpackbits(values[..., None], axis=2)[..., 8 - bits :].reshape(8, -1)
    packed = np.packbits(digits, axis=1)
    packed = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4)))
    rows = (packed if turned else packed[::-1]).tobytes()
    (tmp_path / "a.bmp").write_bytes(bmp(rows, bits, -8 if turned else 8, grey_palette(levels)))
    np.testing.assert_array_equal(read_one(tmp_path / "a.bmp").pixels, levels[values][None])


@pytest.mark.parametrize("bits", [24, 32])
def test_colour_of_a_bmp_is_as_written(tmp_path: Path, bits: int) -> None:
    values = pattern(8, 8, 3, dtype="uint8", top=255)
    stored = values[::-1, :, ::-1]
    stored = np.pad(stored, ((0, 0), (0, 0), (0, 1)), constant_values=9) if bits == 32 else stored
    (tmp_path / "a.bmp").write_bytes(bmp(stored.tobytes(), bits, 8))
    np.testing.assert_array_equal(read_one(tmp_path / "a.bmp").pixels, np.moveaxis(values, -1, 0))


@pytest.mark.parametrize("name", ["a.webp", "a.bmp"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.95])
def test_a_truncated_webp_or_bmp_is_refused(tmp_path: Path, name: str, kept: float) -> None:
    path = save(tmp_path / name, pattern(64, 64, 3, dtype="uint8", top=255))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    assert refusal(path).code == "raster-damaged"
