import base64
import io
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from PIL import Image

from medtl.report.pictures import (
    encode_colour_bar,
    encode_grey,
    overlay_ramp,
    peak_voxel,
    shown_size,
    write_picture,
)


def decode(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2], validate=True)))


def draw(*arguments) -> Image.Image:
    with TemporaryDirectory() as folder:
        return Image.open(io.BytesIO((Path(folder) / write_picture(Path(folder), *arguments)).read_bytes()))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def test_grey_jpeg_shows_no_difference():
    rows, columns = np.mgrid[0:1:128j, 0:1:128j]
    image = (0.5 + 0.3 * np.sin(12 * rows) * np.cos(9 * columns)).astype(np.float32)
    shown = np.asarray(decode(encode_grey(image)), dtype=float)
    assert np.abs(shown - image * 255).mean() < 1.5


def test_overlay_is_clear_where_nothing_is_and_denser_where_more_is():
    ramp = overlay_ramp()
    assert ramp[0, 3] == 0 and ramp[-1, 3] == 255
    assert (np.diff(ramp[:, 3].astype(int)) >= 0).all()


def test_overlay_colours_rise_in_lightness():
    lightness = overlay_ramp()[:, :3] @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > -1).all() and lightness[-1] - lightness[0] > 120


def test_overlay_lies_where_the_heatmap_is():
    heatmap = np.zeros((10, 14), np.float32)
    heatmap[3:5, 9:12] = 1.0
    drawn = np.asarray(draw(np.full((10, 14), 0.5, np.float32), heatmap, None, 140), dtype=int)
    coloured = np.argwhere(np.ptp(drawn, axis=2) > 60) / 10
    assert drawn.shape == (100, 140, 3)
    assert coloured.min(axis=0) == pytest.approx([3, 9], abs=0.5)
    assert coloured.max(axis=0) == pytest.approx([5, 12], abs=0.5)


def test_size_has_true_proportions():
    assert shown_size((100, 100), (2.0, 1.0), 560) == (280, 560)
    assert shown_size((4, 50, 100), (6.0, 1.0, 1.0), 560) == (560, 280)
    assert shown_size((50, 100), None, 160) == (160, 80)


def test_peak_is_where_the_heatmap_is_largest():
    heatmap = np.zeros((7, 4, 4), np.float32)
    assert peak_voxel(None, (7, 4, 4)) == peak_voxel(heatmap, (7, 4, 4)) == (3, 2, 2)
    heatmap[1] = 0.3
    heatmap[5, 2, 1] = 0.9
    assert peak_voxel(heatmap, (7, 4, 4)) == (5, 2, 1)


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1), (3, 5)])
def test_odd_shapes_are_drawn(shape):
    assert min(shown_size(shape, (1.0, 1.0), 560)) >= 1
    assert min(draw(noise(*shape), noise(*shape), (1.0, 1.0), 96).size) >= 1


@pytest.mark.parametrize("side", [96, 560])
def test_pictures_have_true_proportions(side):
    assert draw(noise(40, 40), None, (1.0, 2.0), side).size == (side, side // 2)


def test_picture_is_grey_but_for_the_heatmap():
    grey = np.full((64, 64), 0.5, np.float32)
    assert np.ptp(np.asarray(draw(grey, None, None, 96), dtype=int), axis=2).max() <= 2
    assert np.ptp(np.asarray(draw(grey, np.ones_like(grey), None, 96), dtype=int), axis=2).min() > 40


def test_colour_bar_starts_without_colour():
    bar = np.asarray(decode(encode_colour_bar()), dtype=int)[0]
    assert bar[0].tolist() == [128, 128, 128] and np.ptp(bar[-1]) > 60
