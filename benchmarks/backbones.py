"""How many images a second each backbone takes on this machine's processor: prints a table.

python -m benchmarks.backbones [NAME ...] [--batch N] [--threads N] [--rounds N]

Each backbone is untrained, at its own input size, in fp32 and channels last. Forward: evaluation mode, no
gradient. Train: forward, backward and an optimizer step through everything, with a head of two classes. The
first round is not counted; the numbers are medians. All of them take a long time: name some.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from medtl.imaging.manifest import Task
from medtl.learning.backbones import BACKBONES
from medtl.learning.classifier import Classifier
from medtl.learning.features import lay_out, place_images

TASK = Task("binary", ("normal", "abnormal"))


def images_per_second(step: Callable[[], object], batch: int, rounds: int) -> float:
    """Return images a second: the batch over the median time of a step."""
    step()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return batch / statistics.median(seconds)


def measure(name: str, batch: int, rounds: int) -> tuple[float, float]:
    """Return images a second of a backbone: forward alone, and in training."""
    torch.manual_seed(0)
    entry = BACKBONES[name]
    classifier = lay_out(Classifier(entry(), TASK))
    x = place_images(torch.rand(batch, 1, *entry.input_size), classifier)

    def forward() -> Tensor:
        with torch.inference_mode():
            return classifier(x)

    optimizer = torch.optim.AdamW(classifier.parameters())
    targets = torch.arange(batch) % len(TASK.classes)

    def train() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(classifier(x), targets).backward()
        optimizer.step()

    classifier.eval()
    forwards = images_per_second(forward, batch, rounds)
    classifier.train()
    return forwards, images_per_second(train, batch, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="backbones; all 2D ones by default")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BACKBONES]
    if unknown:
        parser.error(f"no backbone {unknown[0]}: see medtl backbones")
    torch.set_num_threads(options.threads)
    names = options.names or [name for name, entry in BACKBONES.items() if entry.spatial_dims == 2]
    print(f"batch {options.batch}, {options.threads} thread(s), median of {options.rounds}\n")
    print("| backbone | input | forward, images/s | train, images/s |\n| --- | --- | --- | --- |")
    for name in names:
        forward, train = measure(name, options.batch, options.rounds)
        size = " x ".join(map(str, BACKBONES[name].input_size))
        print(f"| `{name}` | {size} | {forward:.1f} | {train:.1f} |", flush=True)


if __name__ == "__main__":
    main()
