"""Measure how many trials per minute a search of the head reaches, with and without the feature cache.

OMP_NUM_THREADS=1 python -m benchmarks.tune [--data FILE.npz|FOLDER] [--samples N] [--size PX] [--trials N]

Prints a table. Without --data it uses PneumoniaMNIST (MedMNIST v2) from ../shared/data, thinned to N samples,
or the chest phantoms if that is missing. Both rows search the head's learning rate, weight decay and class
balance of a linear probe: the same trials in the same order, 10 epochs each. The uncached row has five
trials, so that none of them is pruned. The first trial of a row, which reads, prepares and (cached) computes
the prefix, is reported separately.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from medtl.config import sample_data
from medtl.workflows.tune import TuneOutcome, tune

PNEUMONIA = Path(__file__).parents[1] / ".." / "shared/data/chest-xray-pneumonia/pneumoniamnist.npz"
SPACE = """\
schedule.head_learning_rate: {low: 3e-4, high: 3e-2, log: true}
schedule.weight_decay: {low: 1e-4, high: 1e-1, log: true}
fit.imbalance: [none, class-weighted, balanced-sampler]
"""
RECIPE = (
    "schedule=linear-probe",
    "schedule.views=1",
    "schedule.patience=null",
    "fit.device=cpu",
    "fit.batch_size=32",
)
UNPRUNED = 5


class Quiet:
    """A watcher that prints a dot per trial on stderr."""

    def note(self, label: str, text: str) -> None:
        if label.startswith("trial"):
            print(".", end="", file=sys.stderr, flush=True)

    def stage(self, number: int, of: int, stage: Any, plan: Any) -> None:
        pass

    def progress(self, what: str, done: int, total: int) -> None:
        pass

    def epoch(self, row: Mapping[str, Any]) -> None:
        pass


def thin(archive: Path, samples: int, out: Path) -> Path:
    """Write every k-th sample of each part of a MedMNIST archive."""
    with np.load(archive) as parts:
        arrays = {name: parts[name] for name in parts.files if name.split("_")[0] in ("train", "val")}
    total = len(arrays["train_images"]) + len(arrays["val_images"])
    step = max(1, round(total / samples))
    np.savez(out, **{name: array[::step] for name, array in arrays.items()})
    return out


def search(data: Path, size: int, trials: int, cache_gb: float, out: Path) -> TuneOutcome:
    """Search with a medtl home of its own."""
    os.environ["MEDTL_HOME"] = str(out / "home")
    (out / "space.yaml").write_text(SPACE)
    recipe = (*RECIPE, f"preprocessing.size=[{size},{size}]", f"fit.cache_gb={cache_gb}")
    space = out / "space.yaml"
    return tune(
        "xray",
        data=data,
        out=out / "study",
        overrides=recipe,
        trials=trials,
        space=space,
        watcher=Quiet(),
    )


def print_row(name: str, outcome: TuneOutcome) -> float:
    """Print one line of the table; return the median seconds of the trials after the first."""
    first, *others = (row.seconds for row in outcome.rows)
    typical = median(others)
    scores = [row.score.value for row in outcome.rows[:UNPRUNED] if row.score]
    shown = ", ".join(f"{score:.4f}" for score in scores)
    print(
        f"| {name} | {len(outcome.rows)} | {first:.1f} s | {typical:.2f} s | {60 / typical:.1f} | {shown} |",
        flush=True,
    )
    return typical


def main() -> None:
    """Run both rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--trials", type=int, default=12)
    chosen = parser.parse_args()
    os.environ["MEDTL_SALT"] = "benchmark"
    with tempfile.TemporaryDirectory(prefix="medtl-tune-") as folder:
        root = Path(folder)
        data = chosen.data
        if data is None and PNEUMONIA.is_file():
            data = thin(PNEUMONIA, chosen.samples, root / "thinned.npz")
        data = data or sample_data("xray")
        print("| head-level search | trials | first trial | a trial (median) | a minute | validation AUROC |")
        print("| --- | --- | --- | --- | --- | --- |")
        seconds = []
        for name, cache_gb, trials in (("cached", 8.0, chosen.trials), ("fit.cache_gb=0", 0.0, UNPRUNED)):
            (root / name).mkdir()
            found = search(data, chosen.size, trials, cache_gb, root / name)
            seconds.append(print_row(name, found))
        print(f"with the cache {seconds[1] / seconds[0]:.1f} times as many trials a minute")


if __name__ == "__main__":
    main()
