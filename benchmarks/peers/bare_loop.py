"""Measure a step of medtl's full fine-tuning beside the barest loop, in one process, in alternating blocks.

python -m benchmarks.peers.bare_loop JOB. medtl trains by train_run, the function behind `medtl train`, and
clips gradients, as it does by default. Each time it has taken `block` steps and reports so to its Watcher,
the bare loop takes as many: forward, cross-entropy, backward, AdamW, on a network of its own and on the same
images, cut into batches beforehand. So both run under the same load, minute by minute. The first pair is a
warm-up; the time between epochs (validation, checkpoints) counts for neither.
"""

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.common import Images, load_images, make_classifier
from benchmarks.peers.job import Job, job_of_command_line, write_result
from benchmarks.peers.medtl_front_door import overrides

BLOCK = 5


class BareLoop:
    """Forward, loss, backward and step over batches in memory, round and round."""

    def __init__(self, job: Job, images: Images) -> None:
        self.network = make_classifier(job, images).train()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 1e-4, weight_decay=job.weight_decay)
        self.batches = batches_of(images, job.batch, job.device)
        self.at = 0

    def run(self, steps: int) -> float:
        """Take steps; return their seconds."""
        settle()
        started = time.perf_counter()
        for _ in range(steps):
            x, targets = self.batches[self.at % len(self.batches)]
            loss = nn.functional.cross_entropy(self.network(x), targets)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.at += 1
        settle()
        return time.perf_counter() - started


def settle() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def batches_of(images: Images, batch: int, device: str) -> list[tuple[Tensor, Tensor]]:
    """Return the training images in whole batches on the device, channels last."""
    pixels = images.train.to(device, memory_format=torch.channels_last)
    return list(zip(pixels.split(batch), images.train_targets.to(device).split(batch), strict=True))


class TakingTurns:
    """A Watcher that times `block` steps of medtl, then lets the bare loop take the same number.

    pairs: seconds of a block of medtl and of the bare loop. `begun` is where medtl's block began.
    """

    def __init__(self, bare: BareLoop, stage: str, block: int) -> None:
        self.bare, self.label, self.block = bare, f"{stage} epoch", block
        self.pairs: list[tuple[float, float]] = []
        self.begun = 0.0

    def note(self, label: str, text: str) -> None:
        """Show nothing."""

    def stage(self, number: int, of: int, stage: Any, plan: Any) -> None:
        """Show nothing."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Show nothing."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Time from the first step of an epoch on, block after block."""
        if not what.startswith(self.label):
            return
        if (done - 1) % self.block == 0:
            settle()
        now = time.perf_counter()
        if done > 1 and (done - 1) % self.block == 0:
            self.pairs.append((now - self.begun, self.bare.run(self.block)))
        if done == 1 or (done - 1) % self.block == 0:
            self.begun = time.perf_counter()


def main() -> None:
    """Take turns for the job of the command line, and leave result.json."""
    job, folder = job_of_command_line()
    write_result(folder, **measure(job, folder, load_images(Path(job.images)), BLOCK))


def measure(job: Job, folder: Path, images: Images, block: int) -> dict[str, Any]:
    """Return the seconds a step of both, and the ratio of each pair."""
    from medtl.config import load_config
    from medtl.training.run_folder import RunFolder
    from medtl.workflows.train import TrainJob, train_run

    clipped = [value for value in overrides(job) if not value.startswith("fit.gradient_clip")]
    config = load_config("mri", Path("configs/mri-slices.yaml"), clipped)
    bare = BareLoop(job, images)
    bare.run(1)
    turns = TakingTurns(bare, job.phases[0].name, block)
    train_run(TrainJob(RunFolder(folder / "run"), config, turns), Path(job.data), Path(job.labels))
    pairs = turns.pairs[1:]
    if not pairs:
        raise SystemExit(f"an epoch is too short for blocks of {block} steps, or medtl told of none")
    return {
        "medtl_step": statistics.median(ours for ours, _ in pairs) / block,
        "bare_step": statistics.median(theirs for _, theirs in pairs) / block,
        "ratios": [ours / theirs for ours, theirs in pairs],
    }


if __name__ == "__main__":
    main()
