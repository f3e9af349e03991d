"""Measure how much near-duplicates across the split inflate metrics: ignored, and grouped in one part.

python -m benchmarks.near_duplicates [--data DIR] [--seeds N] [--out DIR] [--set key=value ...]

DIR holds brain-mri-tumour/ (Bhuvaji et al., 2,870 JPEG slices of 4 classes, no patient ids). Each seed makes
a new split and a new head, the same for both policies; every run is a process of its own with an empty medtl
home. Prints a row per run, then the drop of each metric with its 95% interval over the seeds (Student's t of
the differences; none for one seed). Two runs of 142 s per seed on two idle CPU cores.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.main_job import DEFAULT_DATA, SHOWN, train

POLICIES = ("ignore", "group")
SHORT = ("schedule.views=1", "schedule.unfrozen_epochs=4")


def train_both(folder: Path, out: Path, seed: int, overrides: Sequence[str]) -> list[dict[str, float]]:
    """Return, for each policy, the validation metrics by name."""
    recipe = ["--modality", "mri", "--config", "configs/mri-slices.yaml", "--data", str(folder)]
    found = []
    for policy in POLICIES:
        choice = (f"split.near_duplicates={policy}", f"split.seed={seed}", f"fit.seed={seed}")
        row = train(f"{policy}-{seed}", out, recipe, (*SHORT, *choice, *overrides))
        found.append({name: row["split"]["val"][name]["value"] for name in SHOWN})
    return found


def print_drop(name: str, pairs: Sequence[list[dict[str, float]]]) -> None:
    """Print the means of a metric under both policies, and the drop when near-duplicates are grouped."""
    ignored, grouped = np.array([[metrics[name] for metrics in pair] for pair in pairs]).T
    drops = ignored - grouped
    line = f"{name}: {ignored.mean():.4f} ignored, {grouped.mean():.4f} grouped, drop {drops.mean():.4f}"
    if len(drops) > 1:
        margin = stats.t.ppf(0.975, len(drops) - 1) * stats.sem(drops)
        line += f" (95% interval {drops.mean() - margin:.4f} to {drops.mean() + margin:.4f})"
    print(f"{line}, {len(drops)} seeds")


def main() -> None:
    """Run all seeds under both policies."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    chosen = parser.parse_args()
    folder = chosen.data / "brain-mri-tumour"
    if not folder.is_dir():
        parser.error(f"{folder} is not here: name the folder of real images with --data")
    if chosen.seeds < 1:
        parser.error("--seeds must be 1 or more")
    out = chosen.out or Path(tempfile.mkdtemp(prefix="medtl-near-duplicates-"))
    out.mkdir(parents=True, exist_ok=True)
    os.environ["MEDTL_SALT"] = "benchmark"  # each run has a home of its own; ids must agree among them
    print("| run | validation AUROC | balanced accuracy | wall | stages |\n| --- | --- | --- | --- | --- |")
    pairs = [train_both(folder.resolve(), out, seed, chosen.overrides) for seed in range(chosen.seeds)]
    for name in SHOWN:
        print_drop(name, pairs)


if __name__ == "__main__":
    main()
