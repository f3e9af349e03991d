"""Search an application entity by C-FIND and fetch from it by C-GET (PS3.4 annex C, Study Root).

An instance arrives in the transfer syntax in which it is stored, if the PACS accepts a context for it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydicom import Dataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import evt
from pynetdicom import sop_class as known
from pynetdicom.association import Association
from pynetdicom.presentation import build_context, build_role

from medtl.errors import PacsError
from medtl.pacs.dimse_scu import SUCCESS, associated
from medtl.pacs.instance import UID
from medtl.pacs.peer import DimsePeer, Tls, unexpected, unreachable

FIND: Any = known.StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]
GET: Any = known.StudyRootQueryRetrieveInformationModelGet  # type: ignore[attr-defined]
# An association can propose 128 contexts: these are the images that medtl is for.
IMAGES: tuple[Any, ...] = tuple(
    getattr(known, name)
    for name in (
        "ComputedRadiographyImageStorage",
        "DigitalXRayImageStorageForPresentation",
        "DigitalXRayImageStorageForProcessing",
        "DigitalMammographyXRayImageStorageForPresentation",
        "MRImageStorage",
        "EnhancedMRImageStorage",
        "LegacyConvertedEnhancedMRImageStorage",
        "CTImageStorage",
        "SecondaryCaptureImageStorage",
        "MultiFrameGrayscaleWordSecondaryCaptureImageStorage",
    )
)
SYNTAXES = (
    [ExplicitVRLittleEndian, ImplicitVRLittleEndian],
    *([JPEG2000Lossless], [JPEGLosslessSV1], [JPEGLSLossless], [RLELossless], [JPEGBaseline8Bit]),
)
PENDING = (0xFF00, 0xFF01)


@contextmanager
def query_service(peer: DimsePeer, tls: Tls | None, our_ae: str) -> Iterator["QueryService"]:
    """Open an association for searching and fetching. Raises PacsError pacs-unreachable, pacs-refused."""
    received: dict[str, bytes] = {}

    def store(event: Any) -> int:
        received[str(event.request.AffectedSOPInstanceUID)] = event.encoded_dataset()
        return SUCCESS

    handlers = [(evt.EVT_C_STORE, store)]
    roles = [build_role(image, scp_role=True) for image in IMAGES]
    images = [build_context(image, [*syntaxes]) for image in IMAGES for syntaxes in SYNTAXES]
    contexts = [build_context(FIND), build_context(GET), *images]
    with associated(peer, contexts, tls, our_ae, ext_neg=roles, evt_handlers=handlers) as association:
        yield QueryService(peer, association, received)


class QueryService:
    """An association with a PACS. received: the bytes of instances that have arrived, by UID."""

    def __init__(self, peer: DimsePeer, association: Association, received: dict[str, bytes]) -> None:
        self.peer, self.association, self.received = peer, association, received

    def studies(self, query: Mapping[str, str], limit: int | None) -> Iterator[str]:
        """Yield the UIDs of studies, at most `limit`."""
        yield from self._find("STUDY", "StudyInstanceUID", query)[:limit]

    def series(self, study: str, query: Mapping[str, str]) -> Iterator[str]:
        """Yield the UIDs of a study's series."""
        yield from self._find("SERIES", "SeriesInstanceUID", {"StudyInstanceUID": study, **query})

    def instances(self, study: str, series: str) -> Iterator[str]:
        """Yield the UIDs of a series' instances."""
        above = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
        yield from self._find("IMAGE", "SOPInstanceUID", above)

    def retrieve(self, study: str, series: str, instance: str) -> bytes:
        """Return an instance as a DICOM file. Raises PacsError pacs-answer if it does not arrive."""
        uids = {"StudyInstanceUID": study, "SeriesInstanceUID": series, "SOPInstanceUID": instance}
        statuses = [status for status, _ in self._request(self.association.send_c_get, "IMAGE", uids, GET)]
        content = self.received.pop(instance, None)
        self.received.clear()
        if content is None:
            raise unexpected(
                self.peer, f"did not send an instance, and answered 0x{(statuses or [SUCCESS])[-1]:04X}"
            )
        return content

    def _find(self, level: str, keyword: str, query: Mapping[str, str]) -> list[str]:
        """Return the UIDs of a level that match, each once. Raises PacsError pacs-answer."""
        uids = []
        for status, match in self._request(self.association.send_c_find, level, {keyword: "", **query}, FIND):
            if status in PENDING:
                uids.append(str(match.get(keyword) or "") if match else "")
            elif status != SUCCESS:
                raise unexpected(self.peer, f"answered 0x{status:04X} to a search")
        if not all(UID.fullmatch(uid) for uid in uids):
            raise unexpected(self.peer, "listed an item without a valid UID")
        return list(dict.fromkeys(uids))

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
