"""Send instances to an application entity by C-STORE (PS3.4 annex B)."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context

from medtl.errors import PacsError, ReadError
from medtl.imaging.dicom.elements import reporting_malformed
from medtl.pacs.instance import Instance, read_file
from medtl.pacs.peer import DimsePeer, Tls, client_tls

# Its messages quote what is sent.
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)

OUR_AE = "MEDTL"
MOST_CONTEXTS = 128  # PS3.8 9.3.2.2: their ids are the odd numbers of a byte
CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 60.0
UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
SUCCESS = 0x0000
# Kept, with elements coerced or left out, or of another class than it says (PS3.4 B.2.3).
KEPT_WITH_WARNING = (0xB000, 0xB006, 0xB007)
REASONS = {
    0x0110: "processing failure",
    0x0111: "has another instance of that UID",
    0x0122: "does not take this kind of object",
    0x0124: "does not allow it",
}


def c_store(
    peer: DimsePeer, instances: Sequence[Instance], tls: Tls | None, our_ae: str = OUR_AE
) -> Iterator[tuple[Instance, str | ReadError]]:
    """Send instances, and yield each with why it was not taken: "" once the PACS has acknowledged it.

    Raises PacsError pacs-unreachable where there is no answer, also in the middle; pacs-refused.
    """
    for part in _by_contexts(instances):
        with associated(peer, _proposed(part), tls, our_ae) as association:
            for instance in part:
                yield instance, _send(peer, association, instance)


def _by_contexts(instances: Sequence[Instance]) -> Iterator[list[Instance]]:
    """Cut a list where one association could not propose all that it holds."""
    part: list[Instance] = []
    kinds: set[tuple[str, str]] = set()
    for instance in instances:
        kind = (instance.sop_class, instance.transfer_syntax)
        if len(kinds | {kind}) > MOST_CONTEXTS:
            yield part
            part, kinds = [], set()
        part.append(instance)
        kinds.add(kind)
    if part:
        yield part


def _proposed(instances: Sequence[Instance]) -> list[PresentationContext]:
    kinds = sorted({(one.sop_class, one.transfer_syntax) for one in instances})
    return [
        build_context(kind, [*UNCOMPRESSED] if syntax in UNCOMPRESSED else syntax) for kind, syntax in kinds
    ]


@contextmanager
def associated(
    peer: DimsePeer, contexts: list[PresentationContext], tls: Tls | None, our_ae: str, **more: Any
) -> Iterator[Association]:
    """Hold an association. more: roles and handlers. Raises PacsError pacs-unreachable, pacs-refused."""
    entity = AE(our_ae)
    entity.connection_timeout, entity.acse_timeout = CONNECT_SECONDS, ANSWER_SECONDS
    entity.dimse_timeout = entity.network_timeout = ANSWER_SECONDS
    secured = (client_tls(tls), peer.host) if tls else None
    association = entity.associate(peer.host, peer.port, contexts, peer.ae, tls_args=secured, **more)
    if not association.is_established:
        raise _not_established(peer, association)
    try:
        yield association
        association.release()
    finally:
        if association.is_established:
            association.abort()


def _not_established(peer: DimsePeer, association: Association) -> PacsError:
    if association.is_rejected:
        fix = "let the PACS know our AE title and address, and check its own"
        return PacsError("pacs-refused", "rejects the association", where=str(peer), fix=fix)
    if association.acceptor.primitive and association.acceptor.primitive.result == 0:
        reason = "takes none of the kinds of object that were proposed"
        return PacsError("pacs-refused", reason, where=str(peer), fix="have them allowed there")
    return unreachable(peer, "does not answer")


def unreachable(peer: DimsePeer, reason: str) -> PacsError:
    """Return the error of a peer that is not there, or no longer."""
    fix = "check address, TLS, network, and that it lets our AE title in; the same command does the rest"
    return PacsError("pacs-unreachable", reason, where=str(peer), fix=fix)


def _send(peer: DimsePeer, association: Association, instance: Instance) -> str | ReadError:
    """Send one instance; return why it was not taken. Raises PacsError pacs-unreachable."""
    if not association.is_established:
        raise unreachable(peer, "ended the association")
    try:
        status = association.send_c_store(_read(instance.path))
    except ReadError as error:
        return error
    except (ValueError, AttributeError) as error:  # nothing was sent: the text of it quotes UIDs
        return f"the PACS does not take its kind or transfer syntax ({type(error).__name__})"
    if "Status" not in status:
        raise unreachable(peer, "stopped answering")
    code = status.Status
    if code == SUCCESS or code in KEPT_WITH_WARNING:
        return ""
    return f"the PACS answered 0x{code:04X} ({_meaning(code)})"


def _read(path: Path) -> Dataset:
    """Read a file that may have gone, or changed, since it was listed. Raises ReadError."""
    with reporting_malformed(path):
        return dcmread(BytesIO(read_file(path)))


def _meaning(code: int) -> str:
    if 0xA700 <= code <= 0xA7FF:
        return "out of resources"
    if 0xA900 <= code <= 0xA9FF:
        return "data set does not match its class"
    return REASONS.get(code, "cannot understand" if 0xC000 <= code <= 0xCFFF else "failure")
