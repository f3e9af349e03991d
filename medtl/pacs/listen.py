"""Receive studies, score each once it is complete, and send its results on.

C-STORE -> OUT/inbox/<study> -> OUT/results/<study> -> the PACS, with a journal in OUT/listener

An instance is on disk before it is acknowledged, and each step of a study is journaled when it is done. After
a kill, an unfinished step is repeated and gives the same objects; acknowledged ones are never sent again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from medtl.core.journal import Journal, key_of, open_journal
from medtl.core.progress import SILENT, Watcher, stopped
from medtl.errors import MedtlError, PacsError
from medtl.pacs.inbox import Inbox
from medtl.pacs.peer import Endpoint, Gate, Tls, needing_extra
from medtl.pacs.push import push_files
from medtl.pacs.results import model_identity, write_results
from medtl.training.checkpoint import Checkpoint, load_finished

LOOK_SECONDS = 0.2
# After a fault that may pass a study waits, each time twice as long.
RETRY_SECONDS, LONGEST_RETRY = 30.0, 3600.0
# A study is skipped once the process has ended this many times while scoring it.
MOST_TRIES = 5


@dataclass(frozen=True)
class Scoring:
    """Which model scores the studies received, which results are written, and where they are sent."""

    run: Path
    kinds: tuple[str, ...]
    any_modality: bool = False
    send_to: Endpoint | None = None


# What has been done for a study, as the journal keeps it.
State = dict[str, Any]


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
    """Listen on host and port until `stop` is true, and process each study after `settle` quiet seconds.

    Raises StoppedError; PacsError pacs-port; ConfigError pacs-tls, extra-missing; TrainingError run-locked.
    """
    with needing_extra():
        from medtl.pacs.dimse_scp import listening
    faults: dict[str, int] = {}
    checkpoint = load_finished(scoring.run, any_modality=scoring.any_modality) if scoring else None
    with open_journal(out / "listener") as journal:
        scorer = _Scorer(out, scoring, checkpoint, watcher, journal) if scoring and checkpoint else None
        inbox = Inbox(out / "inbox")

        def report(error: MedtlError) -> None:
            watcher.note("refused", str(error))

        with listening(*address, gate, inbox.save, report, tls) as port:
            watcher.note("listening", f"{gate.ae}@{address[0]}:{port}{' with TLS' if tls else ''}: {out}")
            while not stop():
                for study in inbox.rested(settle)[:1]:  # one at a time: a stop is honoured between two
                    since = inbox.arrivals[study]
                    fault = scorer.process(inbox.folder / study) if scorer else ""
                    if fault:
                        faults[study] = faults.get(study, 0) + 1
                        seconds = min(RETRY_SECONDS * 2 ** (faults[study] - 1), LONGEST_RETRY)
                        watcher.note("fault", f"study {study}: {fault}; next try in {seconds:.0f} s")
                        inbox.postpone(study, seconds)
                    else:
                        faults.pop(study, None)
                        inbox.done(study, since)
                time.sleep(LOOK_SECONDS)
    raise stopped("after saving all that was acknowledged", out)


class _Scorer:
    """Takes studies through scoring and sending with a model that is loaded once."""

    def __init__(
        self, out: Path, scoring: Scoring, checkpoint: Checkpoint, watcher: Watcher, journal: Journal
    ) -> None:
        self.out, self.scoring, self.checkpoint = out, scoring, checkpoint
        self.watcher, self.journal = watcher, journal

    def process(self, folder: Path) -> str:
        """Do what is not yet done for a study; return the fault that stopped it, "" if all is done."""
        try:
            state = self._recall(folder)
            if not state["scored"]:
                state = self._score(folder, state)
            if self.scoring.send_to and not state["sent"]:
                self._send(folder.name, state, self.scoring.send_to)
            return ""
        except MedtlError as error:
            return str(error)
        except Exception as error:  # a study that crashes a library must not end the listener
            return f"scoring failed ({type(error).__name__})"

    def _recall(self, folder: Path) -> State:
        """Return the state of a study: a new one if its files, the model, kinds or destination changed.

        asked: a key of these. tries: how often scoring was started. objects: what is to be sent, as paths
        within its results.
        """
        model, to = model_identity(self.checkpoint), self.scoring.send_to
        facts = {
            "files": sorted(path.name for path in folder.glob("*.dcm")),  # a file is never replaced
            "model": [model.sha256, model.settings_sha256],
            "any modality": self.scoring.any_modality,
            "kinds": sorted(self.scoring.kinds),
            "to": str(to.peer) if to else "",
        }
        new = {"asked": key_of(facts), "tries": 0, "scored": False, "sent": False, "objects": []}
        known = self.journal.recall(f"study {folder.name}")
        return known if known and known.get("asked") == new["asked"] else new

    def _remember(self, study: str, state: State, **changes: Any) -> State:
        self.journal.remember(f"study {study}", {**state, **changes})
        return {**state, **changes}

    def _score(self, folder: Path, state: State) -> State:
        study, note = folder.name, self.watcher.note
        if state["tries"] >= MOST_TRIES:
            reason, fix = f"ended the process {MOST_TRIES} times", "try medtl results on its folder"
            note("refused", str(PacsError("pacs-given-up", reason, where=folder, fix=fix)))
            return self._remember(study, state, scored=True, sent=True)
        state = self._remember(study, state, tries=state["tries"] + 1)
        results, kinds = self.out / "results" / study, self.scoring.kinds
        try:
            outcome = write_results(self.checkpoint, folder, results, SILENT, kinds=kinds)
        except MedtlError as error:
            if error.code != "folder-empty":
                self._remember(study, state, tries=state["tries"] - 1)  # the process has not ended
                raise
            note("refused", f"study {study}: holds no image")
            return self._remember(study, state, scored=True, sent=True)
        for row in outcome.rows:
            if row.refused:
                refusal = row.prediction
                note("refused", f"study {study}: [{refusal.code}] {refusal.source}: {refusal.reason}")
        count = sum(any(kind != "fhir" for kind in row.files) for row in outcome.rows)
        note("scored", f"study {study}: {count} of {len(outcome.rows)} series: {outcome.table}")
        objects = [path for row in outcome.rows for kind, path in row.files.items() if kind != "fhir"]
        return self._remember(study, state, scored=True, sent=not objects, objects=objects)

    def _send(self, study: str, state: State, to: Endpoint) -> None:
        """Send the objects of the last scoring, without those of earlier ones when a study has grown.

        Raises PacsError where the PACS does not take all of them.
        """
        files = [self.out / "results" / study / path for path in state["objects"]]
        outcome = push_files(files, to, self.journal, SILENT)
        if outcome.failures:
            raise outcome.failures[0]
        self.watcher.note("sent", f"study {study}: {outcome.sent} objects to {to.peer}")
        self._remember(study, state, sent=True)
