"""Send instances to an application entity by C-STORE (PS3.4 annex B)."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS

from medtl.errors import PacsError, ReadError
from medtl.imaging.dicom.elements import reporting_malformed
from medtl.pacs.instance import Instance, read_file
from medtl.pacs.peer import DimsePeer, Tls, client_tls, unreachable

# Its messages quote patient data.
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)

MOST_CONTEXTS = 128  # PS3.8 9.3.2.2: their ids are the odd numbers of a byte
CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 60.0
UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
SUCCESS = 0x0000
# Stored, with elements coerced or dropped, or although the data set does not match its class (PS3.4 B.2.3).
STORED_WITH_WARNING = (0xB000, 0xB006, 0xB007)


def c_store(
    peer: DimsePeer, instances: Sequence[Instance], tls: Tls | None, our_ae: str = "MEDTL"
) -> Iterator[tuple[Instance, str | ReadError]]:
    """Send instances; yield each with the reason if it was refused, "" once the PACS has acknowledged it.

    Raises PacsError pacs-unreachable when the PACS does not answer, or stops answering; pacs-refused.
    """
    for part in _by_contexts(instances):
        kinds = sorted({(one.sop_class, one.transfer_syntax) for one in part})
        contexts = [
            build_context(kind, [*UNCOMPRESSED] if syntax in UNCOMPRESSED else syntax)
            for kind, syntax in kinds
        ]
        with associated(peer, contexts, tls, our_ae) as association:
            for instance in part:
                yield instance, _send(peer, association, instance)


def _by_contexts(instances: Sequence[Instance]) -> Iterator[list[Instance]]:
    """Split a list so that one association can propose the contexts of each part."""
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


@contextmanager
def associated(
    peer: DimsePeer, contexts: list[PresentationContext], tls: Tls | None, our_ae: str, **more: Any
) -> Iterator[Association]:
    """Open an association. more: roles and handlers. Raises PacsError pacs-unreachable, pacs-refused."""
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
        fix = "register our AE title and address at the PACS, and check its AE title"
        return PacsError("pacs-refused", "rejects the association", where=str(peer), fix=fix)
    if association.acceptor.primitive and association.acceptor.primitive.result == 0:
        reason = "accepts none of the proposed SOP classes and transfer syntaxes"
        return PacsError("pacs-refused", reason, where=str(peer), fix="enable them at the PACS")
    return unreachable(peer, "does not answer")


def _send(peer: DimsePeer, association: Association, instance: Instance) -> str | ReadError:
    """Send one instance; return the reason if it was refused. Raises PacsError pacs-unreachable."""
    if not association.is_established:
        raise unreachable(peer, "ended the association")
    try:
        with reporting_malformed(instance.path):  # the file may have changed since it was listed
            dataset = dcmread(BytesIO(read_file(instance.path)))
        status = association.send_c_store(dataset)
    except ReadError as error:
        return error
    except (ValueError, AttributeError) as error:  # nothing was sent; the message quotes UIDs
        return f"the PACS does not accept its SOP class or transfer syntax ({type(error).__name__})"
    if "Status" not in status:
        raise unreachable(peer, "stopped answering")
    code = status.Status
    if code == SUCCESS or code in STORED_WITH_WARNING:
        return ""
    _, meaning = STORAGE_SERVICE_CLASS_STATUS.get(code, ("", ""))
    return f"the PACS answered 0x{code:04X} ({meaning or 'unknown status'})"
