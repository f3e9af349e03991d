"""Send DICOM files to a PACS, each until it is acknowledged, and none that it has already acknowledged.

files -> instances that the journal does not list as acknowledged -> C-STORE or STOW-RS -> journal
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medtl.core.journal import Journal, open_journal
from medtl.core.progress import Watcher, never, stopped
from medtl.errors import MedtlError, PacsError, ReadError
from medtl.pacs.instance import Instance, looks_like_dicom, read_instance
from medtl.pacs.peer import Endpoint, WebPeer, needing_extra

JOURNAL_FOLDER = ".medtl-pushed"


@dataclass(frozen=True)
class PushOutcome:
    """What was sent. skipped: files that the PACS had already; failures: one error per refused file."""

    sent: int
    skipped: int
    failures: tuple[MedtlError, ...]


def push_run(
    source: Path, to: Endpoint, watcher: Watcher, *, resend: bool = False, stop: Callable[[], bool] = never
) -> PushOutcome:
    """Send a file, or the DICOM files of a folder. The journal of acknowledged files lies beside them.

    resend: also send what was acknowledged before. Raises ReadError file-missing, folder-empty; PacsError;
    StoppedError between two files once `stop` is true. Acknowledged files are remembered in every case.
    """
    files = list_files(source)
    home = source if source.is_dir() else source.parent
    with open_journal(home / JOURNAL_FOLDER) as journal:
        return push_files(files, to, journal, watcher, resend=resend, stop=stop)


def list_files(source: Path) -> list[Path]:
    """List the DICOM files of a folder, sorted, without links and hidden files."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise ReadError("file-missing", "does not exist", where=source, fix="check the path")
    shown = [one for one in sorted(source.rglob("*")) if "/." not in f"/{one.relative_to(source).as_posix()}"]
    files = [one for one in shown if one.is_file() and not one.is_symlink() and looks_like_dicom(one)]
    if not files:
        fix = "write results with medtl results"
        raise ReadError("folder-empty", "holds no DICOM file", where=source, fix=fix)
    return files


def push_files(
    files: Sequence[Path],
    to: Endpoint,
    journal: Journal,
    watcher: Watcher,
    *,
    resend: bool = False,
    stop: Callable[[], bool] = never,
) -> PushOutcome:
    """Send files that the journal does not list as acknowledged. Raises as push_run does."""
    waiting: list[Instance] = []
    failures: list[MedtlError] = []
    skipped = sent = 0
    for path in files:
        try:
            instance = read_instance(path)
        except ReadError as error:
            failures.append(error)
            continue
        if resend or not journal.recall(_key(to, instance)):
            waiting.append(instance)
        else:
            skipped += 1
    for done, (instance, reason) in enumerate(_store(to, waiting), start=1):
        if isinstance(reason, ReadError):
            failures.append(reason)
        elif reason:
            fix = "see the log of the PACS"
            failures.append(PacsError("pacs-not-kept", reason, where=instance.path, fix=fix))
        else:
            journal.remember(_key(to, instance), True)
            sent += 1
        watcher.progress("sending", skipped + done, skipped + len(waiting))
        if done < len(waiting) and stop():
            raise stopped(f"after {sent} files", str(to.peer), "run the same command to send the rest")
    return PushOutcome(sent, skipped, tuple(failures))


def _key(to: Endpoint, instance: Instance) -> str:
    return f"acknowledged {to.peer} {instance.content}"


def _store(to: Endpoint, instances: Sequence[Instance]) -> Iterator[tuple[Instance, str | ReadError]]:
    if not instances:
        return
    with needing_extra():
        if isinstance(to.peer, WebPeer):
            from medtl.pacs.dicomweb import WebService

            with WebService(to.peer, to.tls) as service:
                yield from service.store(instances)
        else:
            from medtl.pacs.dimse_scu import c_store

            yield from c_store(to.peer, instances, to.tls, to.our_ae)
