"""Audit saliency methods on a model's own images: which checks do their maps pass, with what certainty?

Cases -> a map for each method -> deletion, randomisation, stability, and masks if there are any -> audits
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl.core.ids import make_generator
from medtl.errors import ReadError
from medtl.evaluation.intervals import Interval, interval_json
from medtl.evaluation.metrics import index_patients
from medtl.explain import METHODS, check_method
from medtl.explain.checks import (
    STABLE,
    SURVIVES,
    delete_and_insert,
    localise,
    noise_correlation,
    randomise,
    rank_correlation,
)
from medtl.explain.explanation import target_of
from medtl.imaging.image import Image
from medtl.imaging.preprocessing import PreparedImage, to_image_grid
from medtl.imaging.reader import read_images
from medtl.imaging.series import Series
from medtl.inference.predictor import Scored
from medtl.models.classifier import Classifier
from medtl.training.checkpoint import Checkpoint

CONFIDENCE = 0.95
RESAMPLES = 1000

# In the order of the table: what a method does that fails.
FAILED = {
    "deletion": "deleting what it marks hurts no more than chance",
    "insertion": "what it marks carries the score no more than chance",
    "randomisation": "survives randomisation",
    "stability": "unstable under noise",
    "pointing": "points at the masks no more than chance",
    "energy": "its energy is in the masks no more than chance",
}


@dataclass(frozen=True, eq=False)
class Case:
    """An image to check maps on.

    mask: what the model should look at, on the Image's grid (*spatial); None if unknown. Cases of one patient
    are resampled together.
    """

    image: Image
    prepared: PreparedImage
    target: int
    patient: str
    mask: NDArray | None = None


@dataclass(frozen=True)
class AuditSettings:
    """How much an audit computes.

    map_cases: the number of images for randomisation and stability, each of which needs further maps.
    """

    map_cases: int = 6
    noise_draws: int = 2


@dataclass(frozen=True)
class Check:
    """One check of one method over images. value: a mean over images with its interval by patient.

    Above `bound` is right, except for randomisation, where below is. It is passed if the whole interval is on
    the right side of the bound. The bounds: deletion and insertion gains in area 0; randomisation, the rank
    correlation when all weights are shuffled, SURVIVES; stability, the rank correlation under noise, STABLE;
    pointing, the share of maps whose maximum is in the mask, the masks' mean share of the image; energy, the
    median of the share inside the mask over the mask's share of the image, 1.
    """

    name: str
    value: Interval
    bound: float
    cases: int

    @property
    def verdict(self) -> Literal["passed", "failed", "undecided"]:
        """`undecided` if there is no interval, as for one patient."""
        if math.isnan(self.value.low):
            return "undecided"
        is_below = self.name == "randomisation"
        right = self.value.high < self.bound if is_below else self.value.low > self.bound
        return "passed" if right else "failed"


@dataclass(frozen=True)
class MethodAudit:
    """The checks of one method. cases: how many images; empty: how many of their maps are all zero."""

    method: str
    checks: tuple[Check, ...]
    cases: int
    empty: int

    @property
    def passed(self) -> int:
        """How many checks were passed."""
        return sum(check.verdict == "passed" for check in self.checks)

    @property
    def words(self) -> str:
        """One line: `grad-cam: passed 3 of 4: survives randomisation`."""
        failed = [FAILED[check.name] for check in self.checks if check.verdict == "failed"]
        unsure = [f"{check.name} undecided" for check in self.checks if check.verdict == "undecided"]
        empty = [f"{self.empty} of {self.cases} maps are empty"] if self.empty else []
        remarks = "; ".join((*failed, *unsure, *empty))
        passed = f"{self.method}: passed {self.passed} of {len(self.checks)}"
        return f"{passed}: {remarks}" if remarks else passed


def audit(
    classifier: Classifier,
    cases: Sequence[Case],
    methods: Sequence[str],
    settings: AuditSettings = AuditSettings(),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[MethodAudit]:
    """Check each method's maps on the cases, one row each. Raises ConfigError saliency-method.

    Give cases in which the model predicted the explained class: there is nothing to delete if the probability
    is near 0.
    """
    for method in methods:
        check_method(method, classifier)
    shuffled = randomise(classifier)
    rows, total = [], len(methods) * len(cases)
    for number, method in enumerate(methods):
        results = []
        for index, case in enumerate(cases):
            image = torch.from_numpy(case.prepared.pixels)[None]
            heatmap = METHODS[method](classifier, image, case.target)
            results.append(_check_map(classifier, case, image, heatmap) if heatmap.any() else {})
            if results[-1] and index < settings.map_cases:
                unlearnt = METHODS[method](shuffled, image, case.target)
                results[-1]["randomisation"] = abs(rank_correlation(heatmap, unlearnt))
                results[-1]["stability"] = noise_correlation(
                    classifier, image, heatmap, case.target, method, draws=settings.noise_draws
                )
            progress(number * len(cases) + index + 1, total)
        rows.append(_summarise(method, cases, results))
    return rows


def to_json(rows: Sequence[MethodAudit]) -> list[dict[str, Any]]:
    """Return plain data, None for what is undefined."""
    return [
        {
            "method": row.method,
            "words": row.words,
            "passed": row.passed,
            "of": len(row.checks),
            "images": row.cases,
            "empty": row.empty,
            "checks": {
                check.name: {
                    **interval_json(check.value),
                    "bound": check.bound,
                    "images": check.cases,
                    "verdict": check.verdict,
                }
                for check in row.checks
            },
        }
        for row in rows
    ]


def bootstrap(
    values: Sequence[float], patients: Sequence[str], statistic: Callable[[NDArray], Any] = np.mean
) -> Interval:
    """Return a statistic with its percentile interval over resampled patients; no bounds for one patient."""
    numbers, groups = np.asarray(values, dtype=float), index_patients(patients)
    if not len(numbers):
        return Interval(math.nan)
    rows = [np.flatnonzero(groups == group) for group in range(groups.max() + 1)]
    if len(rows) < 2:
        return Interval(float(statistic(numbers)))
    drawn = make_generator(0, "audit").integers(len(rows), size=(RESAMPLES, len(rows)))
    resampled = [statistic(numbers[np.concatenate([rows[patient] for patient in one])]) for one in drawn]
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(statistic(numbers)), float(low), float(high))


def _check_map(
    classifier: Classifier, case: Case, image: Tensor, heatmap: NDArray[np.float32]
) -> dict[str, float]:
    """Return what the checks that need one map measure."""
    curves = delete_and_insert(classifier, image, heatmap, case.target)
    results = {"deletion": curves.deletion_gain, "insertion": curves.insertion_gain}
    if case.mask is not None and case.mask.any():
        on_image = np.clip(to_image_grid(heatmap, case.prepared, case.image), 0.0, 1.0)
        if on_image.any():
            place = localise(on_image, case.mask)
            results |= {"pointing": float(place.hit), "energy": place.gain, "chance": place.chance}
    return results


def _summarise(method: str, cases: Sequence[Case], results: Sequence[dict[str, float]]) -> MethodAudit:
    names = [name for name in FAILED if any(name in one for one in results)] or ["deletion"]
    chance = float(np.mean([one["chance"] for one in results if "chance" in one] or [math.nan]))
    bounds = {"randomisation": SURVIVES, "stability": STABLE, "pointing": chance, "energy": 1.0}
    checks = []
    for name in names:
        pairs = [(one[name], case.patient) for one, case in zip(results, cases, strict=True) if name in one]
        statistic = np.median if name == "energy" else np.mean
        values, patients = zip(*pairs, strict=True) if pairs else ((), ())
        value = bootstrap(values, patients, statistic)
        checks.append(Check(name, value, bounds.get(name, 0.0), len(pairs)))
    return MethodAudit(method, tuple(checks), len(cases), sum(not one for one in results))


def find_case(checkpoint: Checkpoint, scored: Scored, masks: Path | None = None) -> list[Case]:
    """Return the case of a study if the model predicted the class that is explained, otherwise nothing."""
    row, task = scored.prediction, checkpoint.task
    if scored.series is None or scored.image is None or scored.prepared is None:
        return []
    target = target_of(task, row.probabilities)
    if task.classes[target] not in row.predicted.split("|"):
        return []
    patient = scored.image.facts.patient_key or row.sample_id
    mask = None if masks is None else _find_mask(masks, scored.series, scored.image)
    return [Case(scored.image, scored.prepared, target, patient, mask)]


def _find_mask(masks: Path, series: Series, image: Image) -> NDArray | None:
    """Return the mask (*spatial) of an image: the file in `masks` of the same name, whatever its suffix."""
    name = (series.path.absolute() / (series.item or "")).name.split(".")[0]
    files = [path for path in sorted(masks.iterdir()) if path.name.split(".")[0] == name]
    if not files:
        return None
    mask = read_images(files[0])[0].pixels[0]
    if mask.shape != image.pixels.shape[1:]:
        shapes = " and ".join("x".join(map(str, shape)) for shape in (mask.shape, image.pixels.shape[1:]))
        fix = "give masks on the grids of their images"
        reason = f"mask and image have {shapes} pixels"
        raise ReadError("mask-grid", reason, where=image.facts.source, fix=fix)
    return mask
