"""Measure what transfer is worth in labels, from training from scratch to full fine-tuning.

python -m benchmarks.ladder [--data DIR] [--task brain|chest] [--budgets 50 all] [--seeds 0 1 2] [--out DIR]

Trains each schedule at each label budget with each seed, on one split, and compares all runs. Existing runs
are not trained again. DIR as for benchmarks.main_job. All runs share one medtl home, so that images are
prepared once and frozen prefixes are computed once. The full benchmark takes hours on two cores.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.main_job import CHEST, DEFAULT_DATA

# Each rung trains equally long, on one view: the rungs differ only in what they unfreeze.
SHARED = ("schedule.views=1", "schedule.head_epochs=6", "schedule.unfrozen_epochs=6")
SCHEDULES = {
    "scratch": ("schedule=scratch", "schedule.head_learning_rate=3e-3"),
    "linear-probe": ("schedule=linear-probe",),
    "gradual": ("schedule=gradual",),
    "full": ("schedule=full",),
}
TASKS = {
    "brain": ("brain-mri-tumour", ("--modality", "mri", "--config", "configs/mri-slices.yaml"), ()),
    "chest": ("chest-xray-pneumonia/pneumoniamnist.npz", ("--modality", "xray"), CHEST),
}


def train_rung(
    data: Path, run: Path, recipe: Sequence[str], overrides: Sequence[str], budget: str, seed: int
) -> Path:
    """Train one run with `medtl train`, unless it exists, and return it."""
    if (run / "metrics.json").is_file():
        return run
    settings = [part for override in overrides for part in ("--set", override)]
    labels = [] if budget == "all" else ["--label-budget", budget]
    command = ["train", "--data", str(data), "--out", str(run), *recipe, *settings, *labels]
    medtl([*command, "--seed", str(seed), "--resume"])
    return run


def climb(
    task: str, data: Path, out: Path, budgets: Sequence[str], seeds: Sequence[int], more: Sequence[str] = ()
) -> Path:
    """Train all rungs and compare them; return the folder of the comparison."""
    name, recipe, overrides = TASKS[task]
    runs = [
        train_rung(
            data / name,
            out / f"{schedule}-{budget}-{seed}",
            recipe,
            (*overrides, *SHARED, *own, *more),
            budget,
            seed,
        )
        for schedule, own in SCHEDULES.items()
        for budget in budgets
        for seed in seeds
    ]
    medtl(["compare", *map(str, runs), "--out", str(out / "comparison")])
    return out / "comparison"


def medtl(arguments: Sequence[str]) -> None:
    """Run a command in a process of its own, its output shown."""
    subprocess.run([sys.executable, "-m", "medtl", *arguments], check=True)


def main() -> None:
    """Climb the ladder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--task", choices=list(TASKS), default="brain")
    parser.add_argument("--budgets", nargs="+", default=["50", "200", "800", "all"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", dest="more", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    if not chosen.data.is_dir():
        parser.error(f"{chosen.data} is not here: name the folder of real images with --data")
    out = chosen.out or Path(tempfile.mkdtemp(prefix="medtl-ladder-"))
    os.environ.setdefault("MEDTL_HOME", str(out / "home"))
    page = climb(chosen.task, chosen.data.resolve(), out, chosen.budgets, chosen.seeds, chosen.more)
    print(f"{page / 'comparison.html'}, {page / 'comparison.csv'}")


if __name__ == "__main__":
    main()
