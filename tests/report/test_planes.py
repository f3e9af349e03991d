import numpy as np
import pytest

from medtl.report.pictures import STAGE_SIDE
from medtl.report.viewer import lay_out


def test_projection_has_one_plane_that_fills_its_frame(finding):
    (plane,) = lay_out(finding(shape=(40, 20), spacing_mm=(1.0, 1.0)))
    assert (plane.left, plane.top, plane.width, plane.height) == (0, 0, STAGE_SIDE / 2, STAGE_SIDE)
    assert plane.letters == () and plane.count == 1


def test_plane_of_acquisition_comes_first(finding):
    planes = lay_out(finding(shape=(20, 8, 30), spacing_mm=(1.0, 4.0, 1.0), oriented=True))
    assert [plane.name for plane in planes] == ["coronal", "axial", "sagittal"]
    assert [plane.count for plane in planes] == [8, 20, 30]
    planes = lay_out(finding(shape=(8, 20, 30), spacing_mm=(1.0, 1.0, 1.0), oriented=True))
    assert [plane.name for plane in planes] == ["axial", "coronal", "sagittal"]


@pytest.mark.parametrize("shape", [(10, 40, 20), (40, 10, 20), (2, 30, 30)])
def test_planes_share_one_scale_and_width(finding, shape):
    spacing = (3.0, 1.0, 2.0)
    planes = lay_out(finding(shape=shape, spacing_mm=spacing))
    assert len({plane.frame.width for plane in planes}) == 1
    extents = [count * step for count, step in zip(shape, spacing, strict=True)]
    for plane in planes:
        down, across = {0: (1, 2), 1: (0, 2), 2: (0, 1)}[plane.axis]
        assert plane.width / plane.height == pytest.approx(extents[across] / extents[down], rel=0.05)
        assert plane.left >= 0 and plane.left + plane.width <= plane.frame.width + 1e-6


def test_sides_are_named_as_radiologists_see_them_and_only_where_they_are_known(finding):
    letters = {plane.name: plane.letters for plane in lay_out(finding(shape=(4, 5, 6), oriented=True))}
    assert letters["axial"] == ("R", "L", "A", "P")
    assert letters["coronal"] == ("R", "L", "H", "F")
    assert letters["sagittal"] == ("A", "P", "H", "F")
    unknown = lay_out(finding(shape=(4, 5, 6), spacing_mm=None))
    assert not any(plane.letters for plane in unknown) and unknown[0].name == "axis 1"


def test_profile_is_high_where_the_map_is(finding):
    heatmap = np.zeros((5, 6, 7), np.float32)
    heatmap[3, 1, 2] = 1.0
    for plane in lay_out(finding(shape=(5, 6, 7), heatmap=heatmap)):
        points = [tuple(map(float, point.split(","))) for point in plane.profile.split()]
        assert [place for place, (_, y) in enumerate(points) if y == 0] == [(3, 1, 2)[plane.axis]]
    assert not any(plane.profile for plane in lay_out(finding(shape=(5, 6, 7), heatmap=None)))
