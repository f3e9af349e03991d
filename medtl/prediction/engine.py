"""Decide whether ONNX Runtime computes the networks of an ensemble, or PyTorch, in which they were trained.

Ensemble -> a graph for each member, compared with it -> an Ensemble that runs the graphs, or the same one.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from medtl.learning.checkpoint import Checkpoint
from medtl.learning.graphs import Graph, keep_graph
from medtl.learning.portable import TOLERANCE, example_images
from medtl.prediction.ensemble import Ensemble
from medtl.prediction.scoring import one_thread, predict_features
from medtl.prediction.stopwatch import least_seconds

Engine = Literal["torch", "onnx"]
EngineChoice = Literal["torch", "onnx", "auto"]


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
        return {**asdict(self), "tolerance": TOLERANCE}


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
