"""Receive studies, score each once nothing more of it comes, and send its results on.

C-STORE -> OUT/inbox/<study> -> OUT/results/<study> -> the PACS; OUT/listener has the journal of it

An instance is on disk before it is acknowledged, and each step of a study is journaled once it is done: after
a kill the step is done again, to the same objects, and a PACS is sent none that it has acknowledged.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from medtl.core.journal import Journal, key_of, open_journal
from medtl.core.progress import StoppedError, Unwatched, Watcher
from medtl.errors import MedtlError, PacsError
from medtl.pacs.gate import Gate
from medtl.pacs.inbox import Inbox
from medtl.pacs.peer import Tls
from medtl.pacs.push import Destination, missing_extra, push_files
from medtl.pacs.results import ResultsOutcome, model_identity, write_results
from medtl.training.checkpoint import Checkpoint, load_finished

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
    """What has been done about a study.

    asked: a key of its files, of who judges them, and of what is written and sent where. tries: scorings that
    were begun. objects: what there is to be sent, as paths within its results.
    """

    asked: str
    tries: int = 0
    scored: bool = False
    sent: bool = False
    objects: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Judge:
    """Scoring with the model that it names, loaded once."""

    scoring: Scoring
    checkpoint: Checkpoint

    def key(self, files: list[str]) -> str:
        """Return a key of all that what is done about files depends on."""
        asked, model = self.scoring, model_identity(self.checkpoint)
        facts = {
            "files": files,
            "model": [model.sha256, model.settings_sha256],
            "any modality": asked.any_modality,
            "kinds": sorted(asked.kinds),
            "to": str(asked.send_to.peer) if asked.send_to else "",
        }
        return key_of(facts)


@dataclass(eq=False)
class _Desk:
    """What is at hand when studies are seen to. faults: how often in a row a study's step failed."""

    out: Path
    inbox: Inbox
    journal: Journal
    judge: _Judge | None
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
        from medtl.pacs.dimse_scp import listening
    except ImportError as missing:
        raise missing_extra(missing) from missing
    judge = None
    if scoring:  # what cannot score is told now
        judge = _Judge(scoring, load_finished(scoring.run, any_modality=scoring.any_modality))
    with open_journal(out / "listener") as journal:
        inbox = Inbox(out / "inbox")
        desk = _Desk(out, inbox, journal, judge, watcher, {})
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
        done = desk.judge is None or _score_and_send(desk, study, desk.judge)
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


def _score_and_send(desk: _Desk, study: str, judge: _Judge) -> bool:
    """Do what is not done, step by step; return whether all is. Raises MedtlError."""
    state = _recall(desk, study, judge)
    if not state.scored:
        state = _score(desk, study, judge, state)
    to = judge.scoring.send_to
    if to and not state.sent:
        state = _send(desk, study, to, state)
    return state.sent or not to


def _recall(desk: _Desk, study: str, judge: _Judge) -> StudyState:
    """Return what has been done of what is asked for: nothing where files, model, kinds or PACS differ."""
    names = sorted(path.name for path in (desk.inbox.folder / study).glob("*.dcm"))  # none is ever replaced
    asked = judge.key(names)
    known = desk.journal.recall(f"study {study}")
    return StudyState(**known) if known and known.get("asked") == asked else StudyState(asked)


def _remember(desk: _Desk, study: str, state: StudyState, **changes: Any) -> StudyState:
    state = StudyState(**{**asdict(state), **changes})
    desk.journal.remember(f"study {study}", asdict(state))
    return state


def _score(desk: _Desk, study: str, judge: _Judge, state: StudyState) -> StudyState:
    if state.tries >= MOST_TRIES:
        reason, fix = f"ended the process {MOST_TRIES} times", "try medtl results on its folder"
        error = PacsError("pacs-given-up", reason, where=desk.inbox.folder / study, fix=fix)
        desk.watcher.note("refused", str(error))
        return _remember(desk, study, state, scored=True, sent=True)
    state = _remember(desk, study, state, tries=state.tries + 1)
    folder, results = desk.inbox.folder / study, desk.out / "results" / study
    kinds = judge.scoring.kinds
    try:
        outcome = write_results(judge.checkpoint, folder, results, Unwatched(), kinds=kinds)
    except MedtlError as error:
        if error.code != "folder-empty":
            _remember(desk, study, state, tries=state.tries - 1)  # the process has not ended
            raise
        desk.watcher.note("refused", f"study {study}: holds no image")
        return _remember(desk, study, state, scored=True, sent=True)
    _tell_results(desk, study, outcome)
    objects = [path for row in outcome.rows for kind, path in row.files.items() if kind != "fhir"]
    return _remember(desk, study, state, scored=True, sent=not objects, objects=objects)


def _tell_results(desk: _Desk, study: str, outcome: ResultsOutcome) -> None:
    for row in outcome.rows:
        if row.refused:
            said = row.prediction
            desk.watcher.note("refused", f"study {study}: [{said.code}] {said.source}: {said.reason}")
    count = sum(any(kind != "fhir" for kind in row.files) for row in outcome.rows)
    desk.watcher.note("scored", f"study {study}: {count} of {len(outcome.rows)} series: {outcome.table}")


def _send(desk: _Desk, study: str, to: Destination, state: StudyState) -> StudyState:
    """Send what was written last and the PACS has not acknowledged.

    Of a study that grew older objects lie there, too. Raises PacsError where it does not take all of it.
    """
    files = [desk.out / "results" / study / path for path in state.objects]
    outcome = push_files(files, to, desk.journal, Unwatched())
    if outcome.failures:
        raise outcome.failures[0]
    desk.watcher.note("sent", f"study {study}: {outcome.sent} objects to {to.peer}")
    return _remember(desk, study, state, sent=True)
