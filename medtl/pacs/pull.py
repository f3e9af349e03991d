"""Fetch studies from a PACS, whole files under hashed names, and resume where an earlier fetch ended.

search (QIDO-RS, C-FIND) -> instances that are not here yet (WADO-RS, C-GET) -> FOLDER/<study>/<series>/*.dcm
"""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medtl.core.files import make_folder, replacing
from medtl.core.progress import Watcher, never, stopped
from medtl.errors import ConfigError, MedtlError, PacsError, ReadError
from medtl.pacs.instance import UID, identify, key_of_uid
from medtl.pacs.peer import Endpoint, WebPeer, needing_extra

if TYPE_CHECKING:
    from medtl.pacs.dicomweb import WebService
    from medtl.pacs.dimse_scu import QueryService

DATES = re.compile(r"\d{8}|\d{8}-|-\d{8}|\d{8}-\d{8}")


@dataclass(frozen=True)
class Query:
    """Which studies: modality such as MR; date such as 20260101-20260131, open at either end; limit."""

    modality: str | None = None
    date: str | None = None
    study: str | None = None
    limit: int | None = None

    def matching(self) -> dict[str, str]:
        """Return the attributes that a study must match. Raises ConfigError config-value."""
        if self.date and not DATES.fullmatch(self.date):
            fix = "give 20260131, 20260101-, -20260131 or 20260101-20260131"
            raise ConfigError("config-value", "is not a date or range of dates", where=self.date, fix=fix)
        if self.study and not UID.fullmatch(self.study):
            raise ConfigError("config-value", "is not a UID", where="--study", fix="give a StudyInstanceUID")
        keys = {"ModalitiesInStudy": self.modality, "StudyDate": self.date, "StudyInstanceUID": self.study}
        return {name: value for name, value in keys.items() if value}


@dataclass(frozen=True)
class PullOutcome:
    """What was fetched. skipped: files that were here already; failures: one error per refused instance."""

    studies: int
    fetched: int
    skipped: int
    failures: tuple[MedtlError, ...]


def pull_run(
    source: Endpoint, query: Query, out: Path, watcher: Watcher, stop: Callable[[], bool] = never
) -> PullOutcome:
    """Fetch the instances of studies into `out`. A file in `out` is whole, and is not fetched again.

    Raises ConfigError config-value, extra-missing, pacs-tls; PacsError; OutputError; StoppedError between two
    instances.
    """
    asked = query.matching()
    make_folder(out)
    results: list[bool | MedtlError] = []
    with _open(source) as service:
        studies = list(service.find(asked, limit=query.limit))
        for number, study in enumerate(studies):
            watcher.progress("fetching studies", number, len(studies))
            for series in service.find({"Modality": query.modality} if query.modality else {}, study):
                for instance in service.find({}, study, series):
                    if stop():
                        raise stopped("after saving all files so far", out)
                    results.append(_fetch(service, (study, series, instance), out))
    failures = tuple(one for one in results if isinstance(one, MedtlError))
    return PullOutcome(len(studies), results.count(True), results.count(False), failures)


def _open(source: Endpoint) -> AbstractContextManager["WebService | QueryService"]:
    with needing_extra():
        if isinstance(source.peer, WebPeer):
            from medtl.pacs.dicomweb import WebService

            return WebService(source.peer, source.tls)
        from medtl.pacs.dimse_scu import query_service

        return query_service(source.peer, source.tls, source.our_ae)


def _fetch(service: "WebService | QueryService", uids: tuple[str, str, str], out: Path) -> bool | MedtlError:
    """Fetch the instance of a study, series and SOP instance UID.

    Return whether it had to be fetched, or what is wrong with it alone. Raises PacsError pacs-unreachable,
    pacs-refused.
    """
    study, series, instance = map(key_of_uid, uids)
    path = out / study / series / f"{instance}.dcm"
    if path.exists():
        return False
    try:
        content = service.retrieve(*uids)
        received = identify(content, path)
    except (ReadError, PacsError) as error:
        if error.code in ("pacs-unreachable", "pacs-refused"):
            raise
        return error
    if (received.study, received.series, received.sop_instance) != uids:
        reason, fix = "is not the instance that was requested", "ask the administrator of the PACS"
        return ReadError("pacs-mismatch", reason, where=path, fix=fix)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return True
