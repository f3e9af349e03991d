"""Ask an application entity: send by C-STORE, search by C-FIND, fetch by C-GET (PS3.4 annexes B and C).

An instance arrives in the transfer syntax in which it is stored, if the PACS accepts a context for it.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

from pydicom import Dataset, dcmread, uid
from pynetdicom import AE, evt, sop_class
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context, build_role
from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS

from medtl.errors import PacsError, ReadError
from medtl.imaging.dicom.elements import reporting_malformed
from medtl.pacs.instance import UID, Instance, read_file
from medtl.pacs.peer import DimsePeer, Tls, client_tls, unexpected, unreachable

# Its messages quote patient data.
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)

MOST_CONTEXTS = 128  # PS3.8 9.3.2.2: their ids are the odd numbers of a byte
CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 60.0
UNCOMPRESSED = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian)
SUCCESS, PENDING = 0x0000, (0xFF00, 0xFF01)
# As it is, with elements coerced or dropped, or although it does not match its class (PS3.4 B.2.3).
STORED = (SUCCESS, 0xB000, 0xB006, 0xB007)

LEVELS = {"StudyInstanceUID": "STUDY", "SeriesInstanceUID": "SERIES", "SOPInstanceUID": "IMAGE"}
FIND: Any = sop_class.StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]
GET: Any = sop_class.StudyRootQueryRetrieveInformationModelGet  # type: ignore[attr-defined]
# An association can propose 128 contexts: these are the images that medtl is for.
IMAGES = (
    uid.ComputedRadiographyImageStorage,
    uid.DigitalXRayImageStorageForPresentation,
    uid.DigitalXRayImageStorageForProcessing,
    uid.DigitalMammographyXRayImageStorageForPresentation,
    uid.MRImageStorage,
    uid.EnhancedMRImageStorage,
    uid.LegacyConvertedEnhancedMRImageStorage,
    uid.CTImageStorage,
    uid.SecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
)
SYNTAXES: tuple[Any, ...] = (
    [*UNCOMPRESSED],
    *([uid.JPEG2000Lossless], [uid.JPEGLosslessSV1], [uid.JPEGLSLossless], [uid.RLELossless]),
    [uid.JPEGBaseline8Bit],
)


def c_store(
    peer: DimsePeer, instances: Sequence[Instance], tls: Tls | None, our_ae: str = "MEDTL"
) -> Iterator[tuple[Instance, str | ReadError]]:
    """Send instances; yield each with the reason if it was refused, "" once the PACS has acknowledged it.

    Raises PacsError pacs-unreachable when the PACS does not answer, or stops answering; pacs-refused.
    """
    kinds = sorted({(one.sop_class, one.transfer_syntax) for one in instances})
    for start in range(0, len(kinds), MOST_CONTEXTS):
        part = kinds[start : start + MOST_CONTEXTS]
        contexts = [
            build_context(kind, [*UNCOMPRESSED] if syntax in UNCOMPRESSED else syntax)
            for kind, syntax in part
        ]
        with associated(peer, contexts, tls, our_ae) as association:
            for instance in instances:
                if (instance.sop_class, instance.transfer_syntax) in part:
                    yield instance, _send(peer, association, instance)


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
    if status.Status in STORED:
        return ""
    _, meaning = STORAGE_SERVICE_CLASS_STATUS.get(status.Status, ("", "unknown status"))
    return f"the PACS answered 0x{status.Status:04X} ({meaning})"


@contextmanager
def query_service(peer: DimsePeer, tls: Tls | None, our_ae: str) -> Iterator["QueryService"]:
    """Open an association for searching and fetching. Raises PacsError pacs-unreachable, pacs-refused."""
    received: dict[str, bytes] = {}

    def store(event: Any) -> int:
        received[str(event.request.AffectedSOPInstanceUID)] = event.encoded_dataset()
        return SUCCESS

    roles = [build_role(image, scp_role=True) for image in IMAGES]
    images = [build_context(image, syntaxes) for image in IMAGES for syntaxes in SYNTAXES]
    contexts = [build_context(FIND), build_context(GET), *images]
    more = {"ext_neg": roles, "evt_handlers": [(evt.EVT_C_STORE, store)]}
    with associated(peer, contexts, tls, our_ae, **more) as association:
        yield QueryService(peer, association, received)


class QueryService:
    """An association with a PACS. received: the bytes of instances that have arrived, by UID."""

    def __init__(self, peer: DimsePeer, association: Association, received: dict[str, bytes]) -> None:
        self.peer, self.association, self.received = peer, association, received

    def find(self, query: Mapping[str, str], *above: str, limit: int | None = None) -> Iterator[str]:
        """Yield the UIDs of studies, of the series of a study, or of the instances of a series, each once.

        query: attributes to match; above: the UIDs of that study and series. Raises PacsError.
        """
        keyword = list(LEVELS)[len(above)]
        asked = {keyword: "", **dict(zip(LEVELS, above)), **query}
        uids = []
        for status, match in self._request(self.association.send_c_find, LEVELS[keyword], asked, FIND):
            if status in PENDING:
                uids.append(str(match.get(keyword) or "") if match else "")
            elif status != SUCCESS:
                raise unexpected(self.peer, f"answered 0x{status:04X} to a search")
        if not all(map(UID.fullmatch, uids)):
            raise unexpected(self.peer, "listed an item without a valid UID")
        yield from list(dict.fromkeys(uids))[:limit]

    def retrieve(self, study: str, series: str, instance: str) -> bytes:
        """Return an instance as a DICOM file. Raises PacsError pacs-answer if it does not arrive."""
        uids = dict(zip(LEVELS, (study, series, instance)))
        statuses = [status for status, _ in self._request(self.association.send_c_get, "IMAGE", uids, GET)]
        content = self.received.pop(instance, None)
        self.received.clear()
        if content is None:
            status = (statuses or [SUCCESS])[-1]
            raise unexpected(self.peer, f"did not send an instance, and answered 0x{status:04X}")
        return content

    def _request(
        self, send: Any, level: str, query: Mapping[str, str], model: Any
    ) -> Iterator[tuple[int, Dataset | None]]:
        """Send a query; yield statuses and data sets. Raises PacsError pacs-unreachable, pacs-refused."""
        if not self.association.is_established:
            raise unreachable(self.peer, "ended the association")
        identifier = Dataset()
        identifier.QueryRetrieveLevel = level
        for keyword, value in query.items():
            setattr(identifier, keyword, value)
        try:
            for status, match in send(identifier, model):
                if "Status" not in status:
                    raise unreachable(self.peer, "stopped answering")
                yield status.Status, match
        except ValueError as error:
            reason, fix = "does not support C-FIND and C-GET", "use its DICOMweb service"
            raise PacsError("pacs-refused", reason, where=str(self.peer), fix=fix) from error
