"""What a checkpoint keeps of its validation data as plain numbers: how logits become honest probabilities,
and from which probability on a class cannot be excluded."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.special import expit, softmax

from medtl.imaging.task import TaskKind

Floats = NDArray[np.float64]


class Steps(BaseModel):
    """A rising function as points that straight lines join, level beyond them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    x: tuple[float, ...]
    y: tuple[float, ...]


# auto: temperature, where it lowers the negative log-likelihood of the validation data.
CalibrationMethod = Literal["auto", "none", "temperature", "isotonic"]


class Calibration(BaseModel):
    """How logits become probabilities.

    temperatures: divide the logits; one, or in multilabel one for each class. steps: for each class against
    the rest (in binary of the last one alone) what a probability after the temperature is turned into.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["temperature", "isotonic"]
    temperatures: tuple[float, ...] = (1.0,)
    steps: tuple[Steps, ...] = ()


class ConformalFloors(BaseModel):
    """From which probability on a class is in the prediction set.

    promised: the share of new patients whose true answer is in the set. floors: by class, 0 where it can
    never be excluded. absent_floors: in multilabel the same for the absence of each class. patients: how many
    of each class, and of each absence, the floors come from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    promised: float
    floors: tuple[float, ...]
    absent_floors: tuple[float, ...] = ()
    patients: tuple[int, ...] = ()
    absent_patients: tuple[int, ...] = ()


def to_probabilities(logits: NDArray, kind: TaskKind, calibration: Calibration | None = None) -> Floats:
    """Turn logits (N, K) into probabilities (N, K): softmax, in multilabel a sigmoid, then calibrated."""
    scaled = np.asarray(logits, np.float64)
    if calibration is not None:
        scaled = scaled / np.asarray(calibration.temperatures)
    raw = expit(scaled) if kind == "multilabel" else softmax(scaled, axis=1)
    return _step(raw, calibration.steps, kind) if calibration is not None and calibration.steps else raw


def _step(raw: Floats, steps: tuple[Steps, ...], kind: TaskKind) -> Floats:
    columns = raw[:, -1:] if kind == "binary" else raw
    stepped = np.stack([np.interp(p, s.x, s.y) for p, s in zip(columns.T, steps, strict=True)], axis=1)
    if kind == "binary":
        return np.concatenate([1 - stepped, stepped], axis=1)
    if kind == "multilabel":
        return stepped
    # Each class against the rest, then scaled to add up to 1 (Zadrozny and Elkan 2002).
    total = stepped.sum(axis=1, keepdims=True)
    return np.where(total > 0, stepped / np.where(total > 0, total, 1), 1 / raw.shape[1])
