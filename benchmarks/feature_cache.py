"""Measure a pass that fills the feature cache, with and without reading ahead of the network.

    python -m benchmarks.feature_cache [--images 300] [--views 4] [--repeats 3]

Wall time of whole passes over random images with EfficientNet-Lite0; run it on an idle machine.
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

from medtl.data.prepared import PreparedDataset
from medtl.data.task import Task
from medtl.imaging.augmentation import Augmentation, AugmentationConfig
from medtl.models.backbones import BACKBONES
from medtl.models.classifier import Classifier, lay_out
from medtl.training.feature_cache.cache import FeatureCache, Views

SIZE = (160, 160)


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
    report_passes(options.images, options.views, options.repeats)


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
    """Read as the pass goes: the network waits."""
    for job in jobs:
        yield views.read(job.rows, job.view)


def random_views(images: int) -> Views:
    """Return views of noise."""
    pixels = np.random.default_rng(0).integers(0, 65535, (images, 1, *SIZE), dtype=np.uint16)
    names = tuple(map(str, range(images)))
    dataset = PreparedDataset(Path(), pixels, names, names, ())
    augmentation = Augmentation(AugmentationConfig(flip=True), SIZE)
    return Views(dataset, np.arange(images), augmentation, 0, "benchmark")


if __name__ == "__main__":
    main()
