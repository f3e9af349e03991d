"""Check the saliency methods on planted lesions, by method and backbone: prints the faithfulness tables.

python -m benchmarks.explanations [--backbones NAME ...] [--out DIR] [--images N]

Trains each backbone on the X-ray phantoms of sample_data (a quarter of the patients reserved for the test),
then audits every method that suits it on the test images in which the model found the lesion. An existing run
is reused.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from medtl.cli.explain import audit_table
from medtl.cli.terminal import TerminalWatcher
from medtl.config import load_config, sample_data
from medtl.data.manifest import load_manifest
from medtl.data.splits import read_splits
from medtl.data.task import TaskConfig
from medtl.explain import methods_for
from medtl.explain.audit import Case, audit, find_case
from medtl.inference.predictor import score_batch
from medtl.training.checkpoint import Checkpoint, load_finished
from medtl.workflows.train import train_run

BACKBONES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
OVERRIDES = ("split.val=0.2", "split.test=0.25")


def train(backbone: str, run: Path) -> Checkpoint:
    """Train a backbone on the phantoms, unless the run exists."""
    data = sample_data("xray")
    config = load_config("xray", None, (*OVERRIDES, f"backbone.name={backbone}"))
    with TerminalWatcher(f"training {backbone}") as watcher:
        train_run(data, None, run, config, watcher, resume=True)
    return load_finished(run)


def found_cases(checkpoint: Checkpoint, run: Path, count: int) -> list[Case]:
    """Return the test images in which the model found the lesion, with their masks."""
    data, split = sample_data("xray"), read_splits(run / "splits.csv")
    cases: list[Case] = []
    for sample in load_manifest(data, None, TaskConfig()).samples:
        if split[sample.sample_id].split != "test" or len(cases) == count:
            continue
        (scored,) = score_batch(checkpoint, [sample.series], data, keep_images=True)
        found = find_case(checkpoint, scored, data / "masks")
        cases += [replace(case, patient=sample.patient_id) for case in found]
    return cases


def report(backbone: str, out: Path, count: int) -> None:
    """Print one backbone's table, its summary, and the time of the audit."""
    run = out / backbone
    checkpoint = train(backbone, run)
    cases = found_cases(checkpoint, run, count)
    started = time.perf_counter()
    rows = audit(checkpoint.classifier, cases, methods_for(checkpoint.classifier))
    seconds = time.perf_counter() - started
    print(f"\n{backbone}: {len(cases)} images, audited in {seconds:.0f} s\n")
    print("\n".join([*audit_table(tuple(rows)), *(row.words for row in rows)]), flush=True)


def main() -> None:
    """Print the tables of the chosen backbones."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--images", type=int, default=20)
    chosen = parser.parse_args()
    out = chosen.out or Path(tempfile.mkdtemp(prefix="medtl-explanations-"))
    for backbone in chosen.backbones:
        report(backbone, out, chosen.images)


if __name__ == "__main__":
    main()
