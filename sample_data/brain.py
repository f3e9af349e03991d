"""Draw a brain-like T1-weighted volume: tissues by depth and folding, then a scanner's look.

Head coordinates are millimetres in RAS+ (right, anterior, superior), the middle of the brain at the origin.
Volumes are (slices, rows, columns): slices upwards, rows to the back, columns to the patient's left.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from .cohort import Study
from .randomness import Array, Mask, Waves, generator, grid_points, make_waves, sample_waves, step

FINER = np.array([1, 2, 2])  # tissues are drawn on a grid this much finer, then averaged: partial volume

FAT, MARROW, BONE, FLUID, GREY, WHITE = 0.92, 0.42, 0.07, 0.14, 0.54, 0.84


@dataclass(frozen=True)
class Protocol:
    """How a scanner acquires: (slices, rows, columns) and the distances between neighbours along them."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    noise: float
    bias: float


PROTOCOLS = {
    "north": Protocol((16, 64, 64), (5.2, 3.0, 3.0), noise=0.016, bias=0.06),
    "south": Protocol((17, 72, 60), (4.9, 2.75, 2.9), noise=0.024, bias=0.10),
}


@dataclass(frozen=True)
class Head:
    """One patient's anatomy; lengths in mm."""

    brain: tuple[float, float, float]
    skull: float
    scalp: float
    ventricles: float
    sulci: float
    cortex: float
    shape: Waves
    folds: Waves


def draw_brain(study: Study) -> tuple[Array, Mask | None, Array]:
    """Return the volume, 0 to about 1, the lesion's mask or None, and the affine from index to RAS+ mm."""
    protocol = PROTOCOLS[study.traits["scanner"]]
    affine = _scan_affine(study, protocol)
    fine_shape = tuple(int(size) for size in FINER * protocol.shape)
    fine_affine = _pose(study) @ affine @ _finer()
    head = make_head(study)
    depth = _depth(head, fine_shape, fine_affine)
    points = grid_points(fine_shape, fine_affine)
    volume = _tissues(head, depth, points, fine_shape, fine_affine)
    mask = None
    if study.has_lesion:
        volume, body = _add_lesion(study, volume, depth, points, fine_shape, fine_affine)
        mask = _coarser(body) > 0.5
    return _acquire(study, protocol, _coarser(volume)), mask, affine


def make_head(study: Study) -> Head:
    """Draw the anatomy of the study's patient: the same for all their studies but for age."""
    rng = generator("head", study.patient_id)
    shrink = np.clip((study.age - 50) / 40, -0.5, 1)
    return Head(
        brain=(rng.normal(65, 2.5), rng.normal(81, 3.0), rng.normal(66, 2.5)),
        skull=rng.uniform(5.0, 7.5),
        scalp=rng.uniform(4.0, 7.0),
        ventricles=float(np.clip(rng.normal(1.0, 0.10) + 0.18 * shrink, 0.75, 1.4)),
        sulci=float(np.clip(rng.normal(0.15, 0.02) + 0.05 * shrink, 0.09, 0.26)),
        cortex=rng.uniform(0.62, 0.76),
        shape=make_waves(rng, 3, 120.0),
        folds=make_waves(rng, 3, 25.0, 64),
    )


def _scan_affine(study: Study, protocol: Protocol) -> Array:
    """Return the affine from (slice, row, column) to scanner RAS+ mm, rounded as a file holds it."""
    rng = generator("scan", study.name)
    tilt = np.deg2rad(rng.uniform(6, 16)) if study.traits["tilt"] == "oblique" else 0.0
    cos, sin = np.round([np.cos(tilt), np.sin(tilt)], 8)
    up, back, left = np.array([0, sin, cos]), np.array([0, -cos, sin]), np.array([-1.0, 0, 0])
    affine = np.eye(4)
    affine[:3, :3] = np.stack([up, back, left], axis=1) * protocol.spacing_mm
    middle = affine[:3, :3] @ ((np.array(protocol.shape) - 1) / 2)
    centre = np.array([0.0, rng.normal(0, 2), 20 + rng.normal(0, 2)])  # most slices lie above the skull base
    affine[:3, 3] = np.round(centre - middle, 2)
    return affine


def _pose(study: Study) -> Array:
    """Return the affine from scanner to head coordinates: how the head lay."""
    rng = generator("pose", study.name)
    roll, yaw = np.deg2rad(rng.normal(0, 3.0, size=2))
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    lean = np.array([[np.cos(roll), 0, np.sin(roll)], [0, 1, 0], [-np.sin(roll), 0, np.cos(roll)]])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn @ lean, rng.normal(0, 1.5, size=3)
    return pose


def _finer() -> Array:
    """Return the affine from an index of the fine grid to one of the volume's: cells are split evenly."""
    affine = np.eye(4)
    affine[:3, :3] /= FINER
    affine[:3, 3] = (1 - FINER) / (2 * FINER)
    return affine


def _coarser(fine: Array) -> Array:
    """Average the cells of the fine grid that make one voxel."""
    d, r, c = (int(size) for size in fine.shape // FINER)
    return fine.reshape(d, FINER[0], r, FINER[1], c, FINER[2]).mean(axis=(1, 3, 5))


def _depth(head: Head, shape: tuple[int, ...], affine: Array) -> Array:
    """Return about how many mm a point lies below the surface of the brain; negative outside."""
    x, y, z = grid_points(shape, affine)
    a, b, c = head.brain
    flat = 1 - 0.10 * np.clip(y / b, 0, 1) ** 2  # the forehead is narrower than the back of the head
    radius = np.sqrt((x / (a * flat)) ** 2 + (y / b) ** 2 + (z / c) ** 2)
    return 70 * (1 - radius) + 1.8 * sample_waves(head.shape, shape, affine)


def _tissues(head: Head, depth: Array, points: list[Array], shape: tuple[int, ...], affine: Array) -> Array:
    folds = np.abs(sample_waves(head.folds, shape, affine))
    volume = _brain_tissue(head, depth, points, folds)
    volume = _layer(volume, -depth, 0.0, FLUID)
    volume = _layer(volume, -depth, 2.5, BONE)
    middle = 2.5 + head.skull / 2
    volume = _layer(volume, -depth, middle - 1.2, MARROW)
    volume = _layer(volume, -depth, middle + 1.2, BONE)
    volume = _layer(volume, -depth, 2.5 + head.skull, FAT)
    return _layer(volume, -depth, 2.5 + head.skull + head.scalp, 0.0)


def _layer(volume: Array, height: Array, start: float, value: float) -> Array:
    """Replace everything above a height (mm) over the brain's surface by a value."""
    return _mix(volume, step(height - start, 0.4), value)


def _mix(volume: Array, share: Array, value: float | Array) -> Array:
    return volume + share * (value - volume)


def _brain_tissue(head: Head, depth: Array, points: list[Array], folds: Array) -> Array:
    """Return white matter, a folded cortex with fluid in its furrows, deep grey nuclei and ventricles."""
    x, y, z = points
    furrow = folds + np.clip((depth - 19) / 7, 0, None)  # furrows end some 22 mm below the surface
    cortex = np.maximum(step(head.cortex - furrow, 0.05), step(4.0 - depth, 0.5))
    volume = _mix(np.full(x.shape, WHITE), cortex, GREY)
    volume = _mix(volume, _nuclei(head, x, y, z), GREY + 0.05)
    fluid = np.maximum(step(head.sulci - furrow, 0.03), _fissures(x, y, z))
    volume = _mix(volume, _fissure_cortex(x, y, z) * (1 - fluid), GREY)
    return _mix(volume, np.maximum(fluid, _ventricles(head, x, y, z)), FLUID)


def _ball(x: Array, y: Array, z: Array, centre: tuple[float, ...], radii: tuple[float, ...]) -> Array:
    """Return a soft ellipsoid; x is measured away from the midline, so both sides get one."""
    parts = zip((np.abs(x), y, z), centre, radii)
    radius = np.sqrt(sum((((at - c) / r) ** 2 for at, c, r in parts), np.zeros(x.shape)))
    return step((1 - radius) * min(radii), 0.5)


def _nuclei(head: Head, x: Array, y: Array, z: Array) -> Array:
    thalamus = _ball(x, y, z, (10, -9, 1), (7.5, 13, 9))
    putamen = _ball(x, y, z, (25, 6, 1), (5.5, 16, 10))
    caudate = _ball(x, y, z, (14.5, 20, 10), (4.5, 9, 10))
    return np.maximum(np.maximum(thalamus, putamen), caudate)


def _ventricles(head: Head, x: Array, y: Array, z: Array) -> Array:
    """Return the lateral ventricles (frontal horn, body, back horn) and the third one."""
    s = head.ventricles
    bend = np.abs(x) - 0.004 * y**2 * step(-y, 4.0)  # the back horns turn outwards
    frontal = _ball(x, y, z - 0.1 * y, (8.5, 24, 9), (4.6 * s, 13 * s, 9 * s))
    body = _ball(x, y, z, (8, -2, 19), (5.5 * s, 26, 6.5 * s))
    back = _ball(bend, y, z, (13, -33, 9), (6.0 * s, 17 * s, 9 * s))
    third = _ball(x, y, z, (0, -4, -4), (2.6 * s, 14, 10))
    return np.maximum(np.maximum(frontal, body), np.maximum(back, third))


def _outside_core(y: Array, z: Array) -> Array:
    """Return where the hemispheres are apart: everywhere but around the corpus callosum and below it."""
    return step(np.sqrt((y / 42) ** 2 + ((z - 2) / 29) ** 2) - 1, 0.02)


def _fissures(x: Array, y: Array, z: Array) -> Array:
    """Return the cleft between the hemispheres and the Sylvian fissures."""
    cleft = step(1.6 - np.abs(x + 1.2 * np.sin(y / 25)), 0.4) * _outside_core(y, z)
    lean = np.abs(x) + 0.25 * (y - 10)
    sylvian = np.maximum(
        _ball(lean, y, z, (42, 12, 0), (2.4, 17, 9)), _ball(x, y, z, (50, 16, -2), (11, 2.6, 9))
    )
    return np.maximum(cleft, sylvian)


def _fissure_cortex(x: Array, y: Array, z: Array) -> Array:
    medial = step(5.2 - np.abs(x + 1.2 * np.sin(y / 25)), 0.5) * _outside_core(y, z)
    lean = np.abs(x) + 0.25 * (y - 10)
    insula = np.maximum(
        _ball(lean, y, z, (42, 12, 0), (6, 20, 13)), _ball(x, y, z, (50, 16, -2), (14, 6, 13))
    )
    return np.maximum(medial, insula)


def _add_lesion(
    study: Study, volume: Array, depth: Array, points: list[Array], shape: tuple[int, ...], affine: Array
) -> tuple[Array, Array]:
    """Return the volume with one to three bright or dark irregular blobs, and their extent from 0 to 1."""
    rng = generator("lesion", study.name)
    target = WHITE * rng.uniform(1.35, 1.75) if rng.random() < 0.85 else WHITE * rng.uniform(0.25, 0.5)
    strength = rng.uniform(0.5, 1.0)
    extent = np.zeros(shape)
    for _ in range(int(rng.integers(1, 4))):
        extent = np.maximum(extent, _blob(rng, volume, depth, points, shape, affine))
    return _mix(volume, strength * extent, target), extent


def _blob(
    rng: np.random.Generator,
    volume: Array,
    depth: Array,
    points: list[Array],
    shape: tuple[int, ...],
    affine: Array,
) -> Array:
    radius = rng.uniform(9.0, 19.0)
    inner = slice(shape[0] // 6, -(shape[0] // 5))
    places = np.argwhere((depth > radius + 3)[inner] & (volume > 0.7 * WHITE)[inner])
    place = tuple(places[rng.integers(len(places))] + [inner.start, 0, 0])
    distance = np.sqrt(sum(((axis - axis[place]) ** 2 for axis in points), np.zeros(shape)))
    ragged = radius * (1 + 0.18 * sample_waves(make_waves(rng, 3, 2 * radius), shape, affine))
    return step(ragged - distance, 0.9)


def _acquire(study: Study, protocol: Protocol, volume: Array) -> Array:
    """Add a coil's uneven sensitivity, a little blur, and Rician noise."""
    rng = generator("acquisition", study.name)
    down, right = rng.normal(0, 1, size=2)
    _, r, c = grid_points(volume.shape, np.diag([2 / size for size in volume.shape] + [1.0]))
    sensitivity = np.exp(
        protocol.bias * (down * (r - 1) + right * (c - 1) - 0.6 * ((r - 1) ** 2 + (c - 1) ** 2))
    )
    signal = gaussian_filter(volume, (0, 0.35, 0.35)) * sensitivity * (1 + 0.03 * rng.normal())
    noise = protocol.noise * rng.uniform(0.8, 1.2) * rng.normal(size=(2, *volume.shape))
    return np.sqrt((signal + noise[0]) ** 2 + noise[1] ** 2)
