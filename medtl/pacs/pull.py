"""Fetch studies from a PACS, whole files under hashed names, and go on where that was broken off.

search (QIDO-RS, C-FIND) -> instances that are not here (WADO-RS, C-GET) -> FOLDER/<study>/<series>/*.dcm
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from medtl.core.files import make_folder, replacing
from medtl.core.progress import StoppedError, Watcher, never
from medtl.errors import ConfigError, MedtlError, PacsError, ReadError
from medtl.pacs.instance import UID, identify, key_of_uid
from medtl.pacs.peer import WebPeer
from medtl.pacs.push import Destination, missing_extra

DATES = re.compile(r"\d{8}|\d{8}-|-\d{8}|\d{8}-\d{8}")


@dataclass(frozen=True)
class Query:
    """Which studies: modality as MR; date as 20260101-20260131, open at either end; limit: studies."""

    modality: str | None = None
    date: str | None = None
    study: str | None = None
    limit: int | None = None


@dataclass(frozen=True)
class PullOutcome:
    """What fetching came to. kept: files that were here; failures: a fault an instance."""

    studies: int
    fetched: int
    kept: int
    failures: tuple[MedtlError, ...]


class Service(Protocol):
    """A PACS that can be searched: what it lists are UIDs in form, nothing more is known of them."""

    def studies(self, query: Mapping[str, str], limit: int | None) -> Iterator[str]:
        """Yield studies by what must match, at most `limit`."""

    def series(self, study: str, query: Mapping[str, str]) -> Iterator[str]:
        """Yield a study's series by what must match."""

    def instances(self, study: str, series: str) -> Iterator[str]:
        """Yield a series' instances."""

    def retrieve(self, study: str, series: str, instance: str) -> bytes:
        """Return an instance as a DICOM file."""


class _Listed(NamedTuple):
    """An instance as the PACS lists it: UIDs that nobody has checked but for their characters."""

    study: str
    series: str
    instance: str


def pull_run(
    source: Destination,
    query: Query,
    out: Path,
    watcher: Watcher,
    stop: Callable[[], bool] = never,
) -> PullOutcome:
    """Fetch the instances of studies into `out`. A file that is here is whole, and not fetched again.

    Raises ConfigError config-value, extra-missing, pacs-tls; PacsError; OutputError; StoppedError between two
    instances.
    """
    _check(query)
    make_folder(out)
    results: list[bool | MedtlError] = []
    with _open(source) as service:
        studies = list(service.studies(_of_studies(query), query.limit))
        for number, study in enumerate(studies):
            watcher.progress("fetching studies", number, len(studies))
            for listed in _list_study(service, study, query):
                _heed(stop, out)
                results.append(_try_fetch(service, listed, out))
    failures = tuple(one for one in results if isinstance(one, MedtlError))
    return PullOutcome(len(studies), results.count(True), results.count(False), failures)


@contextmanager
def _open(source: Destination) -> Iterator[Service]:
    try:
        if isinstance(source.peer, WebPeer):
            from medtl.pacs.dicomweb import WebService

            with WebService(source.peer, source.tls) as web:
                yield web
        else:
            from medtl.pacs.dimse_query import query_service

            with query_service(source.peer, source.tls, source.our_ae) as archive:
                yield archive
    except ImportError as missing:
        raise missing_extra(missing) from missing


def _check(query: Query) -> None:
    if query.date and not DATES.fullmatch(query.date):
        fix = "give 20260131, 20260101-, -20260131 or 20260101-20260131"
        raise ConfigError("config-value", "is no date or range of dates", where=query.date, fix=fix)
    if query.study and not UID.fullmatch(query.study):
        raise ConfigError("config-value", "is no UID", where="--study", fix="give a StudyInstanceUID")


def _of_studies(query: Query) -> dict[str, str]:
    asked = {"ModalitiesInStudy": query.modality, "StudyDate": query.date, "StudyInstanceUID": query.study}
    return {name: value for name, value in asked.items() if value}


def _list_study(service: Service, study: str, query: Query) -> Iterator[_Listed]:
    for series in service.series(study, {"Modality": query.modality} if query.modality else {}):
        for instance in service.instances(study, series):
            yield _Listed(study, series, instance)


def _try_fetch(service: Service, listed: _Listed, out: Path) -> bool | MedtlError:
    """Fetch an instance; return what is wrong with it alone. Raises PacsError where the PACS is away."""
    try:
        return _fetch(service, listed, out)
    except (ReadError, PacsError) as error:
        if error.code in ("pacs-unreachable", "pacs-refused"):
            raise
        return error


def _fetch(service: Service, listed: _Listed, out: Path) -> bool:
    """Fetch an instance unless it is here; return whether it was fetched."""
    folder = out / key_of_uid(listed.study) / key_of_uid(listed.series)
    path = folder / f"{key_of_uid(listed.instance)}.dcm"
    if path.exists():
        return False
    content = service.retrieve(*listed)
    found = identify(content, path)
    if (found.study, found.series, found.sop_instance) != listed:
        fix = "ask whoever runs the PACS"
        raise ReadError("pacs-mismatch", "is not the instance that was asked for", where=path, fix=fix)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return True


def _heed(stop: Callable[[], bool], out: Path) -> None:
    if stop():
        reason, fix = "stopped, all files so far are kept", "the same command goes on"
        raise StoppedError("interrupted", reason, where=out, fix=fix)
