"""Prepare a labelled folder into a dataset that a user keeps, moves and trains from."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medtl.config import RunConfig
from medtl.core.progress import Watcher, note_all
from medtl.data.dataset_file import is_dataset, write_record
from medtl.data.manifest import LABELS_FILE, load_manifest
from medtl.data.prepared import all_refusals, content_key, prepare_samples, warning_notes
from medtl.data.task import Sample, Task
from medtl.errors import ConfigError, ReadError


@dataclass(frozen=True)
class PrepareOutcome:
    """What a preparing came to. counts: of each class; decoded: how many samples were not there before."""

    folder: Path
    task: Task
    samples: int
    patients: int
    counts: Mapping[str, int]
    shape: tuple[int, ...]
    decoded: int
    bytes: int
    refusals: tuple[ReadError, ...]


def prepare_run(
    data: Path, labels: Path | None, out: Path, config: RunConfig, watcher: Watcher
) -> PrepareOutcome:
    """Decode and resample a labelled folder into the dataset `out`, which train and evaluate take as --data.

    What an earlier call left there of the same files and settings is kept, whole or in part; what it left of
    others is replaced. Raises MedtlError in one of its kinds.
    """
    if is_dataset(data):
        reason = "is a prepared dataset already"
        raise ConfigError("dataset-recipe", reason, where=data, fix="name the folder that it was made from")
    labels = labels or _own_labels(data)
    manifest = load_manifest(data, labels, config.task)
    note_all(watcher, manifest.notes)
    decoded = 0

    def progress(done: int, total: int) -> None:
        nonlocal decoded
        decoded += 1
        watcher.progress("reading", done, total)

    prepared = prepare_samples(manifest.samples, config.preprocessing, folder=out, progress=progress)
    write_record(
        out,
        manifest,
        prepared.refusals,
        data=data,
        labels=labels,
        reading=config.task,
        preprocessing=config.preprocessing.model_dump(mode="json"),
        key=content_key(manifest.samples, config.preprocessing),
    )
    note_all(watcher, warning_notes(prepared))
    kept = [sample for sample in manifest.samples if sample.sample_id in set(prepared.sample_ids)]
    return PrepareOutcome(
        folder=out,
        task=manifest.task,
        samples=len(kept),
        patients=len({sample.patient_id for sample in kept}),
        counts=_count_classes(kept, manifest.task),
        shape=prepared.pixels.shape[1:],
        decoded=decoded,
        bytes=sum(path.stat().st_size for path in out.iterdir()),
        refusals=all_refusals(manifest, prepared),
    )


def _own_labels(data: Path) -> Path | None:
    return data / LABELS_FILE if (data / LABELS_FILE).is_file() else None


def _count_classes(samples: Sequence[Sample], task: Task) -> dict[str, int]:
    """Count the samples of each class; in multilabel those that have it."""
    counts: Counter[str] = Counter(dict.fromkeys(task.classes, 0))
    for sample in samples:
        if isinstance(sample.target, tuple):
            counts.update(name for name, value in zip(task.classes, sample.target, strict=True) if value)
        elif sample.target is not None:
            counts[task.classes[sample.target]] += 1
    return dict(counts)
