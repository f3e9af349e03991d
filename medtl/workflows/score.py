"""Score a folder of studies into tables, and go on where that was broken off."""

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from medtl.core.files import read_json
from medtl.core.journal import Journal, open_journal
from medtl.core.progress import Watcher, never
from medtl.errors import ReadError
from medtl.imaging.reader import scan
from medtl.imaging.series import Scan
from medtl.inference.ensemble import Ensemble, make_ensemble
from medtl.inference.streaming import (
    ScoreOptions,
    ScoreOutcome,
    Tell,
    choose_engine,
    list_units,
    open_judge,
    score_into,
    stopped,
    tell_nobody,
    write_outcome,
)
from medtl.inference.tables import check_formats
from medtl.training.checkpoint import load_finished

# A stop is answered within so many seconds.
STOP_SECONDS = 0.2


def score_run(
    run: Path,
    folder: Path,
    out: Path,
    watcher: Watcher,
    options: ScoreOptions = ScoreOptions(),
    stop: Callable[[], bool] = never,
    tell: Tell = tell_nobody,
) -> ScoreOutcome:
    """Score every series and image of a folder into tables in OUT, refusals included, one row each.

    The journal is held until all is told: nobody else gets hold of it before.

    Raises StoppedError after the current batch when `stop` says so; TrainingError run-locked where another
    process scores into OUT.
    """
    check_formats(options.formats)
    ensemble = load_ensemble(run, options)
    folder = folder.absolute() if options.cluster else folder
    found = scan(folder)
    with open_journal(out) as journal:
        _note_other_rows(out, ensemble, folder, watcher)
        ensemble = choose_engine(ensemble, journal, options, watcher)
        ensemble = open_judge(ensemble, journal, found, options)
        kept = score_into(journal, ensemble, found, folder, options, watcher, stop)
        return write_outcome(journal, ensemble, found, folder, options, kept, tell)


def _note_other_rows(out: Path, ensemble: Ensemble, folder: Path, watcher: Watcher) -> None:
    """Say so where the tables in `out` are of another model or folder: they will show this one's rows."""
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
    """Load the runs that judge. Raises CheckpointError, also where they cannot judge together."""
    runs = (run, *options.others)
    checkpoints = [load_finished(one, any_modality=options.any_modality) for one in runs]
    return make_ensemble(checkpoints, flips=options.flips)


@dataclass(frozen=True, eq=False)
class Watch:
    """What is watched, by whom, and into what. settle: seconds for which a file has been left alone."""

    ensemble: Ensemble
    folder: Path
    journal: Journal
    options: ScoreOptions
    watcher: Watcher
    stop: Callable[[], bool]
    settle: float


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

    A unit is scored once none of its files has changed for `settle` seconds, and again if more of it comes.
    Raises StoppedError when `stop` says so; ReadError file-missing where there is no folder.
    """
    check_formats(options.formats)
    ensemble = load_ensemble(run, options)
    folder = folder.absolute() if options.cluster else folder
    if not folder.is_dir():
        raise ReadError("file-missing", "is no folder to watch", where=folder, fix="check the path")
    with open_journal(out) as journal:
        ensemble = choose_engine(ensemble, journal, options, watcher)
        watch = Watch(ensemble, folder, journal, options, watcher, stop, settle)
        seen = told = ""
        while True:
            listing = _listing(folder)
            if listing != seen:
                found, rests = _at_rest(_scan(folder), settle)
                seen = listing if rests else ""
                told = _score_news(watch, found, told)
            _wait(watch)


def _score_news(watch: Watch, found: Scan, told: str) -> str:
    """Score, and write the tables where they would differ from what was told last; return what they tell."""
    news = _signature(found, watch.folder)
    if news == told or not (found.series or found.refusals):
        return told
    judge = open_judge(watch.ensemble, watch.journal, found, watch.options, first=not told)
    kept = score_into(
        watch.journal, judge, found, watch.folder, watch.options, watch.watcher, watch.stop, first=not told
    )
    outcome = write_outcome(watch.journal, judge, found, watch.folder, watch.options, kept)
    counts = f"{outcome.scored} scored, {outcome.refused} refused"
    watch.watcher.note("rows", f"{counts}, {len(found.series) - kept} of them now: {outcome.table}")
    return news


def _scan(folder: Path) -> Scan:
    """Scan a folder that may hold nothing yet."""
    try:
        return scan(folder)
    except ReadError as error:
        if error.code != "folder-empty":
            raise
        return Scan((), ())


def _at_rest(found: Scan, settle: float) -> tuple[Scan, bool]:
    """Return what has come to rest of a scan, and whether that is all."""
    series = tuple(one for one in found.series if _rests(one.files, settle))
    refusals = tuple(one for one in found.refusals if _rests([Path(one.where)], settle))
    whole = len(series) == len(found.series) and len(refusals) == len(found.refusals)
    return Scan(series, refusals, found.left_out), whole


def _rests(paths: Iterable[Path], settle: float) -> bool:
    """Say whether paths are there, and were left alone: copying may set a file's time, not its inode's."""
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
    """Return a key of what tables say of a scan, and of how much else was in the folder."""
    digest = hashlib.blake2b(str(found.skipped).encode(), digest_size=16)
    for unit in list_units(found, folder):
        digest.update(f"{unit.source}\0{unit.stamp}\0".encode())
    for error in found.refusals:
        digest.update(f"{error}\0".encode(errors="backslashreplace"))
    return digest.hexdigest()


def _wait(watch: Watch) -> None:
    """Let some time pass. Raises StoppedError."""
    until = time.monotonic() + watch.settle
    while True:
        if watch.stop():
            raise stopped(watch.journal)
        left = until - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(STOP_SECONDS, left))
