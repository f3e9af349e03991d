"""Images for display: axial from any affine, heatmaps in their place, windows, sizes and spacing."""

from itertools import permutations, product

import numpy as np
import pytest

from medtl.imaging.display import make_display
from medtl.imaging.image import Image, ImageFacts, Window

# Index of the voxel that is brightest, in an array whose axes are axial: slice, row, column.
SHAPE, SPOT = (6, 10, 8), (4, 2, 5)
SPACING = (3.0, 2.0, 1.5)
SPL = np.array([[0, 0, -1.5], [0, -2.0, 0], [3.0, 0, 0]])  # columns: what a step along each axis does in RAS


def facts(window: Window | None = None) -> ImageFacts:
    """Return facts with a window."""
    return ImageFacts(source="test", format="test", voi=window)


def axial_volume() -> np.ndarray:
    """Return (6, 10, 8) noise with one bright voxel."""
    volume = np.random.default_rng(0).uniform(0, 50, SHAPE).astype(np.float32)
    volume[SPOT] = 100.0
    return volume


def reoriented(
    volume: np.ndarray, order: tuple[int, ...], flips: tuple[bool, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the same volume with its axes in another order and direction, and the affine that says so."""
    axes = tuple(axis for axis, flip in enumerate(flips) if flip)
    pixels = np.flip(volume.transpose(order), axes)
    affine = np.eye(4)
    affine[:3, :3] = SPL[:, order] * np.where(flips, -1.0, 1.0)
    affine[:3, 3] = (5.0, -7.0, 11.0)
    return np.ascontiguousarray(pixels), affine


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
@pytest.mark.parametrize("flips", list(product((False, True), repeat=3)), ids=str)
def test_slices_are_axial_for_any_affine(order: tuple[int, ...], flips: tuple[bool, ...]) -> None:
    volume = axial_volume()
    pixels, affine = reoriented(volume, order, flips)
    image = Image(
        pixels[None], affine, tuple(SPACING[axis] for axis in order), facts(Window(50, 100, "LINEAR_EXACT"))
    )
    shown = make_display(image)
    assert np.allclose(shown.grey, volume / 100, atol=1e-6)
    assert shown.spacing_mm == pytest.approx(SPACING)


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_a_heatmap_stays_in_its_place(order: tuple[int, ...]) -> None:
    pixels, affine = reoriented(axial_volume(), order, (True, False, True))
    heatmap = (pixels == pixels.max()).astype(np.float32)
    shown = make_display(Image(pixels[None], affine, None, facts()), heatmap)
    assert shown.heatmap is not None and shown.heatmap.shape == shown.grey.shape == SHAPE
    assert np.unravel_index(shown.heatmap.argmax(), SHAPE) == SPOT
    assert shown.grey[SPOT] == shown.grey.max()


def test_an_oblique_volume_keeps_its_spacing() -> None:
    turn, cos, sin = np.eye(4), np.cos(0.3), np.sin(0.3)
    turn[1:3, 1:3] = [[cos, -sin], [sin, cos]]
    pixels, affine = reoriented(axial_volume(), (0, 1, 2), (False, False, False))
    shown = make_display(Image(pixels[None], turn @ affine, SPACING, facts()))
    assert shown.grey.shape == SHAPE and shown.spacing_mm == pytest.approx(SPACING)


def test_a_projection_keeps_its_rows_and_columns() -> None:
    pixels = np.arange(48, dtype=np.float32).reshape(1, 6, 8)
    shown = make_display(Image(pixels, None, (0.2, 0.1), facts(Window(23.5, 47, "LINEAR_EXACT"))))
    assert np.allclose(shown.grey, pixels[0] / 47, atol=1e-6)
    assert shown.spacing_mm == (0.2, 0.1) and shown.heatmap is None


def test_the_window_of_the_file_is_used() -> None:
    pixels = np.array([[[0, 100, 150, 200, 1000]]], dtype=np.float32)
    shown = make_display(Image(pixels, None, None, facts(Window(150, 100, "LINEAR_EXACT"))))
    assert shown.grey[0].tolist() == pytest.approx([0, 0, 0.5, 1, 1])


def test_without_a_window_the_percentiles_are_used() -> None:
    pixels = np.linspace(0, 1000, 2001, dtype=np.float32).reshape(1, 1, -1)
    pixels[..., -1] = 1e9  # one hot pixel darkens nothing
    grey = make_display(Image(pixels, None, None, facts()), longest_side=5000).grey[0]
    assert grey[1000] == pytest.approx(0.5, abs=0.01) and grey[0] == 0 and grey[-1] == 1


def test_a_constant_image_is_shown_without_a_warning() -> None:
    shown = make_display(Image(np.full((1, 4, 4), 7.0, np.float32), None, None, facts()))
    assert np.isfinite(shown.grey).all() and shown.grey.min() >= 0 and shown.grey.max() <= 1


def test_colour_is_shown_as_its_luminance() -> None:
    pixels = np.zeros((3, 1, 4), dtype=np.float32)
    for column, level in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))):
        pixels[:, 0, column] = level
    grey = make_display(Image(pixels, None, None, facts(Window(127.5, 255, "LINEAR_EXACT")))).grey[0]
    assert grey.tolist() == pytest.approx([0.299, 0.587, 0.114, 1.0], abs=1e-5)


@pytest.mark.parametrize(("shape", "small"), [((1200, 600), (100, 50)), ((300, 1200), (25, 100))])
def test_a_large_image_is_shrunk_in_proportion(shape: tuple[int, int], small: tuple[int, int]) -> None:
    pixels = np.zeros((1, *shape), np.float32)
    pixels[:, : shape[0] // 2] = 100
    heatmap = pixels[0] / 100
    shown = make_display(
        Image(pixels, None, (0.1, 0.1), facts(Window(50, 100, "LINEAR_EXACT"))), heatmap, longest_side=100
    )
    assert shown.grey.shape == small and shown.heatmap is not None and shown.heatmap.shape == small
    assert shown.spacing_mm == pytest.approx((1.2, 1.2))
    assert shown.grey[: small[0] // 2 - 1].min() == 1 and shown.grey[small[0] // 2 + 1 :].max() == 0
    assert np.allclose(shown.heatmap, shown.grey)


def test_a_large_volume_keeps_its_slices() -> None:
    pixels = np.random.default_rng(0).uniform(0, 1, (1, 3, 40, 60)).astype(np.float32)
    affine = np.eye(4)
    affine[:3, :3] = SPL
    shown = make_display(Image(pixels, affine, SPACING, facts()), longest_side=30)
    assert shown.grey.shape == (3, 20, 30)
    assert shown.spacing_mm == pytest.approx((3.0, 4.0, 3.0))


def test_a_rounded_size_has_the_spacing_that_keeps_the_extent() -> None:
    """The extent in mm of what is shown is that of the image, whatever the rounding of its size."""
    pixels = np.zeros((1, 1000, 7), np.float32)
    shown = make_display(Image(pixels, None, (1.0, 1.0), facts()), longest_side=300)
    assert shown.spacing_mm is not None
    extents = [count * step for count, step in zip(shown.grey.shape, shown.spacing_mm, strict=True)]
    assert extents == pytest.approx([1000, 7])


def test_the_image_itself_is_left_alone() -> None:
    pixels, affine = reoriented(axial_volume(), (2, 0, 1), (True, True, False))
    heatmap, before = np.ones(pixels.shape, np.float32), (pixels.copy(), affine.copy())
    make_display(Image(pixels[None], affine, None, facts()), heatmap)
    assert (pixels == before[0]).all() and (affine == before[1]).all() and (heatmap == 1).all()
