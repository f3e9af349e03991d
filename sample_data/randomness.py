"""Turn a purpose into a random generator, and a random generator into smooth fields."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SEED = 2051  # with it, chance alone links no trait to the label either

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def generator(*purpose: str | int) -> np.random.Generator:
    """Return the random generator that belongs to a purpose, whatever was drawn before it."""
    name = "/".join(str(part) for part in (SEED, *purpose))
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return np.random.Generator(np.random.PCG64(seed))


@dataclass(frozen=True)
class Waves:
    """A smooth random field of about unit variance, known at every point: a sum of plane waves.

    vectors: (J, axes) angular wave numbers; phases: (J,).
    """

    vectors: Array
    phases: Array


def make_waves(rng: np.random.Generator, axes: int, wavelength: float, count: int = 32) -> Waves:
    """Draw plane waves in all directions, of wavelengths within a quarter of the one given."""
    directions = rng.normal(size=(count, axes))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = wavelength * rng.uniform(0.75, 1.25, size=(count, 1))
    return Waves(2 * np.pi / lengths * directions, rng.uniform(0, 2 * np.pi, size=count))


def sample_waves(waves: Waves, shape: tuple[int, ...], affine: Array) -> Array:
    """Evaluate the field on a grid; affine maps an index to the field's coordinates.

    A plane wave on a grid is a product of one factor per axis, so the sum is a few matrix products.
    """
    steps = waves.vectors @ affine[:-1, :-1]  # (J, axes): phase per index step
    offsets = waves.phases + waves.vectors @ affine[:-1, -1]
    field = np.exp(1j * offsets)[:, None]  # (J, points so far)
    for axis, size in enumerate(shape[:-1]):
        factor = np.exp(1j * np.outer(steps[:, axis], np.arange(size)))
        field = (field[:, :, None] * factor[:, None, :]).reshape(len(field), -1)
    last = np.exp(1j * np.outer(steps[:, -1], np.arange(shape[-1])))
    total = np.real(field.T @ last).reshape(shape)
    return total * np.sqrt(2 / len(waves.phases))


def grid_points(shape: tuple[int, ...], affine: Array) -> list[Array]:
    """Return one array per coordinate: where each index of a grid lies under the affine."""
    axes = np.meshgrid(*(np.arange(size, dtype=np.float64) for size in shape), indexing="ij", sparse=True)
    return [sum(factor * axis for factor, axis in zip(row[:-1], axes)) + row[-1] for row in affine[:-1]]


def step(distance: Array, width: float) -> Array:
    """Return a soft edge: 0 from three widths below zero, 1 from three above, a smooth cubic between."""
    t = distance * (1 / (6 * width))
    t += 0.5
    np.clip(t, 0, 1, out=t)
    return t * t * (3 - 2 * t)
