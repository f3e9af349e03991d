"""Choose a stratified subset of a label table, with its split, and prepare its images as medtl does.

python -m benchmarks.peers.images DATA LABELS OUT.npz SIZE
"""

import csv
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def choose(data: Path, labels: Path, train: int, val: int, batch: int) -> tuple[int, int]:
    """Write a table of about that many training and validation images of a folder; return how many.

    The classes keep their proportions. The training count is a multiple of the batch, so that all peers take
    as many steps whatever they do about a smaller last batch. A smaller choice is part of a larger one.
    """
    rows = _rows_by_class(data / "labels.csv")
    train = max(1, train // batch) * batch
    counts = {name: len(found) for name, found in rows.items()}
    quotas = zip(counts, _shares(counts, train), _shares(counts, val), strict=True)
    generator = np.random.default_rng(0)
    with labels.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for name, for_train, for_val in quotas:
            found = [rows[name][index] for index in generator.permutation(counts[name])]
            if for_train + for_val > len(found):
                raise SystemExit(f"class {name} has {len(found)} images, not {for_train + for_val}")
            parts = {"train": found[:for_train], "val": found[len(found) - for_val :]}
            writer.writerows((path, name, part) for part, paths in parts.items() for path in paths)
    return train, val


def _rows_by_class(table: Path) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = defaultdict(list)
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows[row["label"]].append(row["path"])
    return dict(sorted(rows.items()))


def _shares(counts: dict[str, int], total: int) -> Sequence[int]:
    """Share a total among the classes in proportion, largest remainders first."""
    exact = np.array(list(counts.values())) * total / sum(counts.values())
    shares = exact.astype(int)
    shares[np.argsort(shares - exact, kind="stable")[: total - shares.sum()]] += 1
    return shares.tolist()


def prepare(data: Path, labels: Path, out: Path, size: int) -> None:
    """Decode and prepare the images of a table, and write them as arrays."""
    from medtl.data.manifest import load_manifest, targets
    from medtl.data.prepared import prepare_samples
    from medtl.data.task import TaskConfig
    from medtl.imaging.preprocessing import PreprocessingConfig

    manifest = load_manifest(data, labels, TaskConfig())
    prepared = prepare_samples(manifest.samples, PreprocessingConfig(size=(size, size)))
    arrays = {"classes": np.array(manifest.task.classes)}
    for part in ("train", "val"):
        chosen = [sample for sample in manifest.samples if sample.split == part]
        arrays[part] = prepared.read(prepared.rows_of(chosen)).numpy()
        arrays[f"{part}_targets"] = targets(manifest.task, chosen)
    np.savez(out, allow_pickle=False, **arrays)


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
