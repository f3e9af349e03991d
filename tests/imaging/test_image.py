"""VOI windows and tables follow the standard's own formulas; constant pixels are a warning."""

import numpy as np
import pytest

from medtl.imaging.image import Image, ImageFacts, ImageWarning, Voi, VoiTable, Window, find_warning

VALUES = np.linspace(-20, 120, 281, dtype=np.float32)


def test_a_linear_window_follows_the_standard() -> None:
    # PS3.3 C.11.2.1.2.1: centre 2048 and width 4096 map 0 to black and 4095 to white
    grey = Window(2048, 4096).apply(np.array([-1, 0, 2047.5, 4095, 4096], np.float32))
    np.testing.assert_allclose(grey, [0, 0, 0.5, 1, 1], atol=1e-6)


def test_an_exact_window_has_its_ends_at_half_its_width() -> None:
    grey = Window(50, 20, "LINEAR_EXACT").apply(np.array([40, 50, 60], np.float32))
    np.testing.assert_allclose(grey, [0, 0.5, 1], atol=1e-6)


def test_a_sigmoid_is_half_at_its_centre_and_never_ends() -> None:
    window = Window(50, 20, "SIGMOID")
    np.testing.assert_allclose(window.apply(np.array([50], np.float32)), 0.5)
    np.testing.assert_allclose(window.apply(np.array([60], np.float32)), 1 / (1 + np.exp(-2)), rtol=1e-6)
    assert np.isfinite(window.apply(np.array([-1e30, 1e30], np.float32))).all()


def test_a_linear_window_of_width_one_is_a_threshold() -> None:
    assert Window(10, 1).apply(np.array([9, 9.5, 9.6, 10], np.float32)).tolist() == [0, 0, 1, 1]


def test_a_table_is_looked_up_and_clamped() -> None:
    table = VoiTable(5, np.array([0, 0.25, 1], np.float32))
    assert table.apply(np.array([0, 5, 6, 7, 9], np.float32)).tolist() == [0, 0, 0.25, 1, 1]


@pytest.mark.parametrize(
    "voi",
    [
        Window(50, 20),
        Window(50, 20, "LINEAR_EXACT"),
        Window(50, 20, "SIGMOID"),
        VoiTable(40, np.linspace(0, 1, 21, dtype=np.float32) ** 2),
    ],
    ids=repr,
)
def test_the_mirror_image_shows_the_negative(voi: Voi) -> None:
    whole = np.arange(0, 101, dtype=np.float32)
    np.testing.assert_allclose(voi.mirrored(100).apply(100 - whole), 1 - voi.apply(whole), atol=1e-6)


@pytest.mark.parametrize(
    ("pixels", "warning"),
    [
        (np.full((1, 3, 4), 7), ImageWarning("image-constant", "every pixel has the same value")),
        (np.arange(12).reshape(1, 3, 4), None),
    ],
)
def test_constant_pixels_are_a_warning(pixels: np.ndarray, warning: ImageWarning | None) -> None:
    image = Image(pixels.astype(np.float32), None, None, ImageFacts("a", "raster"))
    assert find_warning(image) == warning
