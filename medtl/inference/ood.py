"""Out-of-distribution check: header facts and pooled features of an image -> a verdict.

The features are those that the head reads, so that the check costs no second pass. Each is scaled to length
1. Its distance from the training images is Mahalanobis' (Lee 2018): along their main axes by the variance
there, in all other directions by the mean variance, both shrunk after Ledoit and Wolf (2004). So a checkpoint
holds a mean and some axes, and no features of any one patient. The distance beyond which an image is far
comes from validation images, which the axes were not fitted to.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from medtl.imaging import dicom
from medtl.imaging.dicom.terms import NOT_SHOWN, shown_body_part, shown_modality
from medtl.imaging.image import Image
from medtl.imaging.inspection import Inspection, inspect_header
from medtl.imaging.series import Series
from medtl.training.checkpoint import OodLimits

OodVerdict = Literal["", "ok", "modality", "body part", "geometry", "far from the training images"]
FAR: OodVerdict = "far from the training images"

Floats = NDArray[np.float64]

AXES = 64
# More training images than these did not help (docs/decisions/0017), and each costs a pass.
MOST_SAMPLES = 500
QUANTILE = 0.99
# An extent longer or shorter by this factor than any in training is of another geometry.
ROOM = 1.5
# Facts are compared if at least this share of the training images states them.
STATED = 0.5
TINY = 1e-12


# Of training features: mean (F,), main axes (A, F), the variance along each (A,), and elsewhere (1,).
PARTS = ("mean", "axes", "variances", "elsewhere")


def to_unit_length(features: ArrayLike) -> Floats:
    """Return features (N, F) scaled to length 1; zeros stay zeros."""
    values = np.asarray(features, dtype=np.float64)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), TINY)


def fit_distribution(features: ArrayLike) -> dict[str, Tensor] | None:
    """Fit the distribution of training features (N, F): its PARTS, in 64 bits; None if all are equal."""
    from sklearn.covariance import ledoit_wolf_shrinkage

    unit = to_unit_length(features)
    mean = unit.mean(axis=0)
    centred = unit - mean
    samples, dimensions = centred.shape
    average = float((centred**2).sum()) / (samples * dimensions)
    if not average > TINY:
        return None
    shrunk = float(ledoit_wolf_shrinkage(centred, assume_centered=True))
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    kept, variances = min(AXES, samples - 1, dimensions - 1), singular**2 / samples
    left = float(variances[kept:].sum()) / (dimensions - kept)
    spread = np.maximum((1 - shrunk) * np.append(variances[:kept], left) + shrunk * average, TINY)
    values = mean, axes[:kept], spread[:kept], spread[kept:]
    return {name: torch.from_numpy(value) for name, value in zip(PARTS, values, strict=True)}


def distances(features: ArrayLike, distribution: Mapping[str, Tensor]) -> Floats:
    """Return the squared distance (N,) of features (N, F) from the training images that PARTS describe."""
    mean, axes, variances, elsewhere = (distribution[name].double().numpy() for name in PARTS)
    centred = to_unit_length(features) - mean
    along = centred @ axes.T
    across = np.maximum((centred**2).sum(axis=1) - (along**2).sum(axis=1), 0.0)
    return np.asarray((along**2 / variances).sum(axis=1) + across / elsewhere)


def fit_ood(
    training: ArrayLike, validation: ArrayLike, series: Sequence[Series]
) -> tuple[OodLimits, dict[str, Tensor]] | None:
    """Fit the limits to features of training and validation images, and to headers of training files.

    Returns the checkpoint's header entry and tensors; None if all training features are equal.
    """
    fitted = fit_distribution(training)
    if fitted is None:
        return None
    tensors = {name: part.float() for name, part in fitted.items()}
    # From the saved, rounded numbers: scoring knows no others.
    far = np.quantile(distances(validation, tensors), QUANTILE, method="higher")
    inspected = [inspect_header(one) for one in series]
    limits = OodLimits(
        threshold=float(far),
        quantile=QUANTILE,
        samples=len(np.asarray(training)),
        modalities=_stated(one.modality for one in inspected),
        body_parts=_stated(one.body_part for one in inspected),
        extents_mm=_extents(inspected),
    )
    return limits, tensors


def find_mismatch(image: Image, limits: OodLimits | None) -> OodVerdict:
    """Return how an image differs from the training images by its header, "" if it does not."""
    if limits is None:
        return ""
    modality, body_part = shown_modality(image.facts.modality), shown_body_part(image.facts.body_part)
    if limits.modalities and modality not in (*limits.modalities, "", NOT_SHOWN):
        return "modality"
    if limits.body_parts and body_part not in (*limits.body_parts, "", NOT_SHOWN):
        return "body part"
    return "geometry" if _is_other_geometry(image, limits.extents_mm) else ""


def decide_ood(mismatch: OodVerdict, distance: float, limits: OodLimits | None) -> OodVerdict:
    """Return the verdict: a mismatch of the header before one of the features; "" without limits."""
    if limits is None:
        return ""
    return mismatch or ("ok" if distance <= limits.threshold else FAR)


def _stated(values: Iterable[str]) -> tuple[str, ...]:
    """Return the terms that the training files state, none if too few of them state one."""
    every = list(values)
    codes = [value for value in every if value not in ("", NOT_SHOWN)]
    return tuple(sorted(set(codes))) if len(codes) >= STATED * len(every) else ()


def _extents(inspected: Sequence[Inspection]) -> tuple[tuple[float, float], ...]:
    extents = [
        tuple(extent * step for extent, step in zip(one.matrix, one.spacing_mm, strict=True))
        for one in inspected
        if one.matrix and one.spacing_mm is not None and len(one.matrix) == len(one.spacing_mm)
    ]
    if len({len(one) for one in extents}) != 1 or len(extents) < STATED * len(inspected):
        return ()
    return tuple((min(column), max(column)) for column in zip(*extents, strict=True))


def _is_other_geometry(image: Image, extents_mm: Sequence[tuple[float, float]]) -> bool:
    """Say whether a DICOM image is much larger or smaller; other formats order their axes differently."""
    if image.facts.format != dicom.NAME or image.spacing_mm is None or len(extents_mm) != image.spatial_dims:
        return False
    extents = [count * step for count, step in zip(image.pixels.shape[1:], image.spacing_mm, strict=True)]
    return any(
        not low / ROOM <= extent <= high * ROOM and math.isfinite(extent)
        for extent, (low, high) in zip(extents, extents_mm, strict=True)
    )
