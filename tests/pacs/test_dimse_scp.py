"""A listener lets in whom its gate allows, and acknowledges what is on disk and nothing else."""

import errno
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from medtl.errors import MedtlError, PacsError
from medtl.pacs.inbox import Inbox
from medtl.pacs.peer import LOOPBACK, MEGABYTE, Gate, Tls, client_tls, parse_networks
from tests.pacs.peers import make_certificates, write_instances

pytest.importorskip("pynetdicom", reason="medtl[pacs] is not installed")
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.sop_class import ComputedRadiographyImageStorage, Verification

from medtl.pacs.dimse_scp import listening
from tests.waiting import PATIENCE, wait_until

# pynetdicom installs tools of the same names.
SYSTEM = "/usr/local/bin:/usr/bin"


class Listener:
    """A listener, its inbox, and the faults that it told."""

    def __init__(self, folder: Path) -> None:
        self.inbox = Inbox(folder / "inbox")
        self.told: list[MedtlError] = []
        self.port = 0

    def files(self) -> list[Path]:
        """Return all that is in the inbox, half-written files too."""
        return [path for path in self.inbox.folder.rglob("*") if path.is_file()]

    def codes(self) -> list[str]:
        """Return the codes of what was told, in which no patient is named."""
        assert not [one for one in self.told if "canary" in str(one).lower()]
        return [one.code for one in self.told]


def gate(**changes: Any) -> Gate:
    fields: dict[str, Any] = {"ae": "MEDTL", "callers": ("SENDER",), "networks": parse_networks(LOOPBACK)}
    return Gate(**(fields | changes))


@contextmanager
def listener(folder: Path, allowed: Gate | None = None, tls: Tls | None = None) -> Iterator[Listener]:
    found = Listener(folder)
    told = found.told.append
    with listening("127.0.0.1", 0, allowed or gate(), found.inbox.save, told, tls) as found.port:
        yield found


def associate(port: int, caller: str = "SENDER", called: str = "MEDTL", **more: Any) -> Association:
    entity = AE(caller)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = PATIENCE
    entity.add_requested_context(ComputedRadiographyImageStorage)
    entity.add_requested_context(Verification)
    return entity.associate("127.0.0.1", port, ae_title=called, **more)


def store(association: Association, path: Path) -> int | None:
    """Return the status, None where there is no answer."""
    return association.send_c_store(dcmread(path)).get("Status")


def test_an_echo_is_answered_and_instances_are_kept(tmp_path: Path) -> None:
    paths = write_instances(tmp_path / "sent")
    with listener(tmp_path) as found:
        association = associate(found.port)
        assert association.send_c_echo().Status == 0x0000
        assert [store(association, path) for path in paths] == [0x0000] * 3
        association.release()
    kept = {dcmread(path).PixelData for path in found.files()}
    assert kept == {dcmread(path).PixelData for path in paths} and not found.told


def test_a_compressed_instance_is_kept_as_it_is_and_a_deflated_one_is_not_taken(tmp_path: Path) -> None:
    (path,) = write_instances(tmp_path / "sent", 1)
    header = dcmread(path)
    header.compress(RLELossless, generate_instance_uid=False)
    header.save_as(path)
    with listener(tmp_path) as found:
        entity = AE("SENDER")
        entity.add_requested_context(ComputedRadiographyImageStorage, RLELossless)
        entity.add_requested_context(ComputedRadiographyImageStorage, DeflatedExplicitVRLittleEndian)
        association = entity.associate("127.0.0.1", found.port, ae_title="MEDTL")
        assert store(association, path) == 0x0000
        assert [one.transfer_syntax for one in association.accepted_contexts] == [[RLELossless]]
        association.release()
    (kept,) = found.files()
    assert dcmread(kept).file_meta.TransferSyntaxUID == RLELossless
    assert dcmread(kept).PixelData == header.PixelData


@pytest.mark.parametrize(
    ("caller", "called", "result"),
    [("STRANGER", "MEDTL", 3), ("SENDER", "OTHER", 7)],
)
def test_other_titles_are_rejected_and_told(caller: str, called: str, result: int, tmp_path: Path) -> None:
    with listener(tmp_path) as found:
        association = associate(found.port, caller, called)
        assert association.is_rejected
        assert association.acceptor.primitive.diagnostic == result
        wait_until(lambda: bool(found.told))
    assert found.codes() == ["pacs-refused"]


def test_other_addresses_are_hung_up_on_before_a_word(tmp_path: Path) -> None:
    with listener(tmp_path, gate(networks=parse_networks(["10.0.0.0/8"]))) as found:
        assert not associate(found.port).is_established
    assert found.codes() == ["pacs-refused"] and "--allow-address" in str(found.told[0])


def test_more_associations_than_allowed_are_rejected(tmp_path: Path) -> None:
    with listener(tmp_path, gate(associations=1)) as found:
        first = associate(found.port)
        second = associate(found.port)
        assert first.is_established and second.is_rejected
        first.release()
        wait_until(lambda: bool(found.told))
    assert found.codes() == ["pacs-refused"]


def test_an_instance_over_the_limit_is_hung_up_on(tmp_path: Path) -> None:
    small, large = write_instances(tmp_path / "sent", 2)
    header = dcmread(large)
    header.Rows, header.Columns, header.PixelData = 1024, 1024, bytes(2 * MEGABYTE)
    header.save_as(large)
    with listener(tmp_path, gate(largest=MEGABYTE)) as found:
        association = associate(found.port)
        assert [store(association, path) for path in (small, large)] == [0x0000, None]
        again = associate(found.port)
        assert [store(again, small) for _ in range(3)] == [0x0000] * 3
        again.release()
    assert len(found.files()) == 1 and "pacs-refused" in found.codes()


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"StudyInstanceUID": None}, 0xC000),
        ({"StudyInstanceUID": ""}, 0xC000),
        ({"SeriesInstanceUID": ""}, 0xC000),
    ],
)
def test_a_data_set_without_its_uids_is_not_understood(changes: dict, status: int, tmp_path: Path) -> None:
    (path,) = write_instances(tmp_path / "sent", 1)
    header = dcmread(path)
    for keyword, value in changes.items():
        setattr(header, keyword, value)
    header.save_as(path)
    with listener(tmp_path) as found:
        association = associate(found.port)
        assert store(association, path) == status
        association.release()
    assert not found.files() and found.codes() == ["dicom-header"]


def send_raw(association: Association, content: bytes, instance: str) -> int:
    """Send bytes as a data set; return the status."""
    from io import BytesIO

    from pynetdicom.dimse_primitives import C_STORE

    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = ComputedRadiographyImageStorage, instance
    request.DataSet = BytesIO(content)
    contexts = [cx for cx in association.accepted_contexts if cx.abstract_syntax != Verification]
    association._reactor_checkpoint.clear()
    association.dimse.send_msg(request, contexts[0].context_id)
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    assert answer is not None
    return int(answer.Status)


@pytest.mark.parametrize(
    "content", [b"\xff" * 16, b"CANARY not DICOM", b"\x08\x00\x16\x00\xff\xff\xff\x7f1.2"]
)
def test_bytes_that_are_no_data_set_are_not_understood(content: bytes, tmp_path: Path) -> None:
    with listener(tmp_path) as found:
        association = associate(found.port)
        assert send_raw(association, content, "1.2.3") == 0xC000
        assert association.send_c_echo().Status == 0x0000  # the listener goes on
        association.release()
    assert not found.files() and found.codes() == ["dicom-header"]


def test_another_instance_than_announced_and_another_of_a_known_uid_have_their_status(tmp_path: Path) -> None:
    (first,) = write_instances(tmp_path / "first", 1)
    (other,) = write_instances(tmp_path / "other", 1, PatientID="CANARY-8")
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, True
    header = dcmread(first)
    write_dataset(buffer, header)
    with listener(tmp_path) as found:
        association = associate(found.port)
        assert send_raw(association, buffer.getvalue(), "1.2.3") == 0xA900
        assert [store(association, path) for path in (first, first, other)] == [0x0000, 0x0000, 0x0111]
        association.release()
    assert len(found.files()) == 1 and found.codes() == ["pacs-mismatch", "pacs-duplicate"]


def test_a_full_disk_is_answered_as_such_and_the_sender_may_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (path,) = write_instances(tmp_path / "sent", 1)
    with listener(tmp_path) as found:
        association = associate(found.port)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            assert store(association, path) == 0xA700
        assert not found.files()
        assert store(association, path) == 0x0000
        association.release()
    assert len(found.files()) == 1 and found.codes() == ["output-unwritable"]


def test_an_association_that_drops_within_an_instance_leaves_nothing_of_it(tmp_path: Path) -> None:
    first, second = write_instances(tmp_path / "sent", 2)
    header = dcmread(second)
    header.Rows, header.Columns, header.PixelData = 512, 512, bytes(512 * 512 * 2)
    header.save_as(second)
    with listener(tmp_path) as found:
        association = associate(found.port)
        assert store(association, first) == 0x0000
        sends = association.dul.socket.send
        count = iter(range(100))

        def send_a_part(pdu: bytes) -> None:
            if next(count) == 3:
                association.dul.socket.socket.shutdown(socket.SHUT_RDWR)
                association.dimse_timeout = 0.1  # no answer will come
            sends(pdu)

        association.dul.socket.send = send_a_part
        assert store(association, second) is None
        again = associate(found.port)
        assert again.send_c_echo().Status == 0x0000
        assert len(found.files()) == 1
        assert store(again, second) == 0x0000
        again.release()
    assert len(found.files()) == 2


def test_tls_lets_in_who_shows_a_certificate_and_a_silent_one_holds_up_nobody(tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    ours = Tls(files.certificate, files.key, files.authority)
    with listener(tmp_path, tls=ours) as found:
        with socket.create_connection(("127.0.0.1", found.port)):
            association = associate(found.port, tls_args=(client_tls(ours), "localhost"))
            assert association.send_c_echo().Status == 0x0000
            association.release()
        stranger = ssl.create_default_context(cafile=files.authority)
        stranger.load_cert_chain(files.stranger, files.stranger_key)
        for tls in (None, (stranger, "localhost")):
            assert not associate(found.port, tls_args=tls).is_established
        wait_until(lambda: len(found.told) >= 2)
    assert set(found.codes()) == {"pacs-refused"}


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with listener(tmp_path) as found:
        for host in ("127.0.0.1", "203.0.113.1"):
            second = listening(host, found.port, gate(), found.inbox.save, found.told.append, None)
            with pytest.raises(PacsError, match="pacs-port"), second:
                pass


def test_the_other_loopback_may_be_listened_on(tmp_path: Path) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    found = Listener(tmp_path)
    with listening("::1", 0, gate(), found.inbox.save, found.told.append, None) as port:
        entity = AE("SENDER")
        entity.add_requested_context(Verification)
        association = entity.associate("::1", port, ae_title="MEDTL")
        assert association.send_c_echo().Status == 0x0000
        association.release()


def test_the_end_does_not_wait_for_a_sender_that_says_nothing(tmp_path: Path) -> None:
    with listener(tmp_path, gate(idle=10 * PATIENCE)) as found:  # waiting for it would never end
        silent = socket.create_connection(("127.0.0.1", found.port))
        association = associate(found.port)
        assert association.is_established
    silent.close()
    wait_until(lambda: not association.is_established)


def test_the_end_does_not_wait_for_a_handshake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medtl.pacs.dimse_scp.HANDSHAKE_SECONDS", 10 * PATIENCE)
    files = make_certificates(tmp_path)
    ours = Tls(files.certificate, files.key, files.authority)
    with listener(tmp_path, tls=ours) as found:
        silent = socket.create_connection(("127.0.0.1", found.port))
        associate(found.port, tls_args=(client_tls(ours), "localhost")).release()  # accepted after it
    silent.close()  # the listener has ended before; waiting for the handshake, it would not


@pytest.mark.parametrize("begun", [b"", b"\x01\x00\x00", b"\x01\x00\x00\x00\x10\x00half"])
def test_half_a_message_holds_no_association(begun: bytes, tmp_path: Path) -> None:
    with listener(tmp_path, gate(idle=0.5, associations=1)) as found:
        with socket.create_connection(("127.0.0.1", found.port)) as connection:
            connection.sendall(begun)
            connection.settimeout(PATIENCE)
            assert connection.recv(10) == b""  # the listener hangs up
        wait_until(lambda: associate(found.port).is_established)


def test_an_association_that_falls_silent_is_ended(tmp_path: Path) -> None:
    with listener(tmp_path, gate(idle=0.5)) as found:
        association = associate(found.port)
        assert association.is_established
        wait_until(lambda: not association.is_established)


def dcmtk(tool: str, port: int, *arguments: object) -> int:
    path = shutil.which(tool, path=SYSTEM)
    if path is None:
        pytest.skip(f"{tool} is not on this machine (Debian: dcmtk)")
    command = [path, *map(str, arguments[:-1]), "-aet", "SENDER", "-aec", "MEDTL", "localhost", str(port)]
    tail = arguments[-1] if arguments else ()
    return subprocess.run([*command, *map(str, tail)], capture_output=True, timeout=PATIENCE).returncode


def test_dcmtk_sends_and_is_rejected_as_the_gate_says(tmp_path: Path) -> None:
    paths = write_instances(tmp_path / "sent", 5)
    files = make_certificates(tmp_path)
    with listener(tmp_path) as found:
        assert dcmtk("echoscu", found.port, ()) == 0
        assert dcmtk("storescu", found.port, paths) == 0
    assert len(found.files()) == 5 and not found.told
    with listener(tmp_path, gate(callers=("OTHER",))) as found:
        assert dcmtk("echoscu", found.port, ()) != 0
    ours = Tls(files.certificate, files.key, files.authority)
    secured = ("+tls", files.key, files.certificate, "+cf", files.authority)
    with listener(tmp_path, tls=ours) as found:
        assert dcmtk("echoscu", found.port, *secured, ()) == 0
        assert dcmtk("echoscu", found.port, ()) != 0


@pytest.mark.parametrize(
    "content",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x01\x00\x00\x00\x00\x04abcd",
        b"\x01\x00\xff\xff\xff\xff" + bytes(500),
        b"\x04\x00\x00\x00\x00\x04abcd",
        b"\x16\x03\x01\x02\x00\x01\x00",
        bytes(range(256)) * 8,
    ],
)
def test_bytes_that_are_no_association_end_their_connection_alone(
    content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with listener(tmp_path) as found:
        with socket.create_connection(("127.0.0.1", found.port)) as connection:
            connection.sendall(content)
        association = associate(found.port)
        assert association.send_c_echo().Status == 0x0000
        association.release()
    assert "Traceback" not in capfd.readouterr().err
