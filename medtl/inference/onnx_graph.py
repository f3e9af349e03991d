"""Run a checkpoint's network in ONNX Runtime: prepared images -> logits, and the features that the head read.

checkpoint -> graph -> $MEDTL_HOME/graphs, written once -> compared with the classifier at each opening.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medtl import __version__
from medtl.core.files import medtl_home, replacing
from medtl.errors import CheckpointError
from medtl.inference.export import INPUT, LOGITS, TOLERANCE, import_onnx, largest_difference, translate
from medtl.models.classifier import Classifier
from medtl.models.weights import sha256_of
from medtl.training.checkpoint import Checkpoint

FEATURES = "features"


class Pooled(nn.Module):
    """Prepared images (N, C, *size) -> logits (N, K) and features (N, F), of slices their mean."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.classifier.run(image, 0, self.classifier.head_step)
        return self.classifier.head(pooled), pooled if pooled.ndim == 2 else pooled.mean(dim=2)


@dataclass(frozen=True)
class Graph:
    """A graph in medtl's home. name: a key of the checkpoint, and of the content. runtime: what runs it."""

    name: str
    runtime: str

    @property
    def path(self) -> Path:
        """Where it lies."""
        return _folder() / self.name

    def run(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return logits (N, K) and features (N, F) of prepared images (N, C, *size)."""
        session = _session(self.path, os.getpid())
        logits, features = session.run([LOGITS, FEATURES], {INPUT: np.ascontiguousarray(images)})
        return logits, features


def keep_graph(checkpoint: Checkpoint) -> tuple[Graph, float]:
    """Return the graph of a checkpoint, written where it is absent or altered, and how far it is off at most.

    Raises CheckpointError extra-missing, export-unsupported, export-differs; OutputError.
    """
    runtime = import_onnx("--engine onnx").__version__
    key = _key(checkpoint)
    found = [path for path in sorted(_folder().glob(f"{key}-*.onnx")) if path.name == _name(key, path)]
    graph = Graph(found[0].name if found else _write(checkpoint, key), runtime)
    apart = _difference(checkpoint, graph)
    if not apart <= TOLERANCE:
        reason = f"ONNX Runtime's logits differ by {apart:.2g}"
        raise CheckpointError(
            "export-differs", reason, where=checkpoint.folder, fix="score with --engine torch"
        )
    return graph, apart


def _folder() -> Path:
    return medtl_home() / "graphs"


def _key(checkpoint: Checkpoint) -> str:
    """Return a key of all that a graph is made from, and by."""
    made_from = {
        "model": checkpoint.sha256,
        "backbone": checkpoint.header.backbone,
        "image": [checkpoint.preprocessing.channels, *checkpoint.preprocessing.size],
        "medtl": __version__,
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]


def _name(key: str, path: Path) -> str:
    """Return what a graph's file is called if it has the content that it was written with."""
    return f"{key}-{sha256_of(path)[:16]}.onnx"


def _write(checkpoint: Checkpoint, key: str) -> str:
    written = translate(Pooled(checkpoint.classifier), checkpoint, [LOGITS, FEATURES])
    content = written.model_proto.SerializeToString()
    name = f"{key}-{hashlib.sha256(content).hexdigest()[:16]}.onnx"
    with replacing(_folder() / name) as temporary:
        temporary.write_bytes(content)
    return name


@cache
def _session(path: Path, process: int) -> Any:
    """Open a graph for a process, with one thread: processes run side by side, and none inherits threads."""
    onnxruntime = import_onnx("--engine onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _difference(checkpoint: Checkpoint, graph: Graph) -> float:
    """Return how far logits and features are from the classifier's at most."""
    network = Pooled(checkpoint.classifier)
    return largest_difference(
        checkpoint,
        graph.run,
        lambda images: [output.numpy() for output in network(torch.from_numpy(images))],
    )
