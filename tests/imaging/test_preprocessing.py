"""Images come to the network's grid in the right place, order and range, and maps find their way back."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from medtl.errors import ReadError
from medtl.imaging.image import Image, ImageFacts, VoiTable, Window
from medtl.imaging.preprocessing import READING_OPTIONS, PreprocessingConfig, prepare_image, to_image_grid
from medtl.imaging.series import Reading

# Slices up, rows to the front, columns to the right: the reverse of SPL in two axes.
SAR = np.array([[0, 0, 0.7, 10], [0, 0.7, 0, 20], [5.0, 0, 0, -30], [0, 0, 0, 1]])


def make_image(shape, affine=None, spacing=None, **facts) -> Image:
    pixels = np.random.default_rng(0).random(shape, dtype=np.float32) * 100
    return Image(pixels, affine, spacing, ImageFacts("made here", "raster", **facts))


def with_square(image: Image) -> tuple[Image, tuple[int, ...]]:
    centre = tuple(extent // 3 for extent in image.pixels.shape[1:])
    pixels = np.zeros_like(image.pixels)
    pixels[(slice(None), *[slice(c - 2, c + 3) for c in centre])] = 1
    return replace(image, pixels=pixels), centre


CASES = [
    (make_image((1, 224, 200)), PreprocessingConfig()),
    (make_image((3, 100, 224)), PreprocessingConfig()),
    (make_image((1, 64, 64)), PreprocessingConfig(size=(160, 160))),
    (make_image((1, 20, 100, 80), SAR, (5, 0.7, 0.7)), PreprocessingConfig(size=(16, 64, 64))),
    (
        make_image((1, 20, 100, 80), SAR, (5, 0.7, 0.7)),
        PreprocessingConfig(size=(24, 64, 64), spacing_mm=(4, 1, 1)),
    ),
    (make_image((1, 120, 90), None, (0.5, 0.5)), PreprocessingConfig(size=(64, 64), spacing_mm=(1.0, 1.0))),
]


@pytest.mark.parametrize(("image", "config"), CASES)
def test_prepared_pixels_are_on_the_grid_and_in_range(image, config):
    prepared = prepare_image(image, config)
    assert prepared.pixels.shape == (1, *config.size)
    assert prepared.pixels.dtype == np.float32
    assert 0 <= prepared.pixels.min() < prepared.pixels.max() <= 1


@pytest.mark.parametrize(("image", "config"), CASES)
def test_a_map_returns_to_where_it_came_from(image, config):
    marked, centre = with_square(image)
    config = config.model_copy(update={"intensity": "range", "range": (0.0, 1.0)})
    prepared = prepare_image(marked, config)
    returned = to_image_grid(prepared.pixels[0], prepared, marked)
    assert returned.shape == image.pixels.shape[1:]
    found = [(returned * axis).sum() / returned.sum() for axis in np.indices(returned.shape)]
    assert np.allclose(found, centre, atol=0.6)


def test_volumes_come_in_one_orientation_whatever_the_file_has():
    config = PreprocessingConfig(size=(8, 32, 32), intensity="range", range=(0.0, 100.0))
    image = make_image((1, 8, 32, 32), SAR, (5, 0.7, 0.7))
    flip = np.diag([1.0, -1.0, 1.0, 1.0])
    flip[1, 3] = 31
    mirrored = replace(image, pixels=image.pixels[:, :, ::-1].copy(), affine=SAR @ flip)
    swapped = replace(
        image,
        pixels=np.swapaxes(image.pixels, 1, 3).copy(),
        affine=SAR[:, [2, 1, 0, 3]],
        spacing_mm=(0.7, 0.7, 5),
    )
    expected = prepare_image(image, config).pixels
    assert np.allclose(prepare_image(mirrored, config).pixels, expected, atol=1e-5)
    assert np.allclose(prepare_image(swapped, config).pixels, expected, atol=1e-5)


def test_proportions_in_millimetres_are_kept():
    image = make_image((1, 50, 100), None, (2.0, 1.0))
    prepared = prepare_image(replace(image, pixels=image.pixels + 50), PreprocessingConfig(size=(64, 64)))
    assert (prepared.pixels > 0).any(axis=2).mean() > 0.9, (
        "50 rows of 2 mm are as long as 100 columns of 1 mm"
    )


def test_the_window_of_the_file_is_used_where_asked():
    image = make_image((1, 32, 32), voi=Window(50, 20, "LINEAR_EXACT"))
    prepared = prepare_image(image, PreprocessingConfig(size=(32, 32), intensity="window"))
    assert np.allclose(prepared.pixels, np.clip((image.pixels - 40) / 20, 0, 1), atol=1e-5)


def test_the_voi_table_of_the_file_is_used_where_asked():
    table = VoiTable(0, np.linspace(0, 1, 101, dtype=np.float32) ** 2)
    image = make_image((1, 32, 32), voi=table)
    image = replace(image, pixels=np.round(image.pixels))
    prepared = prepare_image(image, PreprocessingConfig(size=(32, 32), intensity="window"))
    assert np.allclose(prepared.pixels, (image.pixels / 100) ** 2, atol=1e-5)


def test_padding_looks_like_background():
    image = make_image((1, 40, 40), padding=(-2000, -1900))
    padded = image.pixels.copy()
    padded[:, :, :12] = -2000
    config = PreprocessingConfig(size=(40, 40))
    prepared = prepare_image(replace(image, pixels=padded), config).pixels[0]
    assert (prepared[:, :12] == 0).all()
    assert np.median(prepared[:, 12:]) == pytest.approx(0.5, abs=0.05), "padding does not widen the range"


@pytest.mark.parametrize(
    ("facts", "settings", "what"),
    [
        ({"modality": "MR"}, {"modalities": ("CR", "DX")}, "modality"),
        ({"body_part": "HAND"}, {"body_parts": ("CHEST",)}, "body part"),
    ],
)
def test_what_the_file_calls_something_else_is_refused_by_name(facts, settings, what):
    with pytest.raises(ReadError, match=f"another {what}") as caught:
        prepare_image(make_image((1, 40, 40), **facts), PreprocessingConfig(**settings))
    assert caught.value.code == "image-modality"
    prepare_image(make_image((1, 40, 40)), PreprocessingConfig(**settings))  # a photograph says nothing


def test_colour_becomes_grey_by_luma():
    image = make_image((3, 32, 32))
    config = PreprocessingConfig(size=(32, 32), intensity="range", range=(0.0, 100.0))
    grey = np.tensordot([0.299, 0.587, 0.114], image.pixels, axes=1) / 100
    assert np.allclose(prepare_image(image, config).pixels[0], grey, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_constant_image_is_no_nan(value):
    image = make_image((1, 40, 40))
    prepared = prepare_image(replace(image, pixels=np.full_like(image.pixels, value)), PreprocessingConfig())
    assert np.isfinite(prepared.pixels).all()


def test_a_volume_for_an_image_model_is_refused_by_name():
    with pytest.raises(ReadError, match="is a volume, the model takes an image") as caught:
        prepare_image(CASES[3][0], PreprocessingConfig())
    assert caught.value.code == "image-dimensions"


def test_spacing_that_is_not_known_is_refused_by_name():
    with pytest.raises(ReadError) as caught:
        prepare_image(make_image((1, 40, 40)), PreprocessingConfig(spacing_mm=(1.0, 1.0)))
    assert caught.value.code == "image-spacing"


@pytest.mark.parametrize(
    "values",
    [
        {"size": (160,)},
        {"size": (2, 2)},
        {"intensity": "range"},
        {"spacing_mm": (1.0,)},
        {"orientation": "XYZ"},
        {"surprise": 1},
    ],
)
def test_settings_that_make_no_sense_are_refused(values):
    with pytest.raises(ValidationError):
        PreprocessingConfig(**values)


def test_what_is_not_asked_of_the_readers_leaves_no_trace_in_a_stored_recipe():
    plain = PreprocessingConfig()
    assert not set(READING_OPTIONS) & set(plain.model_dump())
    asked = PreprocessingConfig(fill_nan=True)
    assert asked.reading == Reading(fill_nan=True)
    assert PreprocessingConfig(**asked.model_dump()) == asked
