"""Keep what is received: an instance is whole and on disk under a hashed name before it is acknowledged.

INBOX/<key of the study>/<key of the instance>.dcm
"""

import threading
import time
from pathlib import Path

from medtl.core.files import flush, make_folder, replacing, writing
from medtl.errors import ReadError
from medtl.pacs.instance import data_set, identify, key_of_uid

MAKER = "medtl"
# Instances that can be put on disk side by side; the same one never is.
LOCKS = 64


class Inbox:
    """A folder of received studies. arrivals: when the last instance came of studies to be seen to.

    Several threads keep, one looks after arrivals.
    """

    def __init__(self, folder: Path) -> None:
        """Open a folder, its studies as just arrived, and without what a kill left half-written."""
        self.folder = make_folder(folder)
        for half in self.folder.glob("*/.*.dcm.*"):
            half.unlink()
        now = time.monotonic()
        self._lock = threading.Lock()
        self._keeping = [threading.Lock() for _ in range(LOCKS)]
        self.arrivals = {path.name: now for path in sorted(self.folder.iterdir()) if path.is_dir()}

    def keep(self, content: bytes, sop_class: str, sop_instance: str) -> None:
        """Put an instance on disk; it must be what was announced, and be new or the very same.

        What medtl made itself, and a PACS sends back, is not kept: it would be scored as if it were a study.
        Raises ReadError dicom-header, pacs-mismatch, pacs-duplicate; OutputError output-unwritable.
        """
        name = f"{key_of_uid(sop_instance)}.dcm"
        found = identify(content, Path(name))
        if (found.sop_class, found.sop_instance) != (sop_class, sop_instance):
            raise ReadError("pacs-mismatch", "is not what was announced", where=name, fix="see its sender")
        if found.manufacturer == MAKER:
            return
        study = key_of_uid(found.study)
        with self._keeping[hash(name) % LOCKS]:  # of two senders at once, the second meets the first's file
            self._put(self.folder / study / name, content)
        with self._lock:
            self.arrivals[study] = time.monotonic()

    def _put(self, path: Path, content: bytes) -> None:
        if not path.exists():
            with self._lock:
                _make_lasting(path.parent)
            with replacing(path) as temporary:
                temporary.write_bytes(content)
        elif data_set(path.read_bytes()) != data_set(content):
            raise ReadError(
                "pacs-duplicate", "other bytes of its UID are here", where=path.name, fix="see its sender"
            )

    def rested(self, settle: float) -> list[str]:
        """Return the studies of which nothing has come for `settle` seconds, the longest waiting first."""
        before = time.monotonic() - settle
        with self._lock:
            waiting = sorted(self.arrivals.items(), key=lambda pair: pair[1])
        return [study for study, since in waiting if since <= before]

    def done(self, study: str, since: float) -> None:
        """Forget a study, unless more of it has come since `since`, which was its arrival."""
        with self._lock:
            if self.arrivals.get(study) == since:
                del self.arrivals[study]

    def postpone(self, study: str, seconds: float) -> None:
        """Let a study wait for some seconds more than others."""
        with self._lock:
            self.arrivals[study] = time.monotonic() + seconds


def _make_lasting(folder: Path) -> None:
    """Make a folder that is there after a power cut: its name is in the folder above, which is flushed."""
    if folder.exists():
        return
    make_folder(folder)
    with writing(folder):
        flush(folder.parent)
