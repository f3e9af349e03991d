"""Compare scoring speed with the alternatives and with its own limits: prints tables.

python -m benchmarks.scoring [--rounds N] [--memory] [--cases CASE ...] [--precision fp32|bf16]

Radiographs of 2048 x 2048 pixels and 12 bits, uncompressed and in JPEG 2000, go through EfficientNet-Lite0 at
160 pixels, MR series of 22 and 176 slices through the slice encoder of configs/mri-volume.yaml; weights are
random, which costs the same. Everything is imported before the clock starts; loading the network is in a
column of its own; files are in the page cache. All take turns for N rounds, and the fastest round counts:
other work only ever slows one down. All may use all cores.

medtl         `medtl score`, the whole command: scan with all checks, SHA-256, journal and scores.csv
medtl onnx    the same with `--engine onnx`; its graph was written before, which is done once per model
plain         pydicom, rescale, stack by position, MONAI's transforms, network, one by one
monai         MONAI's LoadImage and the same transforms in a DataLoader with a worker per core, batches of 16
reading       a limit: medtl's reading and transforms alone, a process per core
forward       a limit: the bare forward pass alone on batches in memory, the fastest of several batch sizes

The limits are PyTorch's. Reading and forward share the cores, so the speed within reach is
1 / (1/reading + 1/forward), shown as `both`.
CPU is that of all processes, including decoders: on a busy machine, trust it more than the clock.
--memory scores 100 and 10,000 small radiographs and prints the peak of the process and of its largest child.
"""

import argparse
import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ingest import mr_slice, plain_planes, radiograph, save

CASES = {"xray uncompressed": 64, "xray jpeg2000": 24, "mr 22 slices": 64, "mr 176 slices": 24}
CONTENDERS = ("medtl", "medtl onnx", "plain", "monai", "reading", "forward")
NETWORKS = {
    "xray": ("efficientnet_lite0", (160, 160), ("DX",)),
    "mr": ("slices_efficientnet_lite0", (16, 96, 96), ("MR",)),
    "small": ("efficientnet_lite0", (32, 32), ("DX",)),
}
FORWARD_BATCHES = (1, 4, 16)
MEMORY_STUDIES = (100, 10_000)
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)


def make_data(folder: Path, cases: list[str]) -> None:
    """Write the studies of each case, one file or folder each."""
    from pydicom.uid import JPEG2000Lossless
    from scipy.ndimage import gaussian_filter, zoom

    rng = np.random.default_rng(0)
    field = gaussian_filter(rng.random((512, 512)), 8)
    field = (field - field.min()) / np.ptp(field)
    large = zoom(field, 4, order=1) * 3500
    for case, number in [(name, number) for name in cases for number in range(CASES[name])]:
        if case.startswith("xray"):
            noisy = large + rng.normal(0, 8, large.shape) + number
            dataset = radiograph(np.clip(noisy, 0, 4095).astype("uint16"), number)
            if "jpeg2000" in case:
                dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
            save(dataset, folder / case / f"{number}.dcm")
            continue
        slices = int(case.split()[1])
        for place in range(slices):
            noisy = field[:256, :256] * 900 + rng.normal(0, 10, (256, 256))
            dataset = mr_slice(np.clip(noisy, 0, 4095).astype("uint16"), number, place, None)
            dataset.InstanceNumber = place + 1  # MONAI leaves out slices without
            save(dataset, folder / case / str(number) / f"{place * 7 % slices:03d}.dcm")


def make_small(folder: Path) -> None:
    """Write small radiographs, in folders of 100 and of all."""
    rng = np.random.default_rng(0)
    for count in MEMORY_STUDIES:
        for number in range(count):
            pixels = rng.integers(0, 4096, (48, 48), dtype=np.uint16)
            save(radiograph(pixels, number), folder / f"small {count}" / f"{number % 100}" / f"{number}.dcm")


def make_run(folder: Path, kind: str) -> Path:
    """Write a finished run with random weights, where there is none."""
    import torch

    from medtl.data.task import Task
    from medtl.imaging.augmentation import AugmentationConfig
    from medtl.imaging.preprocessing import PreprocessingConfig
    from medtl.models.backbones import BACKBONES
    from medtl.models.classifier import Classifier
    from medtl.training.checkpoint import (
        CheckpointHeader,
        describe_classifier,
        model_tensors,
        save_checkpoint,
    )

    run = folder / "runs" / kind
    if run.exists():
        return run
    torch.manual_seed(0)
    name, size, modalities = NETWORKS[kind]
    classifier = Classifier(BACKBONES[name](weights=None, in_channels=1), Task("binary", ("no", "yes")))
    header = CheckpointHeader(
        **describe_classifier(classifier, 0.2),
        preprocessing=PreprocessingConfig(size=size, modalities=modalities),
        augmentation=AugmentationConfig(),
        schedule=(),
        thresholds=(0.5,),
    )
    save_checkpoint(run / "checkpoints" / "best", header, {"model": model_tensors(classifier)})
    return run


def time_medtl(run: Path, folder: Path, out: Path, precision: str, engine: str) -> float:
    """Score a folder as the command does."""
    import medtl

    started = time.perf_counter()
    outcome = medtl.score_folder(run, folder, out, precision=precision, engine=engine)  # type: ignore[arg-type]
    seconds = time.perf_counter() - started
    assert outcome.refused == 0 and outcome.scored > 0
    return seconds


def plain_transforms(size: tuple[int, ...], load: bool) -> Any:
    """Return MONAI's transforms that do what medtl's preprocessing does, after loading where asked for."""
    from monai.transforms import Compose, LoadImage, Resize, ScaleIntensityRangePercentiles

    reading = [LoadImage(reader="PydicomReader", image_only=True, ensure_channel_first=True)] if load else []
    scale = ScaleIntensityRangePercentiles(0.5, 99.5, 0.0, 1.0, clip=True)
    return Compose([*reading, Resize(size, mode="area"), scale])


def read_plainly(unit: Path) -> np.ndarray:
    """Return (1, [D,] H, W) of a file, or of the slices of a folder."""
    planes = plain_planes(unit)
    return planes if len(planes) == 1 else planes[None]


def time_plain(run: Path, folder: Path) -> float:
    """Read, transform and score one study after the other."""
    import torch

    from medtl.training.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(run)
    transform = plain_transforms(checkpoint.preprocessing.size, load=False)
    started = time.perf_counter()
    with torch.inference_mode():
        for unit in sorted(folder.iterdir()):
            pixels = torch.as_tensor(transform(read_plainly(unit)))
            checkpoint.classifier(pixels[None]).softmax(dim=1).tolist()
    return time.perf_counter() - started


def time_monai(run: Path, folder: Path) -> float:
    """Judge batches of a DataLoader over LoadImage."""
    import torch
    from monai.data import DataLoader, Dataset

    from medtl.training.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(run)
    size = checkpoint.preprocessing.size
    if len(size) == 3:  # MONAI's order of axes is that of the file: columns, rows, slices
        size = size[::-1]
    units = [str(unit) for unit in sorted(folder.iterdir())]
    dataset = Dataset(units, plain_transforms(size, load=True))
    started = time.perf_counter()
    with torch.inference_mode():
        for batch in DataLoader(dataset, batch_size=16, num_workers=os.cpu_count() or 1):
            images = torch.as_tensor(batch)
            images = images.permute(0, 1, *range(images.ndim - 1, 1, -1))
            checkpoint.classifier(images.contiguous()).softmax(dim=1).tolist()
    return time.perf_counter() - started


def _prepare_one(task: tuple[Any, Any]) -> float:
    from medtl.imaging.preprocessing import prepare_image
    from medtl.imaging.reader import read_series

    series, config = task
    return float(prepare_image(read_series(series), config).pixels.sum())


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def time_reading(run: Path, folder: Path) -> float:
    """Scan, read and prepare in a process a core; nothing is scored."""
    from medtl.imaging.reader import scan
    from medtl.training.checkpoint import read_header

    config = read_header(run / "checkpoints" / "best").preprocessing
    with ProcessPoolExecutor(os.cpu_count(), initializer=_one_thread) as pool:
        first = scan(next(iter(sorted(folder.iterdir())))).series[0]
        list(pool.map(_prepare_one, [(first, config)] * 4))  # imports, decoders
        started = time.perf_counter()
        found = scan(folder).series
        sums = list(pool.map(_prepare_one, [(series, config) for series in found]))
        assert len(sums) == len(found)
        return time.perf_counter() - started


def time_forward(run: Path, folder: Path, precision: str) -> float:
    """Judge as many images in memory, in the batch size that is fastest."""
    import torch

    from medtl.models.classifier import Placement
    from medtl.training.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(run)
    place, count = Placement(checkpoint.classifier), len(list(folder.iterdir()))
    found = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for size in FORWARD_BATCHES:
            images = torch.rand(size, 1, *checkpoint.preprocessing.size)
            rounds = max(2, 32 // size)
            checkpoint.classifier(place(images))
            started = time.perf_counter()
            for _ in range(rounds):
                checkpoint.classifier(place(images))
            found.append((time.perf_counter() - started) / rounds / size)
    return min(found) * count


def measure(contender: str, folder: Path, case: str, precision: str) -> dict[str, float]:
    """Measure one case: seconds, CPU seconds, seconds of loading the network, peaks in MiB.

    Where the network is loaded within, that is taken off.
    """
    from medtl import score_folder  # noqa: F401  loaded before the clocks start
    from medtl.training.checkpoint import load_checkpoint

    run, studies = make_run(folder, case.split()[0]), folder / case
    checkpoint = load_checkpoint(run)
    if contender == "medtl onnx":
        from medtl.inference.onnx_graph import keep_graph

        keep_graph(checkpoint)
    started, cpu_started = time.perf_counter(), time.process_time()
    load_checkpoint(run)
    loading, loading_cpu = time.perf_counter() - started, time.process_time() - cpu_started
    before = cpu_seconds()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        if contender.startswith("medtl"):
            precision, engine = ("fp32", "onnx") if contender == "medtl onnx" else (precision, "torch")
            seconds = time_medtl(run, studies, Path(out), precision, engine) - loading
        elif contender == "forward":
            seconds = time_forward(run, studies, precision)
        else:
            timers = {"plain": time_plain, "monai": time_monai, "reading": time_reading}
            seconds = timers[contender](run, studies)
    cpu = cpu_seconds() - before - (0 if contender == "reading" else loading_cpu)
    peaks = [
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    return {"seconds": seconds, "cpu": cpu, "loading": loading, "self_mib": peaks[0], "child_mib": peaks[1]}


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of all below it, which have ended by then."""
    from contextlib import suppress

    from medtl.imaging.dicom import decoders as decoding

    if decoding._pool is not None:
        decoding._pool.close()
    with suppress(ChildProcessError):
        while os.waitpid(-1, 0):
            pass
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def print_speed(folder: Path, cases: list[str], rounds: int, precision: str) -> None:
    """Measure the contenders in turn; print studies per minute, and shares of the limits, case by case."""
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)  # decoders whose process has ended are counted here
    print(f"| {precision} | contender | studies a minute | of plain | CPU ms a study | loading, s |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for case in cases:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
        for _, contender in product(range(rounds), CONTENDERS):
            found[contender].append(measure(contender, folder, case, precision))
        print_case(
            case,
            {
                name: {key: min(row[key] for row in rows) for key in ("seconds", "cpu", "loading")}
                for name, rows in found.items()
            },
        )


def print_case(case: str, best: dict[str, dict[str, float]]) -> None:
    """Print the rows of a case."""
    speed = {name: 60 * CASES[case] / best[name]["seconds"] for name in CONTENDERS}
    for name in CONTENDERS:
        cpu = "" if name == "forward" else f"{1000 * best[name]['cpu'] / CASES[case]:.0f}"
        ratio, loading = speed[name] / speed["plain"], best[name]["loading"]
        print(f"| {case} | {name} | {speed[name]:,.0f} | {ratio:.2f} | {cpu} | {loading:.2f} |")
    both = 1 / (1 / speed["reading"] + 1 / speed["forward"])
    slower = min("reading", "forward", key=lambda name: speed[name])
    shares = f"{speed['medtl'] / both:.0%} of both, {speed['medtl'] / speed[slower]:.0%} of {slower} alone"
    print(f"| {case} | both | {both:,.0f} | {both / speed['plain']:.2f} | medtl: {shares} | |", flush=True)


def print_memory(folder: Path) -> None:
    """Score few and many small studies, and print peaks."""
    print("| studies | seconds | peak MiB, largest child |")
    print("| --- | --- | --- |")
    for count in MEMORY_STUDIES:
        case = f"small {count}"
        command = [sys.executable, "-m", "benchmarks.scoring", "--child", str(folder), "--cases", case]
        row = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        print(f"| {count:,} | {row['seconds']:.1f} | {row['self_mib']:.1f}, {row['child_mib']:.1f} |")


def main() -> None:
    """Make the data, measure in turn, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", metavar="CASE", default=list(CASES))
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--memory", action="store_true", help="Memory instead of speed.")
    parser.add_argument("--child", type=Path, metavar="FOLDER")
    parser.add_argument("--make", type=Path, metavar="FOLDER")
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(measure("medtl", chosen.child, chosen.cases[0], chosen.precision)))
    elif chosen.make:
        make_small(chosen.make) if chosen.memory else make_data(chosen.make, chosen.cases)
    else:
        measure_all(chosen.cases, chosen.rounds, chosen.precision, memory=chosen.memory)


def measure_all(cases: list[str], rounds: int, precision: str, *, memory: bool) -> None:
    """Make data in a child process: a process's peak memory includes that of its parent."""
    with tempfile.TemporaryDirectory(prefix="medtl-scoring-") as name:
        what = ["--memory"] if memory else ["--cases", *cases]
        subprocess.run([sys.executable, "-m", "benchmarks.scoring", "--make", name, *what], check=True)
        print_memory(Path(name)) if memory else print_speed(Path(name), cases, rounds, precision)


if __name__ == "__main__":
    main()
