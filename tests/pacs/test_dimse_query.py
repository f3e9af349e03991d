"""C-FIND and C-GET: an archive that answers oddly is a line, and no UID of it is taken at its word."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread

from medtl.errors import PacsError
from medtl.pacs.instance import identify
from medtl.pacs.peer import DimsePeer
from tests.pacs.peers import archive, free_port, write_instances

pytest.importorskip("pynetdicom", reason="medtl[pacs] is not installed")
from pynetdicom import AE, evt

from medtl.pacs.dimse_scu import FIND, GET, IMAGES, QueryService, query_service


@contextmanager
def asked(find: Callable | None = None, get: Callable | None = None) -> Iterator[QueryService]:
    """Ask an archive in this process that answers by these handlers."""
    entity = AE("ARCHIVE")
    for kind in (FIND, GET):
        entity.add_supported_context(kind)
    for image in IMAGES:
        entity.add_supported_context(image, scu_role=True, scp_role=True)
    handlers: list[Any] = [(evt.EVT_C_FIND, find)] if find else []
    handlers += [(evt.EVT_C_GET, get)] if get else []
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    peer = DimsePeer("ARCHIVE", "127.0.0.1", server.server_address[1])
    try:
        with query_service(peer, None, "MEDTL") as service:
            yield service
    finally:
        entity.shutdown()


def listing(*uids: str | None) -> Callable[[Any], Iterator[tuple[int, Dataset | None]]]:
    """Return a handler that finds studies of these UIDs; None: an identifier without one."""

    def find(event: Any) -> Iterator[tuple[int, Dataset | None]]:
        for uid in uids:
            found = Dataset()
            found.QueryRetrieveLevel = event.identifier.QueryRetrieveLevel
            if uid is not None:
                found.StudyInstanceUID = uid
            yield 0xFF00, found

    return find


def test_what_matches_is_asked_for_and_each_uid_comes_once() -> None:
    queries: list[Dataset] = []

    def find(event: Any) -> Iterator[tuple[int, Dataset | None]]:
        queries.append(event.identifier)
        yield from listing("1.1", "1.2", "1.1")(event)

    with asked(find) as service:
        assert list(service.find({"StudyDate": "20260101-"})) == ["1.1", "1.2"]
        assert list(service.find({}, limit=1)) == ["1.1"]
    assert queries[0].QueryRetrieveLevel == "STUDY" and queries[0].StudyDate == "20260101-"
    assert queries[0].StudyInstanceUID == ""


@pytest.mark.parametrize("uid", ["../../x", "", None, "<script>", "*"])
def test_a_uid_that_is_none_is_never_asked_for(uid: str | None) -> None:
    with asked(listing("1.1", uid)) as service, pytest.raises(PacsError, match="pacs-answer"):
        list(service.find({}))


def test_a_search_that_fails_is_one_line() -> None:
    def find(_: Any) -> Iterator[tuple[int, None]]:
        yield 0xA700, None

    with asked(find) as service, pytest.raises(PacsError, match="0xA700"):
        list(service.find({}))


def test_an_instance_comes_and_one_that_does_not_is_one_line(tmp_path: Path) -> None:
    (path,) = write_instances(tmp_path, 1)
    header = dcmread(path)

    def get(event: Any) -> Iterator[Any]:
        here = event.identifier.SOPInstanceUID == header.SOPInstanceUID
        yield int(here)
        if here:
            yield 0xFF00, header

    with asked(get=get) as service:
        content = service.retrieve("1", "2", header.SOPInstanceUID)
        found = identify(content, path)
        assert (found.sop_instance, found.study) == (header.SOPInstanceUID, header.StudyInstanceUID)
        with pytest.raises(PacsError, match="did not send an instance"):
            service.retrieve("1", "2", "1.2.3")


def test_another_instance_than_was_asked_for_is_not_taken(tmp_path: Path) -> None:
    (path,) = write_instances(tmp_path, 1)

    def get(_: Any) -> Iterator[Any]:
        yield 1
        yield 0xFF00, dcmread(path)

    with asked(get=get) as service:
        with pytest.raises(PacsError, match="pacs-answer"):
            service.retrieve("1", "2", "1.2.3")
        assert not service.received


def test_an_association_that_drops_is_one_line() -> None:
    def find(event: Any) -> Iterator[tuple[int, None]]:
        event.assoc.dul.socket.close()
        yield 0xFF00, None

    with pytest.raises(PacsError, match="pacs-unreachable"), asked(find) as service:
        list(service.find({}))


def test_an_archive_that_stores_alone_and_nobody_are_one_line_each() -> None:
    with archive() as found:
        peer = DimsePeer("ARCHIVE", "127.0.0.1", found.port)
        with pytest.raises(PacsError, match="pacs-refused"), query_service(peer, None, "MEDTL") as service:
            list(service.find({}))
    nobody = DimsePeer("ARCHIVE", "127.0.0.1", free_port())
    with pytest.raises(PacsError, match="pacs-unreachable"), query_service(nobody, None, "MEDTL"):
        pass
