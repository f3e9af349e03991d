"""The run folder: where each file of a training run lies, and the lock that keeps a second process out."""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medtl.core.files import writing
from medtl.core.staging import try_lock
from medtl.errors import CheckpointError, TrainingError

# Packages whose versions a run records.
VERSIONED = ("torch", "monai", "timm", "pydicom", "nibabel", "numpy")


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run's files below its root."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved recipe."""
        return self.root / "config.yaml"

    @property
    def best(self) -> Path:
        """The checkpoint of the best validation epoch."""
        return self.root / "checkpoints" / "best"

    @property
    def last(self) -> Path:
        """The checkpoint from which a run is resumed."""
        return self.root / "checkpoints" / "last"

    @property
    def history(self) -> Path:
        """One row an epoch."""
        return self.root / "history.csv"

    @property
    def metrics(self) -> Path:
        """Validation metrics with intervals, stages, seconds and versions."""
        return self.root / "metrics.json"

    @property
    def splits(self) -> Path:
        """Which sample is in which part."""
        return self.root / "splits.csv"

    @property
    def pixels(self) -> Path:
        """Which prepared image, by the hash of its pixels, is in which part."""
        return self.root / "pixels.json"

    def log(self, event: str, **facts: Any) -> None:
        """Append one event to log.jsonl."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, **facts})
        path = self.root / "log.jsonl"
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def read(self, path: Path) -> str:
        """Return the text of one of the run's own files. Raises CheckpointError checkpoint-damaged."""
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = f"the run lacks its {path.name}"
            raise CheckpointError("checkpoint-damaged", reason, where=self.root, fix="restore it") from error

    def read_json(self, path: Path) -> dict[str, Any]:
        """Return one of the run's JSON files. Raises CheckpointError checkpoint-damaged."""
        try:
            content = json.loads(self.read(path))
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise self._damaged(path)
        return content

    def read_history(self) -> list[dict[str, Any]]:
        """Return the rows of history.csv. Raises CheckpointError checkpoint-damaged."""
        rows = list(csv.DictReader(self.read(self.history).splitlines()))
        try:
            for row in rows:
                int(row["step"]), float(row["seconds"]), float(row["train_loss"]), float(row["val_loss"])
                float(row["val_auroc"] or 0)
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(self.history) from error
        return [dict(row) for row in rows]

    def _damaged(self, path: Path) -> CheckpointError:
        return CheckpointError(
            "checkpoint-damaged", f"the run's {path.name} is damaged", where=self.root, fix="restore it"
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process. Raises TrainingError run-locked where another one holds it."""
        with writing(self.root):  # or a file system without locks
            lock = try_lock(self.root / ".lock")
        if lock is None:
            fix = "wait for it or choose another --out"
            raise TrainingError("run-locked", "another process trains here", where=self.root, fix=fix)
        with lock:
            yield
