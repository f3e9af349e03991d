"""Compare the scoring engines: images per CPU second of PyTorch, folded or not, and of ONNX Runtime.

python -m benchmarks.engines [--seconds S] [BACKBONE:SIZE ...]

They take turns, with one thread and the batch size of a scoring process; weights are random, which costs the
same. Prints medians over rounds of half a CPU second, which other work does not distort; the one-time cost of
folding, of writing the graph (once per checkpoint) and of opening it; its memory; and the largest difference
between logits.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from medtl.data.task import Task
from medtl.imaging.augmentation import AugmentationConfig
from medtl.imaging.preprocessing import PreprocessingConfig
from medtl.inference.ensemble import make_ensemble
from medtl.inference.export import example_images
from medtl.inference.onnx_graph import keep_graph
from medtl.inference.predictor import predict_features
from medtl.models.backbones import BACKBONES
from medtl.models.classifier import Classifier
from medtl.training.checkpoint import Checkpoint, CheckpointHeader, TensorFile, describe_classifier

CASES = (
    "efficientnet_lite0:160x160",
    "resnet50:224x224",
    "slices_efficientnet_lite0:16x96x96",
    "medicalnet_resnet10:16x96x96",
)


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=CASES)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for case in arguments.cases:
        name, _, size = case.partition(":")
        checkpoint = make_checkpoint(name, tuple(map(int, size.split("x"))))
        with tempfile.TemporaryDirectory() as home:
            print(f"{case}: {measure(checkpoint, arguments.seconds, Path(home))}", flush=True)


def make_checkpoint(name: str, size: tuple[int, ...]) -> Checkpoint:
    """Return a checkpoint with random weights."""
    torch.manual_seed(0)
    classifier = Classifier(
        BACKBONES[name](weights=None, in_channels=1), Task("binary", ("no", "yes"))
    ).eval()
    header = CheckpointHeader(
        **describe_classifier(classifier, 0.2),
        preprocessing=PreprocessingConfig(size=size),
        augmentation=AugmentationConfig(),
        schedule=(),
        tensors={"model": TensorFile(file="model", sha256=name)},
    )
    return Checkpoint(classifier, header, Path(name))


def measure(checkpoint: Checkpoint, seconds: float, home: Path) -> str:
    """Return the measurements as text."""
    os.environ["MEDTL_HOME"] = str(home)
    ensemble, folding = timed(lambda: make_ensemble([checkpoint]))
    folded = ensemble.members[0]
    (graph, apart), writing = timed(lambda: keep_graph(folded))
    before = resident_mib()
    again = replace(graph, name=graph.name.replace(".onnx", "-again.onnx"))
    graph.path.rename(again.path)
    batch = ensemble.batch_size
    images = example_images(folded, batch)
    _, opening = timed(lambda: again.run(images))
    held = resident_mib() - before
    placed = torch.from_numpy(images)
    runs = {
        "PyTorch": lambda: predict_features(checkpoint, placed),
        "folded": lambda: predict_features(folded, placed),
        "ONNX Runtime": lambda: predict_features(folded, placed, again),
    }
    speeds = ", ".join(f"{name} {speed:.1f}" for name, speed in in_turns(runs, batch, seconds).items())
    costs = f"folding {folding:.2f} s, writing {writing:.1f} s, opening {opening:.2f} s and {held:.0f} MiB"
    return f"{speeds} images/s in batches of {batch}; {costs}; apart by {apart:.1e}"


def timed(run: Callable) -> tuple:
    """Return a result and the CPU seconds it took."""
    started = time.process_time()
    return run(), time.process_time() - started


def resident_mib() -> float:
    """Return the memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def in_turns(runs: dict[str, Callable[[], object]], batch: int, seconds: float) -> dict[str, float]:
    """Return the median images per second of each, measured in alternating rounds."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not all(found.values()):
        for name, run in runs.items():
            begun, count = time.process_time(), 0
            while time.process_time() - begun < 0.5:
                run()
                count += batch
            found[name].append(count / (time.process_time() - begun))
    return {name: statistics.median(speeds) for name, speeds in found.items()}


if __name__ == "__main__":
    main()
