"""Run a checkpoint's network in ONNX Runtime: prepared images -> logits and pooled features.

checkpoint -> graph in $MEDTL_HOME/graphs, written once -> compared with the classifier in each command
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

from medtl.core import __version__
from medtl.core.files import medtl_home, replacing
from medtl.errors import CheckpointError
from medtl.inference.export import INPUT, LOGITS, TOLERANCE, import_onnx, largest_difference, translate
from medtl.models.classifier import Classifier
from medtl.models.weights import sha256_of
from medtl.training.checkpoint import Checkpoint

FEATURES = "features"


class Pooled(nn.Module):
    """Prepared images (N, C, *size) -> logits (N, K) and pooled features (N, F), of slices their mean."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.classifier.run(image, 0, self.classifier.head_step)
        return self.classifier.head(pooled), pooled if pooled.ndim == 2 else pooled.mean(dim=2)


@dataclass(frozen=True)
class Graph:
    """A graph in medtl's home. name: keys of the checkpoint and of the content. runtime: ONNX's version."""

    name: str
    runtime: str

    @property
    def path(self) -> Path:
        """Its file."""
        return medtl_home() / "graphs" / self.name

    def run(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return logits (N, K) and features (N, F) of prepared images (N, C, *size)."""
        session = _session(self.path, os.getpid())
        logits, features = session.run([LOGITS, FEATURES], {INPUT: np.ascontiguousarray(images)})
        return logits, features


def keep_graph(checkpoint: Checkpoint) -> tuple[Graph, float]:
    """Return the graph of a checkpoint and its largest difference; it is written if absent or altered.

    Raises CheckpointError extra-missing, export-unsupported, export-differs; OutputError.
    """
    runtime = import_onnx("--engine onnx").__version__
    made_from = {
        "model": checkpoint.sha256,
        "backbone": checkpoint.header.backbone,
        "image": [checkpoint.preprocessing.channels, *checkpoint.preprocessing.size],
        "medtl": __version__,
        "torch": torch.__version__,
    }
    key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]
    network = Pooled(checkpoint.classifier)
    files = sorted((medtl_home() / "graphs").glob(f"{key}-*.onnx"))
    whole = [path.name for path in files if path.stem.endswith(sha256_of(path)[:16])]
    if not whole:
        content = translate(network, checkpoint, [LOGITS, FEATURES]).model_proto.SerializeToString()
        whole = [f"{key}-{hashlib.sha256(content).hexdigest()[:16]}.onnx"]
        with replacing(medtl_home() / "graphs" / whole[0]) as temporary:
            temporary.write_bytes(content)
    graph = Graph(whole[0], runtime)
    difference = largest_difference(
        checkpoint,
        graph.run,
        lambda images: [output.numpy() for output in network(torch.from_numpy(images))],
    )
    if not difference <= TOLERANCE:
        reason, fix = f"ONNX Runtime's logits differ by {difference:.2g}", "score with --engine torch"
        raise CheckpointError("export-differs", reason, where=checkpoint.folder, fix=fix)
    return graph, difference


@cache
def _session(path: Path, process: int) -> Any:
    """Open a graph for one process, with one thread: processes run side by side, and inherit no threads."""
    onnxruntime = import_onnx("--engine onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
