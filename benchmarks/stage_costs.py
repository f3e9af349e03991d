"""Measure what each stage of scoring costs per study, in CPU seconds: prints a table for docs/scaling.md.

python -m benchmarks.stage_costs [--rounds N]

The studies and networks are those of benchmarks.scoring, with files in the page cache. Stages run one by one,
on one thread; the fastest of N rounds counts, since other work only ever slows one down. decode is what
reading an image costs beyond reading its bytes and hashing them, including the decoder processes.
"""

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.scoring import make_data, make_run
from medtl.core.journal import JournalEntry, open_journal
from medtl.imaging.preprocessing import prepare_image
from medtl.imaging.reader import read_series, scan
from medtl.inference.ensemble import make_ensemble
from medtl.inference.predictor import Prediction, predict_features
from medtl.inference.streaming import list_units
from medtl.training.checkpoint import load_checkpoint

CASES = ("xray uncompressed", "xray jpeg2000", "mr 22 slices")


def main() -> None:
    """Print a row per case: milliseconds of each stage per study, and megabytes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder), list(CASES))
        for case in CASES:
            costs = measure(Path(folder), case, rounds)
            print(f"{case}: " + ", ".join(f"{name} {value:.2f}" for name, value in costs.items()), flush=True)


def measure(folder: Path, case: str, rounds: int) -> dict[str, float]:
    """Return the cost of a study: ms of each stage, and MB on disk and in the journal."""
    ensemble = make_ensemble([load_checkpoint(make_run(folder, case.split()[0]))])
    checkpoint, studies = ensemble.members[0], folder / case
    found = scan(studies).series
    images = [read_series(series) for series in found]
    prepared = [prepare_image(image, checkpoint.preprocessing) for image in images]
    size = ensemble.batch_size
    batch = torch.stack([torch.from_numpy(one.pixels) for one in prepared[:size]])
    journal_ms, journal_mb = journal_costs(folder / f"out {case}", studies, rounds)

    def per_study(run: Callable[[], object], count: int) -> float:
        return 1000 * min(spent(run) for _ in range(rounds)) / count

    files = [path for series in found for path in series.files]
    hashing = per_study(lambda: [hashlib.sha256(path.read_bytes()) for path in files], len(found))
    reading = per_study(lambda: [read_series(one) for one in found], len(found))
    return {
        "scan": per_study(lambda: scan(studies), len(found)),
        "bytes and SHA-256": hashing,
        "decode": reading - hashing,
        "prepare": per_study(
            lambda: [prepare_image(image, checkpoint.preprocessing) for image in images], len(images)
        ),
        "forward": per_study(lambda: predict_features(checkpoint, batch), len(batch)),
        "journal": journal_ms,
        "MB": sum(path.stat().st_size for path in files) / 1e6 / len(found),
        "journal MB": journal_mb,
    }


def journal_costs(out: Path, studies: Path, rounds: int, rows: int = 2000) -> tuple[float, float]:
    """Return milliseconds and megabytes of a row."""
    unit = next(list_units(scan(studies), studies))
    row = Prediction("s0123456789", unit.source, "scored", "", "", "", "yes", (0.25, 0.75), "yes", "ok")
    with open_journal(out) as journal:
        journal.open_for({"model": "benchmark"})

        def write() -> None:
            for number in range(rows):
                journal.record(f"{unit.source} {number}", JournalEntry(unit.stamp, "0" * 64, row))
            journal.commit()

        seconds = min(spent(write) for _ in range(rounds))
        size = sum(path.stat().st_size for path in out.iterdir())
    return 1000 * seconds / rows, size / 1e6 / rows


def spent(run: Callable[[], object]) -> float:
    """Return the CPU seconds of a run, including its decoders."""
    before = cpu_seconds()
    run()
    return cpu_seconds() - before


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and its children, ended or not."""
    ticks = 0
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return time.process_time() + sum(os.times()[2:4]) + ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
