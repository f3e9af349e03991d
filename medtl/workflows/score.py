"""Score a folder of studies: series -> rows in a journal -> tables; a stopped job resumes."""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NoReturn

from medtl.core.files import PathLike, read_json
from medtl.core.journal import open_journal
from medtl.core.progress import SILENT, Watcher, never
from medtl.errors import ReadError
from medtl.imaging.containers import status_of
from medtl.imaging.reader import scan
from medtl.imaging.series import Scan
from medtl.inference.ensemble import Ensemble, make_ensemble
from medtl.inference.predictor import Precision, Prediction
from medtl.inference.streaming import Engine, ScoreOutcome, Scoring, choose_engine, list_units
from medtl.inference.tables import check_formats
from medtl.training.checkpoint import load_finished

# How often a watched folder checks whether to stop.
STOP_SECONDS = 0.2


def score_folder(
    run: PathLike,
    folder: PathLike,
    out: PathLike,
    *,
    others: Sequence[PathLike] = (),
    tta: bool = False,
    precision: Precision = "fp32",
    engine: Engine = "torch",
    formats: Sequence[str] = ("csv",),
    overwrite: bool = False,
    workers: int | None = None,
    cluster: Literal["ray"] | None = None,
    any_modality: bool = False,
    watch: bool = False,
    settle: float = 5.0,
    watcher: Watcher = SILENT,
    stop: Callable[[], bool] = never,
    on_row: Callable[[Prediction], object] | None = None,
) -> ScoreOutcome:
    """Score every series and image of a folder into tables in `out`: one row each, refusals included.

    Rows are stored in a journal as they come: called again, it scores only what is new or has changed, unless
    `overwrite` is set. others: runs to ensemble with. on_row: called with each row, in order, after the
    tables are written. watch: keep scoring what arrives in the folder, each study once none of its files has
    changed for `settle` seconds, until `stop` returns True; the tables are replaced after each arrival.

    Raises StoppedError after the current batch when `stop` returns True; TrainingError run-locked if another
    process scores into `out`; MedtlError.

    >>> import medtl
    >>> images = medtl.sample_data("unlabelled") / "xray"
    >>> medtl.score_folder("runs/xray", images, "scores").table.name
    'scores.csv'
    """
    folder, out = Path(folder).absolute() if cluster else Path(folder), Path(out)
    check_formats(formats)
    checkpoints = [load_finished(Path(one), any_modality=any_modality) for one in (run, *others)]
    ensemble = choose_engine(make_ensemble(checkpoints, flips=tta), engine, precision, watcher)
    if watch and not folder.is_dir():
        raise ReadError("file-missing", "is no folder to watch", where=folder, fix="check the path")
    found = None if watch else scan(folder, reading=ensemble.reading, watcher=watcher)
    with open_journal(out) as journal:  # held until on_row has seen all: no other process changes it before
        _note_other_rows(out, ensemble, folder, watcher)
        scoring = Scoring(ensemble, folder, journal, formats, workers, cluster, watcher, stop)
        scoring.show_rows(overwrite=overwrite)
        if found is None:
            _watch(scoring, settle)
        return scoring.write(found, scoring.score(found), on_row)


def _note_other_rows(out: Path, ensemble: Ensemble, folder: Path, watcher: Watcher) -> None:
    """Note that tables of another model or folder in `out` are replaced."""
    try:
        before = read_json(out / "scores.json")
        models, place = before["models"], before["folder"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    changed = {
        "model": models != [member.sha256 for member in ensemble.members],
        "folder": place != str(folder.resolve()),
    }
    others = " and ".join(f"another {name}" for name, differs in changed.items() if differs)
    if others:
        watcher.note("note", f"the tables in {out} are of {others}: they will be replaced")


def _watch(scoring: Scoring, settle: float) -> NoReturn:
    """Score what is in the folder and what arrives there. Raises StoppedError."""
    seen = ""
    written: tuple[Any, ...] = ()
    while True:
        listing = _listing(scoring.folder)
        if listing != seen:
            found, complete = _at_rest(scoring, settle)
            seen, signature = listing if complete else "", _signature(found, scoring.folder)
            if signature != written and (found.series or found.refusals):
                kept = scoring.score(found, first=not written)
                outcome = scoring.write(found, kept)
                counts = f"{outcome.scored} scored, {outcome.refused} refused"
                fresh = f"{len(found.series) - kept} of them new"
                scoring.watcher.note("rows", f"{counts}, {fresh}: {outcome.table}")
                written = signature
        until = time.monotonic() + settle
        while not (stopping := scoring.stop()) and (left := until - time.monotonic()) > 0:
            time.sleep(min(STOP_SECONDS, left))
        if stopping:
            raise scoring.stopped()


def _at_rest(scoring: Scoring, settle: float) -> tuple[Scan, bool]:
    """Return what of a folder no longer changes, which may be nothing yet, and whether that is all of it."""
    try:
        found = scan(scoring.folder, reading=scoring.ensemble.reading)
    except ReadError as error:
        if error.code != "folder-empty":
            raise
        return Scan((), ()), True
    series = tuple(one for one in found.series if _rests(one.files, settle))
    refusals = tuple(one for one in found.refusals if _rests([Path(one.where)], settle))
    whole = len(series) == len(found.series) and len(refusals) == len(found.refusals)
    return Scan(series, refusals, found.left_out), whole


def _rests(paths: Iterable[Path], settle: float) -> bool:
    """Return whether paths exist and were left alone: copying may set a file's time, not its inode's."""
    try:
        return time.time() - max(status_of(path).st_ctime for path in paths) >= settle
    except OSError:
        return False


def _listing(folder: Path) -> str:
    """Return a key of the names, sizes and times of all files below a folder."""
    digest = hashlib.blake2b(digest_size=16)
    for place, folders, names in os.walk(folder):
        folders.sort()
        for path in (Path(place, name) for name in sorted(names)):
            with suppress(OSError):  # it is gone
                status = path.lstat()
                digest.update(os.fsencode(path) + f"\0{status.st_size} {status.st_ctime_ns}\0".encode())
    return digest.hexdigest()


def _signature(found: Scan, folder: Path) -> tuple[Any, ...]:
    """Return what the tables hold of a scan, and how many other files there are."""
    units = [(unit.source, unit.stamp) for unit in list_units(found, folder)]
    return units, [str(error) for error in found.refusals], found.skipped
