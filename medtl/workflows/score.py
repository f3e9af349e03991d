"""Score a folder of studies into tables, and resume where that was stopped."""

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from medtl.core.files import read_json
from medtl.core.journal import open_journal
from medtl.core.progress import Watcher, never
from medtl.errors import ReadError
from medtl.imaging.reader import scan
from medtl.imaging.series import Scan
from medtl.inference.ensemble import Ensemble, make_ensemble
from medtl.inference.predictor import Prediction
from medtl.inference.streaming import (
    ScoreOptions,
    ScoreOutcome,
    Scoring,
    choose_engine,
    list_units,
    stopped,
)
from medtl.inference.tables import check_formats
from medtl.training.checkpoint import load_finished

# A stop takes effect within so many seconds.
STOP_SECONDS = 0.2


def score_run(
    run: Path,
    folder: Path,
    out: Path,
    watcher: Watcher,
    options: ScoreOptions = ScoreOptions(),
    stop: Callable[[], bool] = never,
    on_row: Callable[[Prediction], object] | None = None,
) -> ScoreOutcome:
    """Score every series and image of a folder into tables in OUT, refusals included, one row each.

    on_row: is called with each row in order, after the tables are written and before the journal is closed.

    Raises StoppedError after the current batch when `stop` returns True; TrainingError run-locked if another
    process scores into OUT.
    """
    check_formats(options.formats)
    ensemble = choose_engine(load_ensemble(run, options), options, watcher)
    folder = folder.absolute() if options.cluster else folder
    found = scan(folder)
    with open_journal(out) as journal:
        _note_other_rows(out, ensemble, folder, watcher)
        scoring = Scoring(ensemble, folder, journal, options, watcher, stop)
        scoring.show_rows()
        return scoring.write(found, scoring.score(found), on_row)


def _note_other_rows(out: Path, ensemble: Ensemble, folder: Path, watcher: Watcher) -> None:
    """Note that the tables in `out` are of another model or folder: they will show this one's rows."""
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
        watcher.note("note", f"tables in {out} were those of {others}: they will show this one's rows")


def load_ensemble(run: Path, options: ScoreOptions) -> Ensemble:
    """Load the runs to predict with. Raises CheckpointError, also if they cannot be ensembled."""
    runs = (run, *options.others)
    checkpoints = [load_finished(one, any_modality=options.any_modality) for one in runs]
    return make_ensemble(checkpoints, flips=options.flips)


def watch_run(
    run: Path,
    folder: Path,
    out: Path,
    watcher: Watcher,
    options: ScoreOptions,
    stop: Callable[[], bool],
    settle: float,
) -> NoReturn:
    """Score what is in a folder and what arrives there; tables are replaced after each arrival.

    A unit is scored once none of its files has changed for `settle` seconds, and again if files are added.
    Raises StoppedError when `stop` returns True; ReadError file-missing if there is no folder.
    """
    check_formats(options.formats)
    ensemble = choose_engine(load_ensemble(run, options), options, watcher)
    folder = folder.absolute() if options.cluster else folder
    if not folder.is_dir():
        raise ReadError("file-missing", "is no folder to watch", where=folder, fix="check the path")
    with open_journal(out) as journal:
        scoring = Scoring(ensemble, folder, journal, options, watcher, stop)
        scoring.show_rows()
        seen = written = ""
        while True:
            listing = _listing(folder)
            if listing != seen:
                found, rests = _at_rest(_scan(folder), settle)
                seen = listing if rests else ""
                written = _score_arrivals(scoring, found, written)
            until = time.monotonic() + settle
            while not (stopping := stop()) and (left := until - time.monotonic()) > 0:
                time.sleep(min(STOP_SECONDS, left))
            if stopping:
                raise stopped(journal)


def _score_arrivals(scoring: Scoring, found: Scan, written: str) -> str:
    """Score, and write the tables if their signature differs from that of the last ones; return it."""
    signature = _signature(found, scoring.folder)
    if signature == written or not (found.series or found.refusals):
        return written
    kept = scoring.score(found, first=not written)
    outcome = scoring.write(found, kept)
    counts = f"{outcome.scored} scored, {outcome.refused} refused"
    scoring.watcher.note("rows", f"{counts}, {len(found.series) - kept} of them now: {outcome.table}")
    return signature


def _scan(folder: Path) -> Scan:
    """Scan a folder that may hold nothing yet."""
    try:
        return scan(folder)
    except ReadError as error:
        if error.code != "folder-empty":
            raise
        return Scan((), ())


def _at_rest(found: Scan, settle: float) -> tuple[Scan, bool]:
    """Return the settled part of a scan, and whether that is all of it."""
    series = tuple(one for one in found.series if _rests(one.files, settle))
    refusals = tuple(one for one in found.refusals if _rests([Path(one.where)], settle))
    whole = len(series) == len(found.series) and len(refusals) == len(found.refusals)
    return Scan(series, refusals, found.left_out), whole


def _rests(paths: Iterable[Path], settle: float) -> bool:
    """Say whether paths exist and are unchanged: copying may set a file's time, not its inode's."""
    try:
        return time.time() - max(path.stat().st_ctime for path in paths) >= settle
    except OSError:
        return False


def _listing(folder: Path) -> str:
    """Return a key of the names, sizes and times of all files below a folder."""
    digest = hashlib.blake2b(digest_size=16)
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(place, name)
            try:
                status = path.lstat()
            except OSError:
                continue
            digest.update(os.fsencode(path) + f"\0{status.st_size} {status.st_ctime_ns}\0".encode())
    return digest.hexdigest()


def _signature(found: Scan, folder: Path) -> str:
    """Return a key of what the tables of a scan contain, and of how many other files were in the folder."""
    digest = hashlib.blake2b(str(found.skipped).encode(), digest_size=16)
    for unit in list_units(found, folder):
        digest.update(f"{unit.source}\0{unit.stamp}\0".encode())
    for error in found.refusals:
        digest.update(f"{error}\0".encode(errors="backslashreplace"))
    return digest.hexdigest()
