"""Send DICOM files to a PACS, each until it is acknowledged, and none that was acknowledged before.

files -> instances that the journal does not know as acknowledged there -> C-STORE or STOW-RS -> journal
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medtl.core.journal import Journal, open_journal
from medtl.core.progress import StoppedError, Watcher, never
from medtl.errors import ConfigError, MedtlError, PacsError, ReadError
from medtl.pacs.instance import Instance, looks_like_dicom, read_instance
from medtl.pacs.peer import Peer, Tls, WebPeer

JOURNAL_FOLDER = ".medtl-pushed"


@dataclass(frozen=True)
class PushOutcome:
    """What sending came to. kept: files that the PACS had acknowledged before; failures: a fault a file."""

    sent: int
    kept: int
    failures: tuple[MedtlError, ...]


@dataclass(frozen=True)
class Destination:
    """A PACS, and as whom it is spoken to."""

    peer: Peer
    tls: Tls | None = None
    our_ae: str = "MEDTL"


def push_run(
    source: Path, to: Destination, watcher: Watcher, *, anew: bool = False, stop: Callable[[], bool] = never
) -> PushOutcome:
    """Send the DICOM files of a folder, or a file. The journal of what is acknowledged lies beside them.

    anew: send what was acknowledged before, too. Raises ReadError file-missing, folder-empty; PacsError;
    StoppedError between two files when `stop` says so. In each case what was acknowledged is remembered.
    """
    files = list_files(source)
    home = source if source.is_dir() else source.parent
    with open_journal(home / JOURNAL_FOLDER) as journal:
        return push_files(files, to, journal, watcher, anew=anew, stop=stop)


def list_files(source: Path) -> list[Path]:
    """List the DICOM files of a folder, links and hidden ones left out, sorted."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise ReadError("file-missing", "does not exist", where=source, fix="check the path")
    files = [path for path in sorted(source.rglob("*")) if _is_plain(path, source) and looks_like_dicom(path)]
    if not files:
        fix = "write results with medtl results"
        raise ReadError("folder-empty", "holds no DICOM file", where=source, fix=fix)
    return files


def push_files(
    files: Sequence[Path],
    to: Destination,
    journal: Journal,
    watcher: Watcher,
    *,
    anew: bool = False,
    stop: Callable[[], bool] = never,
) -> PushOutcome:
    """Send files that the journal does not know as acknowledged. Raises as push_run does."""
    instances, failures = _read(files)
    waiting = [one for one in instances if anew or not journal.recall(_key(to, one.content))]
    kept, sent = len(instances) - len(waiting), 0
    for done, (instance, reason) in enumerate(_store(to, waiting), start=1):
        if isinstance(reason, ReadError):
            failures.append(reason)
        elif reason:
            failures.append(PacsError("pacs-not-kept", reason, where=instance.path, fix="see the PACS's log"))
        else:
            journal.remember(_key(to, instance.content), True)
            sent += 1
        watcher.progress("sending", kept + done, kept + len(waiting))
        if done < len(waiting) and stop():
            fix = "the same command sends the rest"
            raise StoppedError("interrupted", f"stopped after {sent} were sent", where=str(to.peer), fix=fix)
    return PushOutcome(sent, kept, tuple(failures))


def missing_extra(missing: ImportError) -> ConfigError:
    """Return the error that says what must be installed for speaking with a PACS."""
    fix = "pip install 'medtl[pacs]'"
    return ConfigError("extra-missing", f"needs {missing.name}", where="medtl pacs", fix=fix)


def _read(files: Sequence[Path]) -> tuple[list[Instance], list[MedtlError]]:
    instances: list[Instance] = []
    failures: list[MedtlError] = []
    for path in files:
        try:
            instances.append(read_instance(path))
        except ReadError as error:
            failures.append(error)
    return instances, failures


def _store(to: Destination, instances: Sequence[Instance]) -> Iterator[tuple[Instance, str | ReadError]]:
    if not instances:
        return
    try:
        if isinstance(to.peer, WebPeer):
            from medtl.pacs.dicomweb import WebService

            with WebService(to.peer, to.tls) as service:
                yield from service.store(instances)
        else:
            from medtl.pacs.dimse_scu import c_store

            yield from c_store(to.peer, instances, to.tls, to.our_ae)
    except ImportError as missing:
        raise missing_extra(missing) from missing


def _key(to: Destination, content: str) -> str:
    return f"acknowledged {to.peer} {content}"


def _is_plain(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return not hidden and path.is_file() and not path.is_symlink()
