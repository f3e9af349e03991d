"""The journal of a preparing: pixels, and a line for each sample that is done, so that it can go on.

The first line names what is being prepared. Whoever finds another one there starts anew.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from medtl.errors import ReadError
from medtl.imaging.preparing import Outcome, Pixels, prepare_one
from medtl.imaging.preprocessing import PreprocessingConfig
from medtl.imaging.quality import Oddity
from medtl.imaging.sample import Sample

PIXELS, JOURNAL, LOCK = "pixels.u16", "journal.jsonl", ".lock"


class Entry(NamedTuple):
    """A line of the journal: a sample, and the hash and oddity of its pixels, or neither: it was refused."""

    sample_id: str
    content_hash: str | None
    oddity: Oddity | None = None

    def line(self) -> bytes:
        """Return the entry as it is written."""
        return json.dumps([self.sample_id, self.content_hash, self.oddity]).encode() + b"\n"


def append(sample_id: str, outcome: Outcome, pixels: BinaryIO, journal: BinaryIO) -> Entry:
    """Write pixels, then their line: what the journal tells of is there."""
    entry = Entry(sample_id, None)
    if isinstance(outcome, Pixels):
        content = outcome.values.tobytes()
        pixels.write(content)
        pixels.flush()
        entry = Entry(sample_id, hash_pixels(content), outcome.oddity)
    journal.write(entry.line())
    journal.flush()
    return entry


def resume(
    staging: Path, samples: Sequence[Sample], config: PreprocessingConfig, key: str
) -> tuple[list[Entry], list[tuple[str, ReadError]]]:
    """Cut pixels and journal to what holds of them, and return that.

    An entry holds where its pixels have its hash, or where its sample is refused again. A machine that lost
    power may have kept a line and not its pixels, so the journal is not taken at its word.
    """
    entries: list[Entry] = []
    refusals: list[tuple[str, ReadError]] = []
    bytes_each = 2 * config.channels * math.prod(config.size)
    _tidy(staging)
    with (staging / PIXELS).open("ab+") as pixels:
        pixels.seek(0)
        for entry, sample in zip(_read_journal(staging / JOURNAL, key), samples, strict=False):
            if entry.sample_id != sample.sample_id:
                break
            if entry.content_hash is None:
                outcome = prepare_one(sample.series, config)
                if not isinstance(outcome, ReadError):
                    break
                refusals.append((sample.sample_id, outcome))
            elif entry.content_hash != hash_pixels(pixels.read(bytes_each)):
                break
            entries.append(entry)
        pixels.truncate(bytes_each * (len(entries) - len(refusals)))
    _cut_journal(staging / JOURNAL, key, entries)
    return entries, refusals


def _tidy(staging: Path) -> None:
    """Remove a header that no longer holds, and half-written ones."""
    for path in staging.iterdir():
        if path.name not in (PIXELS, JOURNAL, LOCK):
            path.unlink()


def _read_journal(path: Path, key: str) -> Iterator[Entry]:
    """Yield the entries up to the first line that is torn."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    if lines[:1] != [_first_line(key)]:
        return
    for line in lines[1:]:
        try:
            sample_id, content_hash, oddity = json.loads(line)
            entry = Entry(sample_id, content_hash, Oddity(*oddity) if oddity else None)
        except (ValueError, TypeError):
            return
        if entry.line() != line:
            return
        yield entry


def _cut_journal(path: Path, key: str, entries: Sequence[Entry]) -> None:
    """Cut a journal to entries that it holds, or begin it."""
    if not entries:
        path.write_bytes(_first_line(key))
        return
    with path.open("ab") as journal:
        journal.truncate(len(_first_line(key)) + sum(len(entry.line()) for entry in entries))


def _first_line(key: str) -> bytes:
    return json.dumps({"key": key}).encode() + b"\n"


def hash_pixels(content: bytes) -> str:
    """Return what pixels are known by."""
    return hashlib.sha256(content).hexdigest()[:24]
