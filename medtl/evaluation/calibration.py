"""Fit a calibration on validation logits, and turn logits into probabilities with it.

Temperature scaling (Guo 2017) divides the logits by one number, in multilabel by one for each class: it
changes the confidence and never the ranking. Isotonic regression (Zadrozny and Elkan 2002) fits any rising
function, for which it needs many samples, and may introduce ties.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from scipy.special import expit, log_expit, log_softmax, softmax

from medtl.data.task import Task, TaskKind
from medtl.evaluation.metrics import Floats, Questions

# Beyond these temperatures every probability is close to a half, or to 0 and 1.
LOWEST, HIGHEST = 0.05, 20.0
SMALLEST_GAIN = 1e-6


class Steps(BaseModel, extra="forbid", frozen=True):
    """A rising function: linear between its points, constant beyond them."""

    x: tuple[float, ...]
    y: tuple[float, ...]


class Calibration(BaseModel, extra="forbid", frozen=True):
    """How logits become probabilities.

    temperatures: divide the logits; one, or in multilabel one for each class. steps: for each class against
    the rest (in binary the last one alone) the function from the probability at that temperature to the
    calibrated one.
    """

    method: Literal["temperature", "isotonic"]
    temperatures: tuple[float, ...] = (1.0,)
    steps: tuple[Steps, ...] = ()


CalibrationMethod = Literal["auto", "none", "temperature", "isotonic"]


def fit_calibration(
    logits: NDArray, targets: NDArray, task: Task, method: CalibrationMethod = "auto"
) -> tuple[Calibration | None, str]:
    """Fit a calibration on validation logits (N, K), and return it with the line that reports it.

    None: the probabilities stay as they are. auto: temperature if it lowers the negative log-likelihood of
    the validation data.
    """
    if method == "none":
        return None, "probabilities are not calibrated, as the recipe says"
    if method == "isotonic":
        questions = Questions(to_probabilities(logits, task.kind), targets, task)
        steps = tuple(_fit_isotonic(*column) for column in questions.columns)
        calibration = Calibration(method="isotonic", steps=steps)
        return calibration, "probabilities are calibrated by isotonic regression"
    temperatures = _fit_temperatures(np.asarray(logits, np.float64), np.asarray(targets), task.kind)
    calibration = Calibration(method="temperature", temperatures=temperatures)
    before = negative_log_likelihood(logits, targets, task.kind)
    after = negative_log_likelihood(logits, targets, task.kind, temperatures)
    shown = ", ".join(f"{temperature:.2f}" for temperature in temperatures)
    change = f"negative log-likelihood on validation data {before:.3f} -> {after:.3f}"
    if max(temperatures) > 0.99 * HIGHEST:
        change += "; the temperature is at its bound: the probabilities carry no information"
    if method == "auto" and not after < before - SMALLEST_GAIN:
        return None, f"probabilities stay as they are: temperature {shown} gives {change}"
    return calibration, f"probabilities are calibrated by temperature {shown}: {change}"


def negative_log_likelihood(
    logits: NDArray, targets: NDArray, kind: TaskKind, temperatures: tuple[float, ...] = (1.0,)
) -> float:
    """Return the mean over samples, in multilabel over labels, of minus the log of the true class."""
    scaled = np.asarray(logits, np.float64) / temperatures
    if kind == "multilabel":
        known, sign = np.isfinite(targets), np.where(targets == 1, 1.0, -1.0)
        return float(-log_expit(sign * scaled)[known].mean())
    return float(-log_softmax(scaled, axis=1)[np.arange(len(scaled)), np.asarray(targets)].mean())


def _fit_temperatures(logits: Floats, targets: NDArray, kind: TaskKind) -> tuple[float, ...]:
    if kind != "multilabel":
        flags = targets[:, None] == np.arange(logits.shape[1])
        return (_fit_temperature(logits, flags, lambda scaled: log_softmax(scaled, axis=1)),)
    temperatures = []
    for column, values in zip(logits.T, targets.T, strict=True):
        known = np.isfinite(values)
        truth, scores = values[known] == 1, column[known]
        pair, flags = np.stack([-scores, scores], axis=1), np.stack([~truth, truth], axis=1)
        temperatures.append(_fit_temperature(pair, flags, log_expit) if flags.any(axis=0).all() else 1.0)
    return tuple(temperatures)


def _fit_temperature(
    logits: Floats, flags: NDArray[np.bool_], log_probability: Callable[[Floats], Floats]
) -> float:
    """Return the temperature that makes the flagged classes (N, K) most likely.

    Targets are smoothed (Platt 1999, section 2.2), so that it exists if the classes are separated without an
    error.
    """
    from scipy.optimize import minimize_scalar

    counts = flags.sum(axis=0)
    smoothed = (flags * counts + 1) / (flags @ counts + flags.shape[1])[:, None]

    def loss(log_temperature: float) -> float:
        return float(-(smoothed * log_probability(logits / math.exp(log_temperature))).sum())

    minimum = minimize_scalar(
        loss,
        bounds=(math.log(LOWEST), math.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(float(minimum.x))


def _fit_isotonic(scores: Floats, truth: Floats) -> Steps:
    """Fit a rising function; the identity if all labels are equal."""
    from sklearn.isotonic import IsotonicRegression

    known = np.isfinite(truth)
    if len(np.unique(truth[known])) < 2:
        return Steps(x=(0.0, 1.0), y=(0.0, 1.0))
    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(scores[known], truth[known])
    return Steps(x=tuple(fitted.X_thresholds_.tolist()), y=tuple(fitted.y_thresholds_.tolist()))


class ConformalFloors(BaseModel, extra="forbid", frozen=True):
    """The probability from which a class is in the prediction set.

    promised: the share of new patients whose true answer is in the set. floors: by class, 0 if it can never
    be excluded. absent_floors: in multilabel the same for the absence of each class. patients,
    absent_patients: how many patients the floors come from.
    """

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
    raw: Floats = expit(scaled) if kind == "multilabel" else softmax(scaled, axis=1)
    if calibration is None or not calibration.steps:
        return raw
    columns = raw[:, -1:] if kind == "binary" else raw
    pairs = zip(columns.T, calibration.steps, strict=True)
    stepped = np.stack([np.interp(column, steps.x, steps.y) for column, steps in pairs], axis=1)
    if kind == "binary":
        return np.concatenate([1 - stepped, stepped], axis=1)
    if kind == "multilabel":
        return stepped
    # Each class against the rest, then scaled to add up to 1 (Zadrozny and Elkan 2002).
    total = stepped.sum(axis=1, keepdims=True)
    return np.where(total > 0, stepped / np.where(total > 0, total, 1), 1 / raw.shape[1])
