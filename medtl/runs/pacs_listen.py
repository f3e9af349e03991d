"""Receive studies, score each once nothing more of it comes, and send its results on.

C-STORE -> OUT/inbox/<study> -> OUT/results/<study> -> the PACS; OUT/listener has the journal of it

An instance is on disk before it is acknowledged, and each step of a study is journaled once it is done: after
a kill the step is done again, to the same objects, and a PACS is sent none that it has acknowledged.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from medtl.errors import MedtlError, PacsError
from medtl.learning.watching import StoppedError, Unwatched, Watcher
from medtl.prediction.journal import Journal, open_journal
from medtl.reporting.pacs.gate import Gate
from medtl.reporting.pacs.inbox import Inbox
from medtl.reporting.pacs.peer import Tls
from medtl.runs.common import load_finished
from medtl.runs.pacs_push import Destination, list_files, missing_extra, push_files
from medtl.runs.results import results_run

LOOK_SECONDS = 0.2
# After a fault that may pass a study waits, each time twice as long.
RETRY_SECONDS, LONGEST_RETRY = 30.0, 3600.0
# A study during whose scoring the process ended so many times is left alone.
MOST_TRIES = 5


@dataclass(frozen=True)
class Scoring:
    """Who judges what has been received, what is written about it, and where that goes."""

    run: Path
    kinds: tuple[str, ...]
    any_modality: bool = False
    send_to: Destination | None = None


@dataclass(frozen=True)
class StudyState:
    """What has been done about a study with the files of a listing. tries: scorings that were begun."""

    listing: str
    tries: int = 0
    scored: bool = False
    sent: bool = False


@dataclass(eq=False)
class _Desk:
    """What is at hand when studies are seen to. faults: how often in a row a study's step failed."""

    out: Path
    inbox: Inbox
    journal: Journal
    scoring: Scoring | None
    watcher: Watcher
    faults: dict[str, int]


def listen_run(
    out: Path,
    address: tuple[str, int],
    gate: Gate,
    watcher: Watcher,
    stop: Callable[[], bool],
    *,
    tls: Tls | None = None,
    scoring: Scoring | None = None,
    settle: float = 30.0,
) -> NoReturn:
    """Listen on host and port until `stop` says so, and see to each study after `settle` quiet seconds.

    Raises StoppedError; PacsError pacs-port; ConfigError pacs-tls, extra-missing; TrainingError run-locked.
    """
    try:
        from medtl.reporting.pacs.dimse_scp import listening
    except ImportError as missing:
        raise missing_extra(missing) from missing
    if scoring:
        load_finished(scoring.run)  # what cannot score is told now
    with open_journal(out / "listener") as journal:
        inbox = Inbox(out / "inbox")
        desk = _Desk(out, inbox, journal, scoring, watcher, {})
        with listening(*address, gate, inbox.keep, _teller(watcher), tls) as port:
            watcher.note("listening", f"{gate.ae}@{address[0]}:{port}{' with TLS' if tls else ''}: {out}")
            while not stop():
                for study in inbox.rested(settle)[:1]:  # between two studies somebody may ask to stop
                    _see_to(desk, study)
                time.sleep(LOOK_SECONDS)
    fix = "the same command goes on with what was received"
    raise StoppedError("interrupted", "stopped, all that was acknowledged is kept", where=out, fix=fix)


def _teller(watcher: Watcher) -> Callable[[MedtlError], None]:
    return lambda error: watcher.note("refused", str(error))


def _see_to(desk: _Desk, study: str) -> None:
    """Take a study through the steps that are not done, or let it wait where one of them failed."""
    since = desk.inbox.arrivals[study]
    try:
        done = desk.scoring is None or _score_and_send(desk, study, desk.scoring)
    except MedtlError as error:
        done = _told(desk, study, str(error))
    except Exception as error:  # whatever a study does to a library, the others go on
        done = _told(desk, study, f"scoring failed ({type(error).__name__})")
    if done:
        desk.faults.pop(study, None)
        desk.inbox.done(study, since)


def _told(desk: _Desk, study: str, line: str) -> bool:
    """Tell of a fault and let the study wait."""
    count = desk.faults[study] = desk.faults.get(study, 0) + 1
    seconds = min(RETRY_SECONDS * 2 ** (count - 1), LONGEST_RETRY)
    desk.watcher.note("fault", f"study {study}: {line}; next try in {seconds:.0f} s")
    desk.inbox.postpone(study, seconds)
    return False


def _score_and_send(desk: _Desk, study: str, scoring: Scoring) -> bool:
    """Do what is not done, step by step; return whether all is. Raises MedtlError."""
    state = _recall(desk, study)
    if not state.scored:
        state = _score(desk, study, scoring, state)
    if scoring.send_to and not state.sent:
        state = _send(desk, study, scoring.send_to, state)
    return state.sent or not scoring.send_to


def _recall(desk: _Desk, study: str) -> StudyState:
    """Return what has been done about the files that a study has now: nothing, where they are others."""
    listing = _listing(desk.inbox.folder / study)
    known = desk.journal.recall(f"study {study}")
    return StudyState(**known) if known and known["listing"] == listing else StudyState(listing)


def _remember(desk: _Desk, study: str, state: StudyState, **changes: Any) -> StudyState:
    state = StudyState(**{**asdict(state), **changes})
    desk.journal.remember(f"study {study}", asdict(state))
    return state


def _score(desk: _Desk, study: str, scoring: Scoring, state: StudyState) -> StudyState:
    if state.tries >= MOST_TRIES:
        reason, fix = f"ended the process {MOST_TRIES} times", "try medtl results on its folder"
        error = PacsError("pacs-given-up", reason, where=desk.inbox.folder / study, fix=fix)
        desk.watcher.note("refused", str(error))
        return _remember(desk, study, state, scored=True, sent=True)
    state = _remember(desk, study, state, tries=state.tries + 1)
    folder, results = desk.inbox.folder / study, desk.out / "results" / study
    try:
        outcome = results_run(
            scoring.run, folder, results, Unwatched(), kinds=scoring.kinds, any_modality=scoring.any_modality
        )
    except MedtlError as error:
        if error.code != "folder-empty":
            _remember(desk, study, state, tries=state.tries - 1)  # the process has not ended
            raise
        desk.watcher.note("refused", f"study {study}: holds no image")
        return _remember(desk, study, state, scored=True, sent=True)
    for row in outcome.rows:
        if row.refused:
            said = row.prediction
            desk.watcher.note("refused", f"study {study}: [{said.code}] {said.source}: {said.reason}")
    count = sum(any(kind != "fhir" for kind in row.files) for row in outcome.rows)
    desk.watcher.note("scored", f"study {study}: {count} of {len(outcome.rows)} series: {outcome.table}")
    return _remember(desk, study, state, scored=True, sent=count == 0)


def _send(desk: _Desk, study: str, to: Destination, state: StudyState) -> StudyState:
    """Send what the PACS has not acknowledged. Raises PacsError where it does not take all of it."""
    outcome = push_files(list_files(desk.out / "results" / study / "dicom"), to, desk.journal, Unwatched())
    if outcome.failures:
        raise outcome.failures[0]
    desk.watcher.note("sent", f"study {study}: {outcome.sent} objects to {to.peer}")
    return _remember(desk, study, state, sent=True)


def _listing(folder: Path) -> str:
    """Return a key of which instances a study has: none is ever replaced."""
    names: Sequence[str] = sorted(path.name for path in folder.glob("*.dcm"))
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:24]
