"""Decide on a first batch whether a processor may compute a network in bfloat16.

bfloat16 keeps 8 bits of a number's 24. Scores from it are not those that thresholds and calibration were
made with, so it is taken only where they hardly differ, and where it is faster.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl.errors import ReadError
from medtl.imaging.preprocessing import prepare_image
from medtl.imaging.series import Series, read_series
from medtl.learning.checkpoint import Checkpoint
from medtl.prediction.ensemble import Ensemble
from medtl.prediction.scoring import Precision, arithmetic, one_thread, predict_logits
from medtl.prediction.stopwatch import least_seconds

PrecisionChoice = Literal["auto", "fp32", "bf16"]

# The largest difference of a logit: it moves a probability by at most a quarter of that.
TOLERANCE = 0.05


@dataclass(frozen=True)
class PrecisionTrial:
    """What a comparison on `images` images found; seconds are the processor's, the least of some rounds."""

    chosen: Precision
    reason: str
    images: int = 0
    largest_difference: float = 0.0
    seconds_fp32: float = 0.0
    seconds_bf16: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain data, with the tolerance."""
        return {**asdict(self), "tolerance": TOLERANCE}


def try_precision(ensemble: Ensemble, series: Sequence[Series]) -> PrecisionTrial:
    """Compare both precisions on the first batch of series that can be read. fp32 where none can."""
    if not _has_bf16():
        return PrecisionTrial("fp32", "this processor has no bfloat16")
    with one_thread():  # as scoring will
        trials = [_try_member(member, series) for member in ensemble.members]
    worst = max(trials, key=lambda trial: (trial.chosen == "fp32", trial.largest_difference))
    return worst


def _try_member(member: Checkpoint, series: Sequence[Series]) -> PrecisionTrial:
    images = _first_images(member, series)
    if images is None:
        return PrecisionTrial("fp32", "there is no image to compare on")
    plain, seconds = _timed(member, images, "fp32")
    short, seconds_short = _timed(member, images, "bf16")
    difference = float(np.abs(plain - short).max())
    agrees, faster = difference <= TOLERANCE, seconds_short < seconds
    reason = "logits agree, and it is faster" if agrees and faster else ""
    reason = reason or ("logits differ by more than the tolerance" if not agrees else "it is not faster")
    chosen: Precision = "bf16" if agrees and faster else "fp32"
    return PrecisionTrial(chosen, reason, len(images), difference, seconds, seconds_short)


def _first_images(member: Checkpoint, series: Sequence[Series]) -> Tensor | None:
    prepared = []
    for one in series:
        try:
            prepared.append(prepare_image(read_series(one), member.preprocessing).pixels)
        except ReadError:
            continue
    return torch.from_numpy(np.stack(prepared)) if prepared else None


def _timed(member: Checkpoint, images: Tensor, precision: Precision) -> tuple[NDArray[np.float64], float]:
    """Return logits, and how long they take."""
    with arithmetic(precision):
        return predict_logits(member, images), least_seconds(lambda: predict_logits(member, images))


def _has_bf16() -> bool:
    """Say whether the processor multiplies bfloat16 itself: elsewhere it is slower than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
