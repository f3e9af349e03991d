"""C-STORE to an archive: what it acknowledged is told apart from what it did not."""

import socket
import threading
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import ImplicitVRLittleEndian, MRImageStorage, RLELossless

from medtl.errors import PacsError, ReadError
from medtl.pacs.instance import read_instance
from medtl.pacs.peer import DimsePeer, Tls, server_tls
from tests.pacs.peers import Archive, archive, free_port, make_certificates, write_instances

pytest.importorskip("pynetdicom", reason="medtl[pacs] is not installed")
from medtl.pacs.dimse_scu import c_store


def send(port: int, paths: list[Path], tls: Tls | None = None, ae: str = "ARCHIVE") -> list[str | ReadError]:
    """Return what was answered, "" for an instance that was acknowledged."""
    peer = DimsePeer(ae, "127.0.0.1", port)
    return [reason for _, reason in c_store(peer, [*map(read_instance, paths)], tls)]


def uids(paths: list[Path]) -> list[str]:
    return [dcmread(path).SOPInstanceUID for path in paths]


def test_instances_arrive_in_order(tmp_path: Path) -> None:
    paths = write_instances(tmp_path)
    with archive() as found:
        assert send(found.port, paths) == ["", "", ""]
    assert found.received == uids(paths)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0xA700, "0xA700 (Refused: Out of Resources)"),
        (0xA900, "0xA900 (Data Set Does Not Match SOP Class)"),
        (0xC123, "0xC123 (Cannot Understand)"),
        (0x0111, "0x0111 (Duplication SOP Instance)"),
        (0x0124, "0x0124 (Refused: Not Authorised)"),
    ],
)
def test_a_failure_is_told_for_its_instance_and_the_others_go_on(
    status: int, words: str, tmp_path: Path
) -> None:
    with archive() as found:
        found.status = lambda number: status if number == 1 else 0x0000
        assert send(found.port, write_instances(tmp_path)) == ["", f"the PACS answered {words}", ""]


def test_a_file_that_is_gone_or_spoilt_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    paths = write_instances(tmp_path, 4)
    instances = [*map(read_instance, paths)]
    paths[1].unlink()
    paths[2].write_bytes(b"<script>=cmd()")
    with archive() as found:
        answers = [why for _, why in c_store(DimsePeer("ARCHIVE", "127.0.0.1", found.port), instances, None)]
    assert [getattr(why, "code", why) for why in answers] == ["", "file-missing", "dicom-header", ""]
    assert len(found.received) == 2


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007])
def test_a_warning_means_that_it_was_kept(status: int, tmp_path: Path) -> None:
    with archive() as found:
        found.status = lambda _: status
        assert send(found.port, write_instances(tmp_path, 1)) == [""]


def test_a_dropped_association_is_an_error_after_what_was_acknowledged(tmp_path: Path) -> None:
    paths, answers = write_instances(tmp_path), []
    with archive() as found:
        found.status = lambda number: -1 if number == 1 else 0x0000
        peer = DimsePeer("ARCHIVE", "127.0.0.1", found.port)
        with pytest.raises(PacsError, match="pacs-unreachable"):
            answers.extend(c_store(peer, [*map(read_instance, paths)], None))
        assert [reason for _, reason in c_store(peer, [read_instance(paths[0])], None)] == [""]
    assert found.received.count(uids(paths)[0]) == 2


def test_wrong_titles_are_a_refusal(tmp_path: Path) -> None:
    with archive() as found, pytest.raises(PacsError) as caught:
        send(found.port, write_instances(tmp_path), ae="OTHER")
    assert caught.value.code == "pacs-refused" and not found.received


def test_nobody_there_is_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(PacsError, match="pacs-unreachable"):
        send(free_port(), write_instances(tmp_path))


def test_something_that_speaks_no_dicom_is_told_in_a_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(PacsError, match="pacs-unreachable"):
            send(server.getsockname()[1], write_instances(tmp_path, 1))
        thread.join()


def test_a_kind_that_the_archive_does_not_take_is_told_and_the_rest_is_sent(tmp_path: Path) -> None:
    taken = write_instances(tmp_path / "a", 1)
    other = write_instances(tmp_path / "b", 1, study=1, SOPClassUID=MRImageStorage)
    kind = dcmread(taken[0]).SOPClassUID
    with archive(kinds=[kind]) as found:
        first, second = send(found.port, [*other, *taken])
        assert "does not accept its SOP class" in first and second == ""
        with pytest.raises(PacsError, match="accepts none of the proposed"):
            send(found.port, other)


def test_transfer_syntaxes_are_kept_or_converted_only_where_nothing_is_lost(tmp_path: Path) -> None:
    compressed, implicit = write_instances(tmp_path, 2)
    header = dcmread(compressed)
    header.compress(RLELossless)
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    header.save_as(compressed)
    header = dcmread(implicit)
    header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    header.save_as(implicit, implicit_vr=True, little_endian=True)
    with archive() as found:  # it knows uncompressed syntaxes alone
        first, second = send(found.port, [compressed, implicit])
    assert "transfer syntax" in first and second == ""


def test_tls_is_spoken_with_who_has_the_authority_s_certificate(tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    ours = Tls(files.certificate, files.key, files.authority)
    paths = write_instances(tmp_path / "sent", 1)
    with archive(server_tls(ours)) as found:
        assert send(found.port, paths, ours) == [""]
        for tls in (None, Tls(), Tls(files.stranger, files.stranger_key, files.authority)):
            with pytest.raises(PacsError, match="pacs-unreachable"):
                send(found.port, paths, tls)
    assert len(found.received) == 1


def test_many_kinds_are_sent_in_several_associations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medtl.pacs.dimse_scu.MOST_CONTEXTS", 1)
    paths = write_instances(tmp_path / "a", 2)
    paths += write_instances(tmp_path / "b", 2, study=1, SOPClassUID=MRImageStorage)
    with archive() as found:
        assert send(found.port, paths) == [""] * 4
    assert isinstance(found, Archive) and found.received == uids(paths)
