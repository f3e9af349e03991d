import base64
import io

import numpy as np
import pytest
from PIL import Image

from medtl.reporting.figures import (
    LARGEST_SIDE,
    STAGE_SIDE,
    encode_colour_bar,
    encode_grey,
    encode_overlay,
    encode_slices,
    encode_thumbnail,
    frame_of,
    overlay_ramp,
    peak_slice,
)


def decode(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2], validate=True)))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def test_grey_png_holds_the_pixels_exactly():
    image = noise(12, 9)
    assert np.array_equal(np.asarray(decode(encode_grey(image))), np.round(image * 255).astype(np.uint8))


def test_jpeg_shows_no_difference():
    rows, columns = np.mgrid[0:1:128j, 0:1:128j]
    image = (0.5 + 0.3 * np.sin(12 * rows) * np.cos(9 * columns)).astype(np.float32)
    shown = np.asarray(decode(encode_grey(image, lossless=False)), dtype=float)
    assert np.abs(shown - image * 255).mean() < 1.5


def test_large_image_keeps_its_proportions():
    picture = decode(encode_grey(noise(2 * LARGEST_SIDE, LARGEST_SIDE)))
    assert picture.size == (LARGEST_SIDE // 2, LARGEST_SIDE)


def test_overlay_is_clear_where_nothing_is_and_denser_where_more_is():
    levels = np.linspace(0, 1, 256, dtype=np.float32)[None]
    pixels = np.asarray(decode(encode_overlay(levels)).convert("RGBA"))[0]
    assert pixels[0, 3] == 0 and pixels[-1, 3] == 255
    assert (np.diff(pixels[:, 3].astype(int)) >= 0).all()
    assert np.array_equal(pixels, overlay_ramp())


def test_overlay_colours_rise_in_lightness():
    lightness = overlay_ramp()[:, :3] @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > -1).all() and lightness[-1] - lightness[0] > 120


def test_overlay_lies_where_the_heatmap_is():
    heatmap = np.zeros((10, 14), np.float32)
    heatmap[3, 11] = 1.0
    opacity = np.asarray(decode(encode_overlay(heatmap)).convert("RGBA"))[..., 3]
    assert opacity.shape == (10, 14) and np.argwhere(opacity).tolist() == [[3, 11]]


def test_frame_has_true_proportions():
    assert (frame_of(noise(100, 100), (2.0, 1.0)).width, frame_of(noise(100, 100), (2.0, 1.0)).height) == (
        STAGE_SIDE // 2,
        STAGE_SIDE,
    )
    volume = frame_of(noise(4, 50, 100), (6.0, 1.0, 1.0))
    assert (volume.width, volume.height) == (STAGE_SIDE, STAGE_SIDE // 2)


@pytest.mark.parametrize(("width_mm", "text"), [(320, "50 mm"), (80, "20 mm"), (4, "1 mm"), (0.9, "0.2 mm")])
def test_ruler_is_a_round_length_in_the_scale_of_the_frame(width_mm, text):
    frame = frame_of(noise(100, 100), (width_mm / 100, width_mm / 100))
    assert frame.ruler_text == text
    assert frame.ruler_px / frame.width == pytest.approx(float(text.split()[0]) / width_mm)


def test_no_ruler_without_spacing():
    frame = frame_of(noise(10, 10), None)
    assert frame.ruler_text == "" and frame.ruler_px == 0


def test_each_slice_is_encoded_in_order():
    volume, heatmap = noise(5, 8, 6), np.zeros((5, 8, 6), np.float32)
    heatmap[3] = 0.5
    slices = encode_slices(volume, heatmap)
    assert [part.peak for part in slices] == [0, 0, 0, 0.5, 0]
    assert np.array_equal(np.asarray(decode(slices[2].image)), np.round(volume[2] * 255).astype(np.uint8))


def test_stack_too_large_for_png_becomes_jpeg():
    assert decode(encode_slices(noise(9, 500, 500), None)[0].image).format == "JPEG"
    assert decode(encode_slices(noise(7, 500, 500), None)[0].image).format == "PNG"


def test_peak_slice_is_where_the_heatmap_is_largest():
    heatmap = np.zeros((7, 4, 4), np.float32)
    assert peak_slice(None, 7) == peak_slice(heatmap, 7) == 3
    heatmap[1] = 0.3
    heatmap[5, 2, 2] = 0.9
    assert peak_slice(heatmap, 7) == 5


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1), (3, 5)])
def test_odd_shapes_are_drawn(shape):
    frame = frame_of(noise(*shape), (1.0, 1.0))
    assert min(frame.width, frame.height) >= 1
    assert min(decode(encode_thumbnail(noise(*shape), noise(*shape), (1.0, 1.0))).size) >= 1
    assert decode(encode_slices(noise(*shape), noise(*shape))[0].overlay).size == shape[::-1]


def test_thumbnail_is_grey_but_for_the_heatmap():
    plain = np.asarray(decode(encode_thumbnail(np.full((64, 64), 0.5, np.float32), None, None)), dtype=int)
    assert np.ptp(plain, axis=2).max() <= 2
    marked = encode_thumbnail(np.full((64, 64), 0.5, np.float32), np.ones((64, 64), np.float32), None)
    assert np.ptp(np.asarray(decode(marked), dtype=int), axis=2).min() > 40


def test_colour_bar_starts_without_colour():
    bar = np.asarray(decode(encode_colour_bar()), dtype=int)[0]
    assert bar[0].tolist() == [128, 128, 128] and np.ptp(bar[-1]) > 60
