"""Turn validation logits into a calibration, if it makes the probabilities there more honest.

Temperature scaling (Guo 2017) divides the logits by one number, in multilabel by one for each class: it
changes how sure the model is and never whom it ranks first. Isotonic regression (Zadrozny and Elkan 2002)
bends probabilities freely, for which it needs many samples, and may rank some of them alike.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.isotonic import IsotonicRegression

from medtl.data.task import Task, TaskKind
from medtl.evaluation import metrics
from medtl.evaluation.metrics import Floats

# A temperature beyond these makes a coin or an oracle of any model.
LOWEST, HIGHEST = 0.05, 20.0
SMALLEST_GAIN = 1e-6


class Steps(BaseModel):
    """A rising function as points that straight lines join, level beyond them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    x: tuple[float, ...]
    y: tuple[float, ...]


class Calibration(BaseModel):
    """How logits become probabilities.

    temperatures: divide the logits; one, or in multilabel one for each class. steps: for each class against
    the rest (in binary of the last one alone) what a probability after the temperature is turned into.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["temperature", "isotonic"]
    temperatures: tuple[float, ...] = (1.0,)
    steps: tuple[Steps, ...] = ()


@dataclass(frozen=True)
class FittedCalibration:
    """A calibration, None where the probabilities stay as they are, and the line that says so."""

    calibration: Calibration | None
    note: str


# auto: temperature, where it lowers the negative log-likelihood of the validation data.
CalibrationMethod = Literal["auto", "none", "temperature", "isotonic"]


def fit_calibration(
    logits: NDArray, targets: NDArray, task: Task, method: CalibrationMethod = "auto"
) -> FittedCalibration:
    """Fit a calibration on validation logits (N, K).

    auto: temperature, where it lowers the negative log-likelihood of the validation data.
    """
    if method == "none":
        return FittedCalibration(None, "probabilities are not calibrated, as the recipe says")
    before = negative_log_likelihood(logits, targets, task.kind)
    if method == "isotonic":
        found = Calibration(method="isotonic", steps=_fit_steps(logits, targets, task.kind))
        return FittedCalibration(found, "probabilities are calibrated by isotonic regression")
    found = Calibration(method="temperature", temperatures=_fit_temperatures(logits, targets, task.kind))
    after = negative_log_likelihood(logits, targets, task.kind, found)
    shown = ", ".join(f"{temperature:.2f}" for temperature in found.temperatures)
    change = f"negative log-likelihood on validation data {before:.3f} -> {after:.3f}"
    if max(found.temperatures) > 0.99 * HIGHEST:
        change += "; it is at its bound: these probabilities say nothing"
    if method == "auto" and not after < before - SMALLEST_GAIN:
        return FittedCalibration(None, f"probabilities stay as they are: temperature {shown} gives {change}")
    return FittedCalibration(found, f"probabilities are calibrated by temperature {shown}: {change}")


def negative_log_likelihood(
    logits: NDArray, targets: NDArray, kind: TaskKind, calibration: Calibration | None = None
) -> float:
    """Return the mean over samples, in multilabel over labels, of minus the log of what came true."""
    scaled = np.asarray(logits, np.float64)
    if calibration is not None and calibration.steps:
        probabilities = to_probabilities(scaled, kind, calibration)
        questions = metrics.one_vs_rest(probabilities, targets, kind)
        if kind == "multiclass":
            came_true = probabilities[np.arange(len(probabilities)), np.asarray(targets)]
        else:
            known = np.isfinite(questions.truth)
            came_true = np.where(questions.truth == 1, questions.scores, 1 - questions.scores)[known]
        return float(-np.log(np.maximum(came_true, np.finfo(float).tiny)).mean())
    if calibration is not None:
        scaled = scaled / np.asarray(calibration.temperatures)
    if kind == "multilabel":
        known, sign = np.isfinite(targets), np.where(targets == 1, 1.0, -1.0)
        return float(-log_expit(sign * scaled)[known].mean())
    return float(-log_softmax(scaled, axis=1)[np.arange(len(scaled)), np.asarray(targets)].mean())


def _fit_temperatures(logits: NDArray, targets: NDArray, kind: TaskKind) -> tuple[float, ...]:
    scaled = np.asarray(logits, np.float64)
    if kind != "multilabel":
        wanted = _smoothed(np.asarray(targets)[:, None] == np.arange(scaled.shape[1]))
        return (_lowest(lambda t: -(wanted * log_softmax(scaled / t, axis=1)).sum()),)
    return tuple(_fit_one(column, flags) for column, flags in zip(scaled.T, targets.T, strict=True))


def _fit_one(logits: Floats, flags: Floats) -> float:
    """Return the temperature of one class of multilabel; 1 where its labels are all alike."""
    known = np.isfinite(flags)
    truth, values = flags[known] == 1, logits[known]
    if len(np.unique(truth)) < 2:
        return 1.0
    wanted = _smoothed(np.stack([~truth, truth], axis=1))
    pair = np.stack([-values, values], axis=1)
    return _lowest(lambda t: -(wanted * log_expit(pair / t)).sum())


def _smoothed(flags: NDArray[np.bool_]) -> Floats:
    """Return what is wanted of each class (N, K), short of certainty by what n samples cannot tell.

    So a temperature exists where the classes are told apart without an error (Platt 1999, section 2.2).
    """
    classes = flags.shape[1]
    counts = flags.sum(axis=0)
    return (flags * counts + 1) / (flags @ counts + classes)[:, None]


def _lowest(loss: Callable[[float], float]) -> float:
    found = minimize_scalar(
        lambda log_t: float(loss(math.exp(log_t))),
        bounds=(math.log(LOWEST), math.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(float(found.x))


def _fit_steps(logits: NDArray, targets: NDArray, kind: TaskKind) -> tuple[Steps, ...]:
    questions = metrics.one_vs_rest(to_probabilities(logits, kind), targets, kind)
    columns = zip(questions.scores.T, questions.truth.T, strict=True)
    return tuple(_fit_isotonic(scores, truth) for scores, truth in columns)


def _fit_isotonic(scores: Floats, truth: Floats) -> Steps:
    """Fit a rising function; the identity where the labels are all alike."""
    known = np.isfinite(truth)
    if len(np.unique(truth[known])) < 2:
        return Steps(x=(0.0, 1.0), y=(0.0, 1.0))
    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(scores[known], truth[known])
    return Steps(x=tuple(fitted.X_thresholds_.tolist()), y=tuple(fitted.y_thresholds_.tolist()))


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
