"""Measure images per second of each backbone on one CPU core: the speeds that the catalogue shows.

python -m benchmarks.backbones [NAME ...] [--batch N] [--rounds N] [--write]
python -m benchmarks.backbones --table

Each backbone is untrained, in fp32 and channels last, on one thread: 2D ones at their own input size, volumes
at 32 x 112 x 112, one at a time. Slice encoders are left out: they cost their 2D network once per slice.
Forward: evaluation mode, no gradient. Train: forward, backward and an optimizer step through everything, with
a head of two classes. The first round is not counted; the numbers are medians of CPU seconds, which are valid
on a machine with other work. --write saves them in medtl/models/backbones/speeds.json after each backbone;
one that is already there is not measured again. All of them take an hour: name some. --table measures
nothing, and writes medtl/models/backbones/catalogue.json from the code.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from medtl.core.files import write_json
from medtl.data.task import Task
from medtl.models.backbone import BackboneEntry
from medtl.models.backbones import BACKBONES
from medtl.models.catalogue import CATALOGUE, SPEEDS
from medtl.models.classifier import Classifier, lay_out, place_images

TASK = Task("binary", ("normal", "abnormal"))
VOLUME = (32, 112, 112)


def images_per_second(step: Callable[[], object], batch: int, rounds: int) -> float:
    """Return images per CPU second: the batch size over the median time of a step."""
    step()
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    return float(f"{batch / statistics.median(seconds):.3g}")


def measure(entry: BackboneEntry, batch: int, rounds: int) -> dict:
    """Return the row of a backbone: images per second in the forward pass alone, and in training."""
    torch.manual_seed(0)
    size = entry.input_size if entry.spatial_dims == 2 else VOLUME
    batch = batch if entry.spatial_dims == 2 else 1
    classifier = lay_out(Classifier(entry(), TASK))
    x = place_images(torch.rand(batch, 1, *size), classifier)

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
    # Batch norm cannot follow a single image down to one value a channel.
    classifier.freeze(0, batch_norm_follows_data=batch > 1)
    classifier.train()
    return {"input": list(size), "forward": forwards, "train": images_per_second(train, batch, rounds)}


def machine() -> str:
    """Describe the machine that the numbers are from."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"one core of {names[0] if names else platform.processor()}, torch {torch.__version__}"


def main() -> None:
    """Measure the chosen backbones."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="backbones; all but slice encoders by default"
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="keep the numbers for the catalogue")
    parser.add_argument("--table", action="store_true", help="write the catalogue from the code")
    options = parser.parse_args()
    if options.table:
        write_json(CATALOGUE, [entry.describe() for entry in BACKBONES.values()])
        return
    unknown = [name for name in options.names if name not in BACKBONES]
    if unknown:
        parser.error(f"no backbone {unknown[0]}: see medtl backbones")
    torch.set_num_threads(1)
    kept = json.loads(SPEEDS.read_text(encoding="utf-8")) if SPEEDS.is_file() else {"backbones": {}}
    print(f"{machine()}, median of {options.rounds}\n")
    print("| backbone | input | forward, images/s | train, images/s |\n| --- | --- | --- | --- |")
    for name in options.names or [name for name in BACKBONES if not name.startswith("slices_")]:
        row = (options.write and kept["backbones"].get(name)) or measure(
            BACKBONES[name], options.batch, options.rounds
        )
        size = " x ".join(map(str, row["input"]))
        print(f"| `{name}` | {size} | {row['forward']} | {row['train']} |", flush=True)
        if options.write:
            kept = {"machine": machine(), "backbones": {**kept["backbones"], name: row}}
            write_json(SPEEDS, kept)


if __name__ == "__main__":
    main()
