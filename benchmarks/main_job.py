"""Run the main job on real images, beside a plain recipe and training from scratch: prints README's table.

python -m benchmarks.main_job [--data DIR] [--only PART] [--out DIR]

DIR holds brain-mri-tumour/ (Bhuvaji et al., 2,870 JPEG slices of 4 classes), chest-xray-pneumonia/
(PneumoniaMNIST of MedMNIST v2) and hippocampus-mri/ (Medical Segmentation Decathlon Task04, and masks/).
Each run is a process of its own with an empty medtl home, so that reading, preparing and caching count.
Run it on an idle machine.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medtl.data.manifest import load_manifest
from medtl.data.splits import read_splits
from medtl.data.task import Sample, TaskConfig
from medtl.imaging.reader import read_images
from medtl.workflows.demo import localise_run

DEFAULT_DATA = Path(__file__).parents[1] / ".." / "shared" / "data"
CHEST = ("preprocessing.size=[96,96]", "schedule.unfrozen_epochs=6", "schedule.views=2", "fit.batch_size=32")
HIPPOCAMPUS = (
    "task.classes=[small,large]",
    "preprocessing.size=[18,96,64]",
    "preprocessing.spacing_mm=[2,0.55,0.55]",
    "augmentation.scale=0",
)
# The random split that others would make; benchmarks.near_duplicates measures how much it flatters.
RANDOM_SPLIT = ("split.near_duplicates=ignore",)
# Three epochs of everything cost about the wall time of the whole transfer.
SCRATCH = ("schedule=scratch", "schedule.unfrozen_epochs=3", "schedule.head_learning_rate=3e-3")


def train(name: str, out: Path, arguments: Sequence[str], overrides: Sequence[str] = ()) -> dict:
    """Run `medtl train` in a fresh home; print and return its row."""
    home = tempfile.mkdtemp(prefix="home-", dir=out)
    settings = [part for override in overrides for part in ("--set", override)]
    command = [
        sys.executable,
        "-m",
        "medtl",
        "train",
        *arguments,
        "--out",
        str(out / name),
        "--json",
        *settings,
    ]
    started = time.perf_counter()
    done = subprocess.run(command, env={**os.environ, "MEDTL_HOME": home}, stdout=subprocess.PIPE, check=True)
    row = {"wall": time.perf_counter() - started, **json.loads(done.stdout)}
    print_row(name, row)
    return row


def print_row(name: str, row: dict) -> None:
    """Print one line of the table."""
    val = row["split"]["val"]
    shown = [f"{val[m]['value']:.3f} ({val[m]['low']:.3f} to {val[m]['high']:.3f})" for m in SHOWN]
    stages = ", ".join(f"{s['name']} {row['seconds'][s['name']]:.0f} s" for s in row["stages"])
    print(f"| {name} | {' | '.join(shown)} | {row['wall']:.0f} s | {stages} |", flush=True)


SHOWN = ("auroc", "balanced_accuracy")


def brain(data: Path, out: Path) -> None:
    """Transfer against the plain recipe and against scratch."""
    folder = data / "brain-mri-tumour"
    recipe = ["--modality", "mri", "--config", "configs/mri-slices.yaml", "--data", str(folder)]
    train("brain-transfer", out, recipe, RANDOM_SPLIT)
    started = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.plain_recipe", str(folder), str(out / "brain-transfer")]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    plain = json.loads(done.stdout)
    wall = time.perf_counter() - started
    print(
        f"| brain-plain-recipe | {plain['auroc']:.3f} | | {wall:.0f} s | head {plain['head_seconds']:.0f} s |"
    )
    train("brain-scratch", out, recipe, (*RANDOM_SPLIT, *SCRATCH))


def uncached(data: Path, out: Path) -> None:
    """The same transfer with the frozen prefix recomputed in every epoch: what the cache saves."""
    folder = data / "brain-mri-tumour"
    recipe = ["--modality", "mri", "--config", "configs/mri-slices.yaml", "--data", str(folder)]
    train("brain-transfer-uncached", out, recipe, (*RANDOM_SPLIT, "fit.cache_gb=0"))


def chest(data: Path, out: Path) -> None:
    """PneumoniaMNIST with its own split."""
    archive = data / "chest-xray-pneumonia" / "pneumoniamnist.npz"
    train("chest-transfer", out, ["--modality", "xray", "--data", str(archive)], CHEST)


def hippocampus(data: Path, out: Path) -> None:
    """Volumes by the slice encoder, and whether its maps fall on the masks."""
    folder = data / "hippocampus-mri"
    train("hippocampus-slices", out, ["--modality", "mri", "--data", str(folder)], HIPPOCAMPUS)
    split = read_splits(out / "hippocampus-slices" / "splits.csv")
    samples = load_manifest(folder, None, TaskConfig()).samples
    held_out = [sample for sample in samples if split[sample.sample_id].split == "val"]
    found = localise_run(out / "hippocampus-slices", held_out, lambda sample: read_mask(folder, sample))
    gains = np.array([row.gain for row in found])
    resampled = np.random.default_rng(0).choice(gains, (2000, len(gains)))
    low, high = np.percentile(np.median(resampled, axis=1), (2.5, 97.5))
    energy, chance = np.mean([row.energy for row in found]), np.mean([row.chance for row in found])
    print(
        f"Grad-CAM energy on the masks: {energy:.3f} of the map on {chance:.3f} of the volume; median gain "
        f"{np.median(gains):.2f} ({low:.2f} to {high:.2f}), {len(gains)} validation volumes with a map"
    )


def read_mask(folder: Path, sample: Sample) -> np.ndarray:
    """Return the mask of a hippocampus volume, which has the volume's name."""
    return read_images(folder / "masks" / sample.series.path.name)[0].pixels[0]


PARTS = (brain, chest, hippocampus, uncached)


def main() -> None:
    """Run the chosen parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=[part.__name__ for part in PARTS])
    chosen = parser.parse_args()
    if not chosen.data.is_dir():
        parser.error(f"{chosen.data} is not here: name the folder of real images with --data")
    out = chosen.out or Path(tempfile.mkdtemp(prefix="medtl-bench-"))
    out.mkdir(parents=True, exist_ok=True)
    os.environ["MEDTL_SALT"] = "benchmark"  # each run has a home of its own; ids must agree among them
    print("| run | validation AUROC | balanced accuracy | wall | stages |\n| --- | --- | --- | --- | --- |")
    for part in PARTS:
        if chosen.only in (None, part.__name__):
            part(chosen.data.resolve(), out)


if __name__ == "__main__":
    main()
