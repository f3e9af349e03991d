"""DICOMweb against a server that answers as real ones do at their worst; Orthanc is asked in tests/cli."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from medtl.errors import ConfigError, PacsError, ReadError
from medtl.pacs.instance import read_instance
from medtl.pacs.peer import Tls, WebPeer, server_tls
from tests.pacs.peers import free_port, make_certificates, write_instances
from tests.pacs.web import Answer, Server, listing, part, serving, stored

pytest.importorskip("requests", reason="medtl[pacs] is not installed")
from medtl.pacs.dicomweb import TOKEN, WebService

NO_UIDS = (
    *("../../admin", "1/../2", "", "1.2?x=1", "9" * 65, "<script>"),
    *("..", "1..2", "1.", ".1", "1\n"),
)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


def studies(server: Server, limit: int | None = None) -> list[str]:
    with WebService(WebPeer(server.url)) as service:
        return list(service.find({}, limit=limit))


def retrieve(server: Server) -> bytes:
    with WebService(WebPeer(server.url)) as service:
        return service.retrieve("1", "2", "3")


def store(server: Server, path: Path) -> str | ReadError:
    with WebService(WebPeer(server.url)) as service:
        ((_, reason),) = service.store([read_instance(path)])
    return reason


def test_pages_are_turned_until_nothing_new_comes(server: Server) -> None:
    pages = iter([listing("1.1", "1.2"), listing("1.3"), Answer(204)])
    server.answer = lambda *_: next(pages)
    assert studies(server) == ["1.1", "1.2", "1.3"]
    assert [path.split("offset=")[1] for _, path, _, _ in server.asked] == ["0", "2", "3"]


def test_uids_of_the_standard_are_taken(server: Server) -> None:
    uids = ["1.0.2", "0.0", "9" * 64, "2.25.302"]
    server.answer = lambda *_: listing(*uids)
    assert studies(server) == uids


def test_a_server_that_heeds_no_offset_ends_and_a_limit_holds(server: Server) -> None:
    server.answer = lambda *_: listing("1.1", "1.2", "1.2")
    assert studies(server) == ["1.1", "1.2"]
    assert studies(server, limit=1) == ["1.1"]


@pytest.mark.parametrize("uid", NO_UIDS)
def test_a_uid_that_is_none_is_never_asked_for(uid: str, server: Server) -> None:
    server.answer = lambda *_: listing("1.1", uid)
    with pytest.raises(PacsError, match="pacs-answer"):
        studies(server)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer(401), "pacs-refused"),
        (Answer(403), "pacs-refused"),
        (Answer(503), "pacs-unreachable"),
        (Answer(0), "pacs-unreachable"),
        (Answer(302, location="http://127.0.0.1:1/elsewhere"), "pacs-answer"),
        (Answer(404, "text/html", b"<html>CANARY"), "pacs-answer"),
        (Answer(200, "text/html", b"<html>CANARY"), "pacs-answer"),
        (Answer(200, body=b'{"a": 1}'), "pacs-answer"),
        (Answer(200, body=b"[" * 100_000), "pacs-answer"),
        (Answer(200, body=b'[null, 3, "x"]'), "pacs-answer"),
    ],
)
def test_odd_answers_to_a_search_are_one_line(answer: Answer, code: str, server: Server) -> None:
    server.answer = lambda *_: answer
    with pytest.raises(PacsError) as caught:
        studies(server)
    assert caught.value.code == code and "CANARY" not in str(caught.value)
    assert len(server.asked) == 1  # no redirection is followed


def test_nobody_there_is_one_line() -> None:
    peer = WebPeer(f"http://127.0.0.1:{free_port()}/x")
    with WebService(peer) as service, pytest.raises(PacsError, match="pacs-unreachable"):
        list(service.find({}))


@pytest.mark.parametrize("quoted", [True, False])
@pytest.mark.parametrize("content", [b"plain", b"a\r\n\r\nb\r\n--c--\r\n", b"\r\n" * 9, b"--b", bytes(99999)])
def test_an_instance_comes_out_as_the_bytes_that_it_is(content: bytes, quoted: bool, server: Server) -> None:
    server.answer = lambda *_: part(content, quoted=quoted)
    assert retrieve(server) == content
    server.answer = lambda *_: Answer(200, "application/dicom", content)
    assert retrieve(server) == content


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, "text/html", b"<html>"),
        Answer(200, "multipart/related", b"--b\r\n\r\nx\r\n--b--"),
        Answer(200, 'multipart/related; boundary="b"', b""),
        Answer(200, 'multipart/related; boundary="b"', b"--b\r\n\r\ncut"),
        Answer(200, 'multipart/related; boundary="b"', b"--b\r\n\r\nx\r\n--b\r\n\r\ny\r\n--b--"),
        Answer(404),
        Answer(500),
    ],
)
def test_what_is_no_whole_instance_is_refused(answer: Answer, server: Server) -> None:
    server.answer = lambda *_: answer
    with pytest.raises(PacsError, match="pacs-answer"):
        retrieve(server)


def test_more_than_the_limit_is_not_read(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medtl.pacs.dicomweb.LARGEST_INSTANCE", 1000)
    server.answer = lambda *_: part(bytes(2000))
    with pytest.raises(PacsError, match="at once"):
        retrieve(server)


def test_an_instance_is_handed_over_as_the_bytes_that_it_is(server: Server, tmp_path: Path) -> None:
    (path,) = write_instances(tmp_path, 1)
    uid = read_instance(path).sop_instance
    server.answer = lambda *_: stored(uid)
    assert store(server, path) == ""
    ((method, _, headers, body),) = server.asked
    assert method == "POST" and 'type="application/dicom"' in headers["Content-Type"]
    assert body.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0] == path.read_bytes()


def test_only_an_answer_that_names_the_instance_as_stored_counts(server: Server, tmp_path: Path) -> None:
    (path,) = write_instances(tmp_path, 1)
    uid = read_instance(path).sop_instance
    for answer, reason in (
        (stored(failed=(uid,), status=409), "the PACS answered 409, failure reason 42752"),
        (stored(uid, failed=(uid,), status=202), "the PACS answered 202, failure reason 42752"),
        (stored("1.2.3"), "the PACS answered 200"),
        (Answer(200, body=b""), "the PACS answered 200"),
        (Answer(200, "text/html", b"<html>fine"), "the PACS answered 200"),
        (Answer(400), "the PACS answered 400"),
        (Answer(200, body=b'{"00081199": {"Value": [{"00081155": 5}]}}'), "the PACS answered 200"),
    ):
        server.answer = lambda *_, answer=answer: answer
        assert store(server, path) == reason


def test_credentials_come_from_netrc_or_a_token(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answer = lambda *_: Answer(204)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ann password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    studies(server)
    monkeypatch.setenv(TOKEN, "abc")
    studies(server)
    said = [headers.get("Authorization") for _, _, headers, _ in server.asked]
    assert said == ["Basic YW5uOnNlY3JldA==", "Bearer abc"]


def test_tls_is_verified_by_the_authority_alone(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = make_certificates(tmp_path)
    ours = Tls(files.certificate, files.key, files.authority)
    server.socket = server_tls(ours).wrap_socket(server.socket, server_side=True)
    server.answer = lambda *_: listing("1.2.3")
    peer = WebPeer(server.url.replace("http:", "https:"))
    # requests lets this variable go before a session's own authority
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(files.stranger))
    with WebService(peer, ours) as service:
        assert list(service.find({}, limit=1)) == ["1.2.3"]
    for tls in (
        None,
        Tls(authority=files.stranger),
        Tls(files.stranger, files.stranger_key, files.authority),
    ):
        with WebService(peer, tls) as service, pytest.raises(PacsError, match="pacs-unreachable"):
            list(service.find({}, limit=1))
    with pytest.raises(ConfigError, match="pacs-tls"):
        WebService(peer, Tls(files.certificate, files.stranger_key))
    assert isinstance(server.socket, ssl.SSLSocket)
