"""How fast an exported model is: images a second of ONNX Runtime and of PyTorch, in turns.

python -m benchmarks.export RUN [--batch N] [--seconds S] [--threads N]

Both take the same prepared images on the processor, with as many threads. Prints the medians of rounds of
half a processor second, which other work does not count into, and how far the logits are apart.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from medtl.learning.contract import contract
from medtl.learning.portable import example_images, write_onnx
from medtl.runs.common import load_finished


def main() -> None:
    """Print one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    checkpoint = load_finished(arguments.run)
    images = example_images(checkpoint, arguments.batch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        write_onnx(path, checkpoint, contract(checkpoint))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = arguments.threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    classifier = checkpoint.classifier.to(memory_format=torch.channels_last)
    placed = torch.from_numpy(images).to(memory_format=torch.channels_last)

    def by_onnx() -> np.ndarray:
        return np.asarray(session.run(["logits"], {"image": images})[0])

    @torch.inference_mode()
    def by_torch() -> np.ndarray:
        return classifier(placed).numpy()

    apart = float(np.abs(by_onnx() - by_torch()).max())
    speeds = in_turns({"ONNX Runtime": by_onnx, "PyTorch": by_torch}, arguments.batch, arguments.seconds)
    size = " x ".join(map(str, images.shape))
    found = ", ".join(f"{name} {speed:.1f} images/s" for name, speed in speeds.items())
    print(f"{checkpoint.header.backbone}, {size}, {arguments.threads} threads: {found}")
    print(f"logits differ by {apart:.1e}")


def in_turns(runs: dict[str, Callable[[], object]], batch: int, seconds: float) -> dict[str, float]:
    """Return the median images a second of each, measured in rounds that take turns."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, run in runs.items():
            begun, count = time.process_time(), 0
            while time.process_time() - begun < 0.5:
                run()
                count += batch
            found[name].append(count / (time.process_time() - begun))
    return {name: statistics.median(speeds) for name, speeds in found.items()}


if __name__ == "__main__":
    main()
