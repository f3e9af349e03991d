"""Decide whether ONNX Runtime computes the networks of an ensemble, or PyTorch, in which they were trained.

Ensemble -> a graph for each member, compared with it -> an Ensemble that runs the graphs, or the same one.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl.errors import ReadError
from medtl.imaging.preprocessing import prepare_image
from medtl.imaging.reader import read_series
from medtl.imaging.series import Series
from medtl.inference.ensemble import Ensemble
from medtl.inference.export import TOLERANCE as ENGINE_TOLERANCE
from medtl.inference.export import example_images
from medtl.inference.onnx_graph import Graph, keep_graph
from medtl.inference.predictor import Precision, arithmetic, one_thread, predict_features, predict_logits
from medtl.training.checkpoint import Checkpoint

Engine = Literal["torch", "onnx"]
EngineChoice = Literal["torch", "onnx", "auto"]
PrecisionChoice = Literal["auto", "fp32", "bf16"]

# The largest difference of a logit: it moves a probability by at most a quarter of that.
PRECISION_TOLERANCE = 0.05
ROUNDS = 5


@dataclass(frozen=True)
class EngineTrial:
    """What a comparison on one seeded batch found; seconds are the processor's, the least of some rounds."""

    chosen: Engine
    reason: str
    largest_difference: float = 0.0
    seconds_torch: float = 0.0
    seconds_onnx: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain data, with the tolerance."""
        return {**asdict(self), "tolerance": ENGINE_TOLERANCE}


def try_engine(ensemble: Ensemble, batch: int, *, timed: bool) -> tuple[EngineTrial, Sequence[Graph]]:
    """Compare both engines, also in speed where `timed`, on `batch` images a member; return the graphs, too.

    Raises CheckpointError extra-missing, export-unsupported, export-differs; OutputError.
    """
    kept = [keep_graph(member) for member in ensemble.members]
    graphs, apart = [graph for graph, _ in kept], max(difference for _, difference in kept)
    if not timed:
        return EngineTrial("onnx", "logits agree", apart), graphs
    pairs = list(zip(ensemble.members, graphs, strict=True))
    with one_thread():
        seconds_torch = sum(_seconds(member, None, batch) for member, _ in pairs)
        seconds_onnx = sum(_seconds(member, graph, batch) for member, graph in pairs)
    chosen: Engine = "onnx" if seconds_onnx < seconds_torch else "torch"
    reason = "logits agree, and it is faster" if chosen == "onnx" else "it is not faster"
    return EngineTrial(chosen, reason, apart, seconds_torch, seconds_onnx), graphs


def _seconds(member: Checkpoint, graph: Graph | None, batch: int) -> float:
    images = torch.from_numpy(example_images(member, batch))
    return least_seconds(lambda: predict_features(member, images, graph))


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
        return {**asdict(self), "tolerance": PRECISION_TOLERANCE}


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
    agrees, faster = difference <= PRECISION_TOLERANCE, seconds_short < seconds
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


def least_seconds(run: Callable[[], object]) -> float:
    """Return the processor's seconds of the fastest of ROUNDS runs, after one that warms up."""
    run()
    return min(_processor_seconds(run) for _ in range(ROUNDS))


def _processor_seconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started
