"""Draw a chest-like radiograph: attenuation of body, lungs, heart and bones, then a scanner's look.

Coordinates are (down, right) in half widths of the chest, with the middle of the chest at (0, 0). As on a
viewing screen, the patient's right side is on the left. Values are attenuation: larger is brighter.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from .cohort import Study
from .randomness import Array, Mask, generator, grid_points, make_waves, sample_waves, step

SHAPES = {"north": (168, 168), "south": (184, 152)}  # rows, columns
SPACING_MM = {"north": 2.1, "south": 2.2}


@dataclass(frozen=True)
class Chest:
    """One patient's anatomy. Pairs are (patient's right, patient's left)."""

    half_width: float
    apex: float
    base: tuple[float, float]
    dome: tuple[float, float]
    lung_width: tuple[float, float]
    heart: float
    heart_tilt: float
    aorta: float
    rib_gap: float
    rib_slope: float
    rib_contrast: float
    clavicle_rise: float
    spine_curve: float
    softness: float
    thickness: float
    breast: float
    stomach_gas: float
    vessels: float


@dataclass(frozen=True)
class Opacity:
    """A lesion. profile (H, W) from 0 to 1; contrast in attenuation; mask (H, W) bool."""

    profile: Array
    contrast: float
    mask: Mask


def draw_radiograph(study: Study) -> tuple[Array, Mask | None]:
    """Return the displayed image (rows, columns), 0 black to 1 white, and the lesion's mask or None."""
    shape = SHAPES[study.traits["scanner"]]
    chest = make_chest(study)
    affine = _pose(study, shape)
    y, x = grid_points(shape, affine)
    lungs = _lungs(chest, y, x)
    image = _soft_tissue(chest, lungs, y, x, study.traits["view"]) + _bones(chest, y, x)
    image += _vessels(study, chest, lungs, shape, affine) + _texture(study, shape, affine)
    opacity = (
        _opacity(study, lungs, _visible_lung(chest, lungs, y, x), shape, affine) if study.has_lesion else None
    )
    if opacity is not None:
        image += opacity.contrast * opacity.profile
    return _expose(study, image), None if opacity is None else opacity.mask


def make_chest(study: Study) -> Chest:
    """Draw the anatomy of the study's patient: the same for all their studies."""
    rng = generator("chest", study.patient_id)
    size = rng.normal(1.0, 0.05)
    base = 0.60 + rng.normal(0, 0.045)
    female = study.sex == "F"
    return Chest(
        half_width=float(np.clip(0.97 * size, 0.88, 1.08)),
        apex=-0.76 + rng.normal(0, 0.03),
        base=(base - 0.02 + rng.normal(0, 0.02), base + 0.03 + rng.normal(0, 0.02)),
        dome=(0.17 + rng.normal(0, 0.03), 0.14 + rng.normal(0, 0.03)),
        lung_width=(0.76 * size + rng.normal(0, 0.015), 0.75 * size + rng.normal(0, 0.015)),
        heart=float(np.clip(rng.normal(1.0, 0.12), 0.78, 1.3)),
        heart_tilt=rng.normal(0.62, 0.08),
        aorta=float(np.clip(rng.normal(1.0, 0.25), 0.4, 1.6)),
        rib_gap=0.142 + rng.normal(0, 0.007),
        rib_slope=rng.normal(1.0, 0.18),
        rib_contrast=rng.uniform(0.06, 0.105),
        clavicle_rise=rng.normal(0.09, 0.03),
        spine_curve=rng.normal(0, 0.02),
        softness=rng.uniform(0.011, 0.017),
        thickness=rng.normal(1.0, 0.07),
        breast=rng.uniform(0.03, 0.10) if female else 0.0,
        stomach_gas=max(0.0, rng.normal(0.10, 0.08)),
        vessels=rng.uniform(0.7, 1.3),
    )


def _pose(study: Study, shape: tuple[int, int]) -> Array:
    """Return the affine from (row, column) to chest coordinates: how the patient stood this time."""
    rng = generator("pose", study.name)
    angle, scale = np.deg2rad(rng.normal(0, 2.2)), 2.06 * rng.normal(1.0, 0.025) / shape[1]
    rotation = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    centre = np.array([rng.normal(0.03, 0.035), rng.normal(0, 0.03)])
    middle = (np.array(shape) - 1) / 2
    affine = np.eye(3)
    affine[:2, :2], affine[:2, 2] = rotation, centre - rotation @ middle
    return affine


def _lungs(chest: Chest, y: Array, x: Array) -> tuple[Array, Array]:
    """Return the aerated fraction, 0 to 1, of the patient's right and left lung."""
    return _lung(chest, 0, y, -x), _lung(chest, 1, y, x)


def _lung(chest: Chest, side: int, y: Array, u: Array) -> Array:
    """Return one lung; u is the distance from the midline towards the lung's side."""
    top, bottom, width = chest.apex, chest.base[side], chest.lung_width[side]
    t = (y - top) / (bottom - top)
    rise = np.clip(t / 0.85, 0, 1)
    lateral = 0.27 + (width - 0.27) * (1 - (1 - rise) ** 2.5) ** 0.62
    medial = 0.27 - 0.18 * np.sqrt(1 - (1 - np.clip(t / 0.28, 0, 1)) ** 2)
    floor = bottom - chest.dome[side] * np.exp(-(((u - 0.30) / 0.30) ** 2))
    soft = chest.softness
    inside = step(u - medial, soft) * step(lateral - u, soft) * step(y - top, soft)
    return inside * step(floor - y, soft)


def _soft_tissue(chest: Chest, lungs: tuple[Array, Array], y: Array, x: Array, view: str) -> Array:
    """Return attenuation of everything but bones and lesions."""
    air = _body(chest, y, x)
    lung = lungs[0] + lungs[1]
    middle = _mediastinum(chest, y, x)
    heart = _heart(chest, y, x, 1.1 if view == "AP" else 1.0)  # AP: the heart is far from the detector
    dense = 1 - (1 - middle) * (1 - 0.90 * heart)
    above = step(max(chest.base) - chest.dome[1] + 0.06 - y, 0.08)
    depth = 0.75 + 0.25 * np.clip(1 - ((np.abs(x) - 0.38) / 0.36) ** 2, 0, 1)
    image = chest.thickness * air * (0.56 + 0.11 * step(y - 0.5, 0.12))
    image -= 0.40 * lung * depth * (1 - dense)
    image += (0.07 * middle + 0.09 * heart) * air * above - 0.10 * _trachea(chest, y, x)
    return image + _breasts(chest, y, x) * air - _stomach_gas(chest, y, x)


def _body(chest: Chest, y: Array, x: Array) -> Array:
    """Return the body's outline with thinner edges: neck, sloping shoulders, trunk."""
    shoulder = step(y + 0.90 - 0.16 * np.abs(x), 0.035)
    trunk = chest.half_width * (1 + 0.10 * np.exp(-(((y + 0.62) / 0.24) ** 2)) - 0.03 * np.cos(3 * y))
    half = 0.30 + (trunk - 0.30) * shoulder
    return step(half - np.abs(x), 0.012) * (
        0.55 + 0.45 * np.sqrt(np.clip(1 - (x / (half + 0.02)) ** 2, 0, 1))
    )


def _mediastinum(chest: Chest, y: Array, x: Array) -> Array:
    centre = chest.spine_curve * np.sin(2.5 * y)
    right = 0.10 + 0.03 * np.exp(-(((y + 0.08) / 0.09) ** 2)) + 0.035 * np.exp(-(((y - 0.12) / 0.22) ** 2))
    knob = 0.075 * chest.aorta * np.exp(-(((y + 0.33) / 0.085) ** 2))
    hilum = 0.045 * np.exp(-(((y + 0.10) / 0.10) ** 2))
    left = 0.09 + knob + hilum
    return step(x - centre + right, 0.014) * step(left + centre - x, 0.014)


def _heart(chest: Chest, y: Array, x: Array, magnification: float) -> Array:
    """Return the heart: an oblique oval that leans to the patient's left, flattened on the diaphragm."""
    size = chest.heart * magnification
    dy, dx = y - 0.30, x - 0.10 * size
    cos, sin = np.cos(chest.heart_tilt), np.sin(chest.heart_tilt)
    along, across = dx * cos + dy * sin, -dx * sin + dy * cos
    radius = ((np.abs(along) / (0.37 * size)) ** 2.4 + (np.abs(across) / (0.27 * size)) ** 2.4) ** (1 / 2.4)
    return step((1 - radius) * 0.28, 0.016)


def _trachea(chest: Chest, y: Array, x: Array) -> Array:
    centre = 0.012 + chest.spine_curve * np.sin(2.5 * y)
    return np.exp(-(((x - centre) / 0.045) ** 4)) * step(-0.30 - y, 0.03)


def _breasts(chest: Chest, y: Array, x: Array) -> Array:
    radius = np.sqrt(((np.abs(x) - 0.45) / 0.36) ** 2 + ((y - 0.28) / 0.30) ** 2)
    return chest.breast * step(1 - radius, 0.05) * (0.4 + 0.6 * step(y - 0.30, 0.10))


def _stomach_gas(chest: Chest, y: Array, x: Array) -> Array:
    top = chest.base[1] - chest.dome[1] + 0.10
    radius = np.sqrt(((x - 0.33) / 0.17) ** 2 + ((y - top) / 0.07) ** 2)
    return chest.stomach_gas * step(1 - radius, 0.10)


def _bones(chest: Chest, y: Array, x: Array) -> Array:
    cage = step(chest.half_width * 0.90 - np.abs(x), 0.03)
    ribs = chest.rib_contrast * _ribs(chest, y, np.abs(x)) * cage
    return ribs + _clavicles(chest, y, x) + _spine(chest, y, x) + _scapulae(y, x)


def _ribs(chest: Chest, y: Array, u: Array) -> Array:
    """Return nine pairs of ribs; u is the distance from the midline.

    Their backs arch outward and down from the spine, their fronts inward and down from the side.
    """
    outward = 0.34 * chest.rib_slope * np.clip(u - 0.15, 0, 1) ** 1.8
    back_drop = outward - 0.05 * np.sin(np.pi * np.clip(u / 0.5, 0, 1))
    front_drop = 0.20 + 0.52 * chest.rib_slope * np.clip(0.78 - u, 0, 1) ** 1.25
    backs, fronts = np.zeros_like(y), np.zeros_like(y)
    for rib in range(9):
        below = y - (chest.apex + 0.02 + rib * chest.rib_gap)
        backs += _bar(below - back_drop, 0.031)
        fronts += _bar(below - front_drop, 0.036)
    bony = step(u - 0.30, 0.03) * step(0.46 - y, 0.06)  # the cartilage nearer the middle is not seen
    return backs * step(u - 0.09, 0.02) + 0.75 * fronts * bony


def _bar(distance: Array, half: float) -> Array:
    """Return a flat bone seen from the front: a plateau with denser cortical edges."""
    square = (distance / half) ** 2
    return np.exp(-square * square) * (0.55 + 0.6 * square)


def _clavicles(chest: Chest, y: Array, x: Array) -> Array:
    u = np.abs(x)
    centre = chest.apex + 0.13 - chest.clavicle_rise * np.tanh((u - 0.38) * 4) - 0.10 * u
    return 0.19 * _bar(y - centre, 0.036) * step(u - 0.07, 0.012) * step(0.80 - u, 0.02)


def _spine(chest: Chest, y: Array, x: Array) -> Array:
    centre = chest.spine_curve * np.sin(2.5 * y)
    bodies = 0.7 + 0.3 * np.tanh(3 * np.cos(2 * np.pi * y / 0.135))
    processes = np.exp(-(((np.abs(x - centre) - 0.055) / 0.016) ** 2)) * (
        0.5 + 0.5 * np.cos(2 * np.pi * y / 0.135)
    )
    return 0.035 * bodies * np.exp(-(((x - centre) / 0.085) ** 4)) + 0.035 * processes


def _scapulae(y: Array, x: Array) -> Array:
    u = np.abs(x)
    edge = u - (0.80 - 0.10 * np.tanh((y + 0.15) * 3))
    blade = step(edge, 0.012) * step(0.20 - edge, 0.05)
    return 0.05 * blade * step(y + 0.66, 0.04) * step(0.14 - y, 0.06)


def _vessels(
    study: Study, chest: Chest, lungs: tuple[Array, Array], shape: tuple[int, int], affine: Array
) -> Array:
    """Return branching vessels: points walked outward from the hila, thinner as they go, then blurred."""
    rng = generator("vessels", study.patient_id)
    to_index = np.linalg.inv(affine)
    wide, narrow = np.zeros(shape), np.zeros(shape)
    for side in (-1, 1):
        for _ in range(16):
            path, weight = _walk(rng, side)
            rows, columns = np.rint(to_index[:2, :2] @ path + to_index[:2, 2:]).astype(int)
            seen = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
            np.add.at(wide, (rows[seen], columns[seen]), weight[seen])
            np.add.at(narrow, (rows[seen], columns[seen]), np.minimum(weight[seen], 0.55))
    density = 0.55 * gaussian_filter(wide, 1.9) + 0.30 * gaussian_filter(narrow, 0.9)
    return 0.16 * chest.vessels * np.tanh(1.6 * density) * (lungs[0] + lungs[1])


def _walk(rng: np.random.Generator, side: int, steps: int = 130) -> tuple[Array, Array]:
    """Return points (2, steps) of one vessel from the hilum outwards, and their weights."""
    heading = rng.uniform(-1.35, 1.35) + np.cumsum(rng.normal(0, 0.045, size=steps))
    length = rng.uniform(0.35, 0.62) / steps
    y = -0.08 + rng.normal(0, 0.05) + np.cumsum(length * np.sin(heading))
    x = side * (0.15 + np.cumsum(length * np.cos(heading)))
    return np.stack([y, x]), 1.2 * (1 - np.linspace(0, 1, steps)) ** 1.3


def _texture(study: Study, shape: tuple[int, int], affine: Array) -> Array:
    """Return the uneven density of real tissue, on two scales."""
    rng = generator("tissue", study.patient_id)
    coarse = sample_waves(make_waves(rng, 2, 0.55), shape, affine)
    fine = sample_waves(make_waves(rng, 2, 0.16, 48), shape, affine)
    return 0.016 * coarse + 0.009 * fine


def _visible_lung(chest: Chest, lungs: tuple[Array, Array], y: Array, x: Array) -> Array:
    """Return where a lesion can be seen: aerated, and not behind the heart."""
    return (lungs[0] + lungs[1]) * (1 - _mediastinum(chest, y, x)) * (1 - _heart(chest, y, x, 1.1))


def _opacity(
    study: Study, lungs: tuple[Array, Array], visible: Array, shape: tuple[int, int], affine: Array
) -> Opacity:
    """Place a soft, irregular opacity of random size and contrast in the visible lung."""
    rng = generator("opacity", study.name)
    radius = rng.uniform(0.10, 0.27)
    rows, columns = np.nonzero(gaussian_filter(visible, 5) > 0.93)
    pick = rng.integers(len(rows))
    y, x = grid_points(shape, affine)
    dy, dx = y - y[rows[pick], columns[pick]], x - x[rows[pick], columns[pick]]
    stretch, angle = rng.uniform(0.75, 1.3), rng.uniform(0, np.pi)
    along, across = dy * np.cos(angle) + dx * np.sin(angle), dx * np.cos(angle) - dy * np.sin(angle)
    distance = np.sqrt((along / stretch) ** 2 + (across * stretch) ** 2)
    ragged = radius * (1 + 0.22 * sample_waves(make_waves(rng, 2, 1.6 * radius), shape, affine))
    patchy = 1 + 0.20 * sample_waves(make_waves(rng, 2, 0.09), shape, affine)
    body = step(ragged - distance, 0.22 * radius) * visible
    # Small ones are denser, as nodules are; large ones are hazy, as infiltrates are.
    contrast = rng.uniform(0.16, 0.38) * (1.2 - 1.8 * (radius - 0.10))
    return Opacity(np.clip(body * patchy, 0, None), contrast, body > 0.5)


def _expose(study: Study, image: Array) -> Array:
    """Turn attenuation into a scanner's displayed image in 0..1: blur, noise, tone, collimation."""
    rng = generator("exposure", study.name)
    south = study.traits["scanner"] == "south"
    image = gaussian_filter(image, 0.75 if south else 0.45)
    image = image - 0.06 * (gaussian_filter(image, 9) - image) if not south else image
    level = (0.021 if south else 0.014) * rng.uniform(0.8, 1.2)
    noise = gaussian_filter(rng.normal(size=image.shape), 0.55 if south else 0.35)
    image = image + level * noise * np.exp(0.8 * np.clip(image, 0, 1))  # fewer photons behind dense tissue
    image = (image - 0.02 + rng.normal(0, 0.018)) * (1.18 * rng.normal(1, 0.05))
    tone = np.clip(image, 0, 1) ** ((0.86 if south else 1.05) * rng.normal(1, 0.04))
    return tone * _collimator(rng, image.shape) if south else tone


def _collimator(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return 1 inside the shutters and 0 outside; each shutter covers a few pixels."""
    open_field = np.zeros(shape)
    top, bottom, left, right = rng.integers(1, 7, size=4)
    open_field[top : shape[0] - bottom, left : shape[1] - right] = 1
    return gaussian_filter(open_field, 0.6)
