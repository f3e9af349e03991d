"""Measure what the feature cache planner assumes, and what a pass costs: prints tables.

    python -m benchmarks.feature_cache [--images 300] [--views 4] [--repeats 3]

1. Nominal speeds of one core: CPU seconds of each chain step of several networks, fitted by its
   multiply-adds and the bytes that its operations write; plan.py holds the rounded values.
   CPU time of one thread hardly depends on other work; the rest is wall time and needs an idle machine.
2. The disk: activations written and flushed, and read in random batches.
3. A pass over random images with EfficientNet-Lite0, with and without reading ahead of the network.
4. What each random transform of a view costs.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls

from medtl.data.prepared import PreparedDataset
from medtl.data.task import Task
from medtl.imaging.augmentation import Augmentation, AugmentationConfig
from medtl.models.backbones import BACKBONES
from medtl.models.classifier import Classifier, Placement, lay_out
from medtl.models.costs import step_costs
from medtl.training.feature_cache.cache import FeatureCache, Views

SIZE = (160, 160)
NETWORKS = ("efficientnet_lite0", "resnet18", "densenet121", "convnext_atto")
BATCH = 16


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f} when started")
    report_speeds(options.repeats)
    report_disk(options.repeats)
    report_passes(options.images, options.views, options.repeats)
    report_augmentation()


def median_seconds(
    work: Callable[[], object], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the median time of `work`."""
    taken = []
    for _ in range(repeats):
        started = clock()
        work()
        taken.append(clock() - started)
    return statistics.median(taken)


def make_classifier(name: str, weights: str | None = None) -> Classifier:
    """Return a classifier in evaluation mode, laid out as for training."""
    return lay_out(Classifier(BACKBONES[name](weights), Task("binary", ("normal", "lesion")))).eval()


def report_speeds(repeats: int) -> None:
    """Fit multiply-adds and bytes a second on the steps of all networks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = [row for name in NETWORKS for row in measure_steps(name, repeats)]
    counts = np.array([row[:2] for row in rows], dtype=float)
    seconds = np.array([row[2] for row in rows])
    torch.set_num_threads(threads)
    (per_product, per_byte), _ = nnls(counts, seconds)
    off = np.exp(np.abs(np.log(counts @ [per_product, per_byte] / seconds)))
    print(f"\nspeeds, fitted on {len(rows)} steps of {len(NETWORKS)} networks")
    print(f"  multiply-adds a second   {1 / per_product if per_product else float('inf'):.1e}")
    print(f"  bytes written a second   {1 / per_byte if per_byte else float('inf'):.1e}")
    print(f"  off by a factor of       {np.median(off):.1f} (median), {off.max():.1f} (largest)")


@torch.inference_mode()
def measure_steps(name: str, repeats: int) -> list[tuple[int, int, float]]:
    """Return multiply-adds, bytes and seconds of one image for each layer group."""
    classifier = make_classifier(name)
    costs = step_costs(classifier, (1, 1, *SIZE))
    x = Placement(classifier)(torch.rand(BATCH, 1, *SIZE))
    rows = []
    for step in range(classifier.pool_step):
        seconds = median_seconds(
            lambda x=x, step=step: classifier.run(x, step, step + 1), repeats, time.process_time
        )
        rows.append((costs[step].multiply_adds, costs[step].traffic_bytes, seconds / BATCH))
        x = classifier.run(x, step, step + 1)
    return rows


def report_disk(repeats: int, rows: int = 2000, row: int = 25_600) -> None:
    """Time writing activations as a pass does, and reading them as an epoch does."""
    values, order = np.random.default_rng(0).random((rows, row), np.float32), np.arange(rows)
    with tempfile.NamedTemporaryFile() as file:

        def write() -> None:
            file.seek(0)
            file.write(values.data)
            file.flush()
            os.fsync(file.fileno())

        written = median_seconds(write, repeats)
        stored = np.memmap(file.name, np.float32, "r", shape=values.shape)
        np.random.default_rng(1).shuffle(order)
        batches = np.array_split(order, rows // 32)
        read = median_seconds(lambda: [stored[batch].copy() for batch in batches], repeats)
    for name, seconds in (("written and flushed", written), ("read in random batches", read)):
        print(f"  {name:<24} {values.nbytes / seconds:.1e} bytes a second")


def report_passes(images: int, views: int, repeats: int) -> None:
    """Time whole passes, alternately."""
    classifier = make_classifier("efficientnet_lite0", "imagenet")
    source = random_views(images)
    taken: dict[str, list[float]] = {"reading ahead": [], "reading in between": []}
    for _ in range(repeats):
        for name, seconds in taken.items():
            with tempfile.TemporaryDirectory() as root:
                cache = FeatureCache(classifier, nullcontext, precision="cpu 32-true", root=Path(root))
                if name == "reading in between":
                    cache._read_ahead = read_in_between  # type: ignore[method-assign]
                started = time.perf_counter()
                stores = cache.ensure(source, {classifier.head_step: views, 5: views})
                seconds.append(time.perf_counter() - started)
                opening = median_seconds(lambda c=cache: c.ensure(source, {5: views}), 1)
                size = sum(view.activations.nbytes for view in stores[5].views)
    print(f"\n{views} views of {images} images, EfficientNet-Lite0 at {SIZE[0]} px, stores at two steps")
    for name, seconds in taken.items():
        shown = ", ".join(f"{each:.1f}" for each in seconds)
        print(f"  {name:<20} {statistics.median(seconds):6.1f} s (median of {shown})")
    print(f"  opening and checking {opening:6.2f} s for {size / 1e6:.0f} MB, weights hashed")


def read_in_between(views: Views, jobs: Sequence) -> Iterator[torch.Tensor]:
    """Read between batches: the network waits."""
    for job in jobs:
        yield views.read(job.rows, job.view)


def random_views(images: int) -> Views:
    """Return views of noise."""
    pixels = np.random.default_rng(0).integers(0, 65535, (images, 1, *SIZE), dtype=np.uint16)
    names = tuple(map(str, range(images)))
    dataset = PreparedDataset(Path(), pixels, names, names, ())
    augmentation = Augmentation(AugmentationConfig(flip=True), SIZE)
    return Views(dataset, np.arange(images), augmentation, 0, "benchmark")


def report_augmentation(repeats: int = 50) -> None:
    """Time a random view, transform by transform."""
    for size in (SIZE, (16, 96, 96)):
        augmentation, image = Augmentation(AugmentationConfig(flip=True), size), torch.rand(1, *size)
        whole = median_seconds(lambda a=augmentation, x=image: a(x, 0, 1), repeats)
        print(f"\na random view of {'x'.join(map(str, size))}: {1e3 * whole:.1f} ms")
        for transform in augmentation._transform.transforms:
            alone = median_seconds(lambda t=transform, x=image: t(x), repeats)
            print(f"  {type(transform).__name__:<20} {1e3 * alone:5.2f} ms")


if __name__ == "__main__":
    main()
