"""Search an application entity by C-FIND, and fetch from it by C-GET (PS3.4 annex C, Study Root).

An instance comes in the transfer syntax in which it is kept, where the PACS takes the context for that.
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
from pynetdicom.presentation import PresentationContext, build_context, build_role

from medtl.errors import PacsError
from medtl.pacs.dimse_scu import associated, unreachable
from medtl.pacs.instance import UID
from medtl.pacs.peer import DimsePeer, Tls

FIND: Any = known.StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]
GET: Any = known.StudyRootQueryRetrieveInformationModelGet  # type: ignore[attr-defined]
# What an association can propose is limited: these are the images that medtl is for.
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
SUCCESS = 0x0000


@contextmanager
def query_service(peer: DimsePeer, tls: Tls | None, our_ae: str) -> Iterator["QueryService"]:
    """Hold an association for searching and fetching. Raises PacsError pacs-unreachable, pacs-refused."""
    received: dict[str, bytes] = {}

    def store(event: Any) -> int:
        received[str(event.request.AffectedSOPInstanceUID)] = event.encoded_dataset()
        return SUCCESS

    handlers = [(evt.EVT_C_STORE, store)]
    roles = [build_role(image, scp_role=True) for image in IMAGES]
    with associated(peer, _contexts(), tls, our_ae, ext_neg=roles, evt_handlers=handlers) as association:
        yield QueryService(peer, association, received)


class QueryService:
    """An association with a PACS; received: instances as they come, by UID."""

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
        """Return an instance as a DICOM file. Raises PacsError pacs-answer where it does not come."""
        uids = {"StudyInstanceUID": study, "SeriesInstanceUID": series, "SOPInstanceUID": instance}
        asked = _identifier("IMAGE", uids)
        last = SUCCESS
        for status, _ in self._asked(lambda: self.association.send_c_get(asked, GET)):
            last = status
        content = self.received.pop(instance, None)
        self.received.clear()
        if content is None:
            raise self._odd(f"did not send an instance, and answered 0x{last:04X}")
        return content

    def _find(self, level: str, keyword: str, query: Mapping[str, str]) -> list[str]:
        """Return the UIDs of a level that match, each once. Raises PacsError pacs-answer."""
        asked, uids = _identifier(level, {keyword: "", **query}), []
        for status, found in self._asked(lambda: self.association.send_c_find(asked, FIND)):
            if status in PENDING:
                uids.append(str(found.get(keyword) or "") if found else "")
            elif status != SUCCESS:
                raise self._odd(f"answered 0x{status:04X} to a search")
        if not all(UID.fullmatch(uid) for uid in uids):
            raise self._odd("listed something without a valid UID")
        return list(dict.fromkeys(uids))

    def _asked(self, ask: Any) -> Iterator[tuple[int, Dataset | None]]:
        """Yield statuses and what comes with them. Raises PacsError where nobody answers, or not this."""
        if not self.association.is_established:
            raise unreachable(self.peer, "ended the association")
        try:
            for status, found in ask():
                if "Status" not in status:
                    raise unreachable(self.peer, "stopped answering")
                yield status.Status, found
        except ValueError as error:
            reason, fix = "cannot be searched by C-FIND and C-GET", "use its DICOMweb service"
            raise PacsError("pacs-refused", reason, where=str(self.peer), fix=fix) from error

    def _odd(self, reason: str) -> PacsError:
        return PacsError("pacs-answer", reason, where=str(self.peer), fix="see the PACS's log")


def _contexts() -> list[PresentationContext]:
    images = [build_context(image, [*syntaxes]) for image in IMAGES for syntaxes in SYNTAXES]
    return [build_context(FIND), build_context(GET), *images]


def _identifier(level: str, query: Mapping[str, str]) -> Dataset:
    asked = Dataset()
    asked.QueryRetrieveLevel = level
    for keyword, value in query.items():
        setattr(asked, keyword, value)
    return asked
