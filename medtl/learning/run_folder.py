"""The run folder: where each file of a training run lies, and the lock that keeps a second process out."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medtl.errors import CheckpointError, TrainingError
from medtl.imaging.storage import make_folder, unwritable


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
        """The checkpoint that a resumed run goes on from."""
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
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise unwritable(path, error) from error

    def read(self, path: Path) -> str:
        """Return the text of one of the run's own files. Raises CheckpointError checkpoint-damaged."""
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = f"the run lacks its {path.name}"
            raise CheckpointError("checkpoint-damaged", reason, where=self.root, fix="restore it") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process. Raises TrainingError run-locked where another one holds it."""
        try:
            descriptor = os.open(make_folder(self.root) / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            raise unwritable(self.root, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            reason = "another process trains here"
            raise TrainingError(
                "run-locked", reason, where=self.root, fix="wait for it or choose another --out"
            ) from error
        finally:
            os.close(descriptor)
