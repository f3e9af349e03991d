import base64
import zlib

import numpy as np
import pytest

from medtl.report.pictures import STAGE_SIDE
from medtl.report.viewer import (
    COARSE_LEVELS,
    FINE_LEVELS,
    FINE_VOXELS,
    VOLUME_SIDE,
    lay_out,
    pack,
    pack_study,
)


def unpack(text: str, kind: type) -> np.ndarray:
    """Do what the viewer does: low bytes, then high ones, are differences that wrap."""
    planes = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    planes = planes.reshape(np.dtype(kind).itemsize, -1).astype(kind)
    steps = planes[0] if len(planes) == 1 else planes[0] + (planes[1] << 8)
    return np.cumsum(steps, dtype=kind)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 5), (4, 3, 6)])
def test_what_was_packed_is_unpacked(kind, shape):
    levels = np.random.default_rng(0).integers(0, np.iinfo(kind).max, shape, dtype=kind, endpoint=True)
    assert np.array_equal(unpack(pack(levels), kind), levels.ravel())


def test_values_and_window_survive_in_the_units_of_the_pixels(finding):
    image = np.random.default_rng(0).normal(1000, 200, (12, 10)).astype(np.float32)
    packed = pack_study(finding(shape=(12, 10), image=image, window=(800.0, 1300.0)))
    low, high = packed["range"]
    step = (high - low) / (packed["levels"] - 1)
    values = low + unpack(packed["image"], np.uint16).reshape(12, 10) * step
    assert np.abs(values - np.clip(image, low, high)).max() <= step / 2 + 1e-3
    assert [low + edge * step for edge in packed["window"]] == pytest.approx([800, 1300])


def test_hot_pixels_cost_the_window_no_levels(finding):
    image = np.linspace(0, 1, 200, dtype=np.float32).reshape(20, 10)
    image[0, 0], image[0, 1] = 1e9, -1e9
    packed = pack_study(finding(shape=(20, 10), image=image))
    low, high = packed["window"]
    assert packed["range"] == [-1.0, 2.0] and high - low > FINE_LEVELS / 4


def test_a_window_beyond_the_image_is_kept(finding):
    packed = pack_study(finding(image=np.full((20, 16), 5.0, np.float32), window=(0.0, 4.0)))
    assert packed["range"] == [0.0, 5.0]


def test_large_volume_has_fewer_levels(finding):
    shape = (9, 500, 500)
    assert np.prod(shape) > FINE_VOXELS
    packed = pack_study(finding(shape=shape))
    assert packed["levels"] == COARSE_LEVELS and packed["window"] == [0, COARSE_LEVELS - 1]


def test_viewer_starts_at_the_peak_of_the_first_map_or_in_the_middle(finding):
    assert pack_study(finding(shape=(8, 12, 16)))["start"] == [2, 3, 4]
    assert pack_study(finding(shape=(8, 12, 16), heatmap=None))["start"] == [4, 6, 8]
    assert pack_study(finding(shape=(8, 12, 16), heatmap=np.zeros((8, 12, 16), np.float32)))["start"] == [
        4,
        6,
        8,
    ]


def test_study_without_a_map_has_none(finding):
    assert pack_study(finding(heatmap=None))["maps"] == []


def test_projection_has_one_plane_that_fills_its_frame(finding):
    (plane,) = lay_out(finding(shape=(40, 20), spacing_mm=(1.0, 1.0)))
    assert (plane["across"], plane["width"], plane["height"]) == (STAGE_SIDE / 2, STAGE_SIDE / 2, STAGE_SIDE)
    assert plane["letters"] == () and plane["count"] == 1


def test_plane_of_acquisition_comes_first(finding):
    planes = lay_out(finding(shape=(20, 8, 30), spacing_mm=(1.0, 4.0, 1.0), oriented=True))
    assert [plane["name"] for plane in planes] == ["coronal", "axial", "sagittal"]
    assert [plane["count"] for plane in planes] == [8, 20, 30]
    planes = lay_out(finding(shape=(8, 20, 30), spacing_mm=(1.0, 1.0, 1.0), oriented=True))
    assert [plane["name"] for plane in planes] == ["axial", "coronal", "sagittal"]


@pytest.mark.parametrize("shape", [(10, 40, 20), (40, 10, 20), (2, 30, 30)])
def test_planes_share_one_scale_and_width(finding, shape):
    spacing = (3.0, 1.0, 2.0)
    planes = lay_out(finding(shape=shape, spacing_mm=spacing))
    assert len({plane["width"] for plane in planes}) == 1
    extents = [count * step for count, step in zip(shape, spacing, strict=True)]
    for plane in planes:
        down, across = {0: (1, 2), 1: (0, 2), 2: (0, 1)}[plane["axis"]]
        assert plane["across"] / plane["height"] == pytest.approx(extents[across] / extents[down], rel=0.05)
        assert 0 < plane["across"] <= plane["width"] + 0.5  # which is in whole px


def test_sides_are_named_as_radiologists_see_them_and_only_where_they_are_known(finding):
    letters = {plane["name"]: plane["letters"] for plane in lay_out(finding(shape=(4, 5, 6), oriented=True))}
    assert letters["axial"] == ("R", "L", "A", "P")
    assert letters["coronal"] == ("R", "L", "H", "F")
    assert letters["sagittal"] == ("A", "P", "H", "F")
    unknown = lay_out(finding(shape=(4, 5, 6), spacing_mm=None))
    assert not any(plane["letters"] for plane in unknown) and unknown[0]["name"] == "axis 1"


@pytest.mark.parametrize(("width_mm", "text"), [(320, "50 mm"), (80, "20 mm"), (4, "1 mm"), (0.9, "0.2 mm")])
def test_ruler_is_a_round_length_in_the_scale_of_the_frame(finding, width_mm, text):
    step = width_mm / 100
    for shape in ((100, 100), (3, 100, 100)):
        plane = lay_out(finding(shape=shape, spacing_mm=(step,) * len(shape)))[0]
        length, shown = plane["ruler"]
        assert shown == text
        assert length / plane["width"] == pytest.approx(float(text.split()[0]) / width_mm)


def test_no_ruler_without_spacing(finding):
    assert lay_out(finding(shape=(10, 10), spacing_mm=None))[0]["ruler"] is None


def test_first_plane_of_a_volume_fills_its_frame_whatever_the_others_are(finding):
    for shape in ((2, 30, 20), (90, 30, 20)):
        first, coronal, _ = lay_out(finding(shape=shape, spacing_mm=(1.0, 1.0, 1.0), oriented=True))
        assert max(first["width"], first["height"]) == VOLUME_SIDE
        assert coronal["height"] == pytest.approx(VOLUME_SIDE * shape[0] / 30, abs=1)


def test_profile_is_high_where_the_map_is(finding):
    heatmap = np.zeros((5, 6, 7), np.float32)
    heatmap[3, 1, 2] = 1.0
    for plane in lay_out(finding(shape=(5, 6, 7), heatmap=heatmap)):
        points = [tuple(map(float, point.split(","))) for point in plane["profile"].split()]
        assert [place for place, (_, y) in enumerate(points) if y == 0] == [(3, 1, 2)[plane["axis"]]]
    assert not any(plane["profile"] for plane in lay_out(finding(shape=(5, 6, 7), heatmap=None)))
