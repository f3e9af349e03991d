"""Files that are either whole or absent: written beside their place, flushed to disk, then renamed."""

import csv
import errno
import io
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medtl.errors import OutputError

PathLike = str | os.PathLike[str]

# A cell that starts with one of these is a formula to a spreadsheet.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn any fault of the disk in the block into OutputError output-unwritable, about `path`."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> OutputError:
    """Return the error that says why `path` cannot be written."""
    # pydicom raises the disk's error once more, with a traceback as its message.
    cause = next((one for one in (error, error.__cause__) if getattr(one, "strerror", None)), None)
    reason = cause.strerror if isinstance(cause, OSError) else (str(error).splitlines() or ["failed"])[0]
    full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
    fix = "free the disk or choose another" if full or cause is None else "choose another place"
    return OutputError("output-unwritable", str(reason), where=path, fix=fix)


def make_folder(path: Path) -> Path:
    """Make a folder, and those above it, where it is absent. Raises OutputError output-unwritable."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def replacing(path: Path, *, mode: int = 0o644) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` when the block ends well.

    Raises OutputError output-unwritable, with `path` as it was before.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            flush(temporary)
            temporary.chmod(mode)
            temporary.replace(path)
            flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; Windows flushes no folders."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, rows: Iterable[Iterable[str | float]]) -> None:
    """Write rows, header first, atomically. A number that is NaN, undefined, is an empty cell."""
    write_lines(path, map(csv_line, rows))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines with their ends atomically, one by one, so that memory does not grow with them."""
    # A file name may hold bytes that are no text: they are written as escapes.
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        file.writelines(lines)


def safe_cell(text: str) -> str:
    """Quote text that a spreadsheet would run as a formula."""
    return "'" + text if text.startswith(FORMULA_STARTS) else text


def csv_line(cells: Iterable[str | float]) -> str:
    """Return a line of CSV with its end, in which a spreadsheet finds no formula."""
    line = io.StringIO()
    # csv quotes the characters of its own line end: with "\r\n" a lone "\r" in a cell, too.
    csv.writer(line, lineterminator="\r\n").writerow(map(_cell, cells))
    return line.getvalue().removesuffix("\r\n") + "\n"


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return safe_cell(value)
    return "" if math.isnan(value) else repr(value)


def write_json(path: Path, content: Any) -> None:
    """Write plain data as JSON atomically; NaN is refused, since it is no JSON."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def medtl_home() -> Path:
    """Return $MEDTL_HOME, or ~/.cache/medtl.

    prepared/, features/ and graphs/ can be deleted at any time: medtl makes them again. weights/ holds the
    user's files, and salt makes the ids of samples: with another salt the same samples have other ids.
    """
    return Path(os.environ.get("MEDTL_HOME") or Path.home() / ".cache" / "medtl")


def check_apart(out: Path, folder: Path) -> None:
    """Refuse to write into the folder that is read. Raises OutputError output-unwritable."""
    if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
        reason = "lies in the input folder, where later commands would read it as images"
        raise OutputError("output-unwritable", reason, where=out, fix="choose a folder elsewhere")
