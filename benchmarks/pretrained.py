"""Measure what pretrained weights are worth by backbone and schedule: prints a row for each training.

python -m benchmarks.pretrained [--data DIR] [--out DIR] [--only PART] [--threads N] [--device D]

DIR holds brain-mri-tumour/ (Bhuvaji et al.), chest-xray-pneumonia/ (PneumoniaMNIST of MedMNIST v2) and
hippocampus-mri/ (Medical Segmentation Decathlon Task04). The 2D parts train EfficientNet-Lite0, 1 and 2 from
ImageNet by linear probe, gradual and full; the volume part compares the slice encoder, inflated kernels and
MedicalNet's ResNet-10 from random weights. CPU seconds are those of all the run's processes: with one thread
they are valid on a machine with other work. Rows that --out already holds are printed, not run again.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.main_job import DEFAULT_DATA, RANDOM_SPLIT, SHOWN

PLANAR = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
SCHEDULES = ("linear-probe", "gradual", "full")
BRAIN = (*RANDOM_SPLIT, "schedule.views=1", "schedule.unfrozen_epochs=3")
CHEST = (
    "preprocessing.size=[64,64]",
    "schedule.views=1",
    "schedule.unfrozen_epochs=3",
    "schedule.batch_norm=follow",
    "fit.batch_size=32",
)
HIPPOCAMPUS = (
    "task.classes=[small,large]",
    "preprocessing.size=[18,96,64]",
    "preprocessing.spacing_mm=[2,0.55,0.55]",
    "augmentation.scale=0",
    "schedule.unfrozen_epochs=8",
    "schedule.views=2",
)
# What is not pretrained cannot be a frozen prefix: MedicalNet starts from random numbers here.
VOLUMES = (
    ("slices_efficientnet_lite0", ("backbone.weights=imagenet", "schedule=gradual")),
    ("inflated_efficientnet_lite0", ("backbone.weights=imagenet", "schedule=gradual")),
    ("inflated_centre_efficientnet_lite0", ("backbone.weights=imagenet", "schedule=gradual")),
    (
        "medicalnet_resnet10_os32",
        ("backbone.weights=null", "schedule=scratch", "schedule.head_learning_rate=1e-3"),
    ),
)


def row_of(
    name: str, out: Path, arguments: Sequence[str], overrides: Sequence[str], threads: int, device: str
) -> dict:
    """Return the row of one training, run in a fresh home unless `out` has it."""
    kept = out / f"{name}.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="home-", dir=out) as home:
        settings = [part for override in overrides for part in ("--set", override)]
        command = [sys.executable, "-m", "medtl", "train", *arguments, "--out", str(Path(home) / "run")]
        command += ["--device", device]
        environment = {**os.environ, "MEDTL_HOME": home, "OMP_NUM_THREADS": str(threads)}
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run([*command, "--json", *settings], env=environment, stdout=subprocess.PIPE)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 3):
        raise SystemExit(f"{name}: medtl train ended with {done.returncode}")
    seconds = {
        "wall": time.perf_counter() - started,
        "processor": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }
    row = {"name": name, **seconds, **json.loads(done.stdout)}
    kept.write_text(json.dumps(row), encoding="utf-8")
    return row


def print_row(row: dict) -> None:
    """Print one line of the table."""
    val = row["split"]["val"]
    shown = [f"{val[m]['value']:.3f} ({val[m]['low']:.3f} to {val[m]['high']:.3f})" for m in SHOWN]
    print(f"| {row['name']} | {' | '.join(shown)} | {row['processor']:.0f} | {row['wall']:.0f} |", flush=True)


def planar_rows(
    part: str, out: Path, arguments: Sequence[str], overrides: Sequence[str], threads: int, device: str
) -> None:
    """Run each backbone with each schedule."""
    for backbone in PLANAR:
        for schedule in SCHEDULES:
            chosen = (f"backbone.name={backbone}", f"schedule={schedule}", *overrides)
            print_row(row_of(f"{part} {backbone} {schedule}", out, arguments, chosen, threads, device))


def brain(data: Path, out: Path, threads: int, device: str) -> None:
    """2,870 MR slices of four classes at 160 px."""
    folder = str(data / "brain-mri-tumour")
    recipe = ["--modality", "mri", "--config", "configs/mri-slices.yaml", "--data", folder]
    planar_rows("brain", out, recipe, BRAIN, threads, device)


def chest(data: Path, out: Path, threads: int, device: str) -> None:
    """5,232 small radiographs of two classes, enlarged to 64 px."""
    archive = str(data / "chest-xray-pneumonia" / "pneumoniamnist.npz")
    planar_rows("chest", out, ["--modality", "xray", "--data", archive], CHEST, threads, device)


def hippocampus(data: Path, out: Path, threads: int, device: str) -> None:
    """130 volumes of two classes: three ways to three dimensions."""
    recipe = ["--modality", "mri", "--data", str(data / "hippocampus-mri")]
    for backbone, choices in VOLUMES:
        overrides = (f"backbone.name={backbone}", *HIPPOCAMPUS, *choices)
        print_row(row_of(f"hippocampus {backbone}", out, recipe, overrides, threads, device))


PARTS = (brain, hippocampus, chest)


def main() -> None:
    """Run the chosen parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=[part.__name__ for part in PARTS])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    chosen = parser.parse_args()
    if not chosen.data.is_dir():
        parser.error(f"{chosen.data} is not here: name the folder of real images with --data")
    out = chosen.out or Path(tempfile.mkdtemp(prefix="medtl-pretrained-"))
    out.mkdir(parents=True, exist_ok=True)
    print("| run | validation AUROC | balanced accuracy | processor seconds | wall seconds |")
    print("| --- | --- | --- | --- | --- |")
    for part in PARTS:
        if chosen.only in (None, part.__name__):
            part(chosen.data.resolve(), out, chosen.threads, chosen.device)


if __name__ == "__main__":
    main()
