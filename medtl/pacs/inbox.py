"""Received bytes -> INBOX/<hash of study>/<hash of instance>.dcm, on disk before it is acknowledged."""

import threading
import time
from pathlib import Path

from medtl.core.files import flush, make_folder, replacing, writing
from medtl.errors import ReadError
from medtl.pacs.instance import data_set, identify, key_of_uid

MAKER = "medtl"
# So many instances can be written at the same time, but never one instance twice.
LOCKS = 64


class Inbox:
    """A folder of received studies. arrivals: when the last instance of each unprocessed study arrived.

    Several threads save; one thread processes arrivals.
    """

    def __init__(self, folder: Path) -> None:
        """Open a folder: its studies count as just arrived, half-written files are deleted."""
        self.folder = make_folder(folder)
        for half in self.folder.glob("*/.*.dcm.*"):
            half.unlink()
        self._lock = threading.Lock()
        self._saving = [threading.Lock() for _ in range(LOCKS)]
        self.arrivals = {
            path.name: time.monotonic() for path in sorted(self.folder.iterdir()) if path.is_dir()
        }

    def save(self, content: bytes, sop_class: str, sop_instance: str) -> None:
        """Write an instance to disk. It must be what was announced, and new or identical to the one here.

        Objects made by medtl that a PACS sends back are dropped: they would be scored like a study. Raises
        ReadError dicom-header, pacs-mismatch, pacs-duplicate; OutputError output-unwritable.
        """
        name = f"{key_of_uid(sop_instance)}.dcm"
        instance, fix = identify(content, Path(name)), "check the sender"
        if (instance.sop_class, instance.sop_instance) != (sop_class, sop_instance):
            raise ReadError("pacs-mismatch", "is not what was announced", where=name, fix=fix)
        if instance.manufacturer == MAKER:
            return
        study = key_of_uid(instance.study)
        path = self.folder / study / name
        with self._saving[hash(name) % LOCKS]:  # of two senders at once, the second finds the first's file
            if not path.exists():
                with self._lock, writing(path.parent):
                    if not path.parent.exists():
                        make_folder(path.parent)
                        flush(self.folder)  # which holds its name: or a power cut could take the study
                with replacing(path) as temporary:
                    temporary.write_bytes(content)
            elif data_set(path.read_bytes()) != data_set(content):
                reason = "an instance of this UID with other content is here"
                raise ReadError("pacs-duplicate", reason, where=name, fix=fix)
        with self._lock:
            self.arrivals[study] = time.monotonic()

    def rested(self, settle: float) -> list[str]:
        """Return the studies to which nothing was added for `settle` seconds, the longest waiting first."""
        before = time.monotonic() - settle
        with self._lock:
            waiting = sorted(self.arrivals.items(), key=lambda pair: pair[1])
        return [study for study, since in waiting if since <= before]

    def done(self, study: str, since: float) -> None:
        """Mark a study as processed, unless more of it has arrived since `since`."""
        with self._lock:
            if self.arrivals.get(study) == since:
                del self.arrivals[study]

    def postpone(self, study: str, seconds: float) -> None:
        """Let a study wait for some seconds longer than others."""
        with self._lock:
            self.arrivals[study] = time.monotonic() + seconds
