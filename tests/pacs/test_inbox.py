"""What is received: whole and on disk under a hashed name, or not there and not acknowledged."""

import errno
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom import dcmread

from medtl.core.files import replacing
from medtl.errors import OutputError, ReadError
from medtl.pacs.inbox import Inbox
from tests.pacs.peers import write_instances


def keep(inbox: Inbox, path: Path) -> None:
    header = dcmread(path)
    inbox.save(path.read_bytes(), header.SOPClassUID, header.SOPInstanceUID)


def kept(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    return Inbox(tmp_path / "inbox")


def test_bytes_are_kept_as_they_came_and_names_tell_nothing(inbox: Inbox, tmp_path: Path) -> None:
    sent = write_instances(tmp_path / "sent", 2)
    for path in [*sent, *sent]:  # a sender that missed an answer sends again
        keep(inbox, path)
    files = kept(tmp_path / "inbox")
    assert {path.read_bytes() for path in files} == {path.read_bytes() for path in sent}
    assert len(files) == 2 and len(inbox.arrivals) == 1
    told = " ".join(str(path.relative_to(tmp_path)) for path in files)
    assert dcmread(sent[0]).SOPInstanceUID not in told and dcmread(sent[0]).StudyInstanceUID not in told


@pytest.mark.parametrize("uid", ["../../escape", "/etc/cron.d/x", "..", "a\0b", "<script>", "1" * 200])
def test_no_uid_leads_out_of_the_folder(uid: str, inbox: Inbox, tmp_path: Path) -> None:
    (path,) = write_instances(tmp_path / "sent", 1)
    header = dcmread(path)
    header.StudyInstanceUID = uid
    header.save_as(path)
    keep(inbox, path)
    assert len(kept(tmp_path / "inbox")) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"inbox", "sent"}


def test_another_instance_under_a_known_uid_is_refused_and_the_first_stays(
    inbox: Inbox, tmp_path: Path
) -> None:
    (first,) = write_instances(tmp_path / "first", 1)
    (other,) = write_instances(tmp_path / "other", 1, PatientID="CANARY-8")
    keep(inbox, first)
    with pytest.raises(ReadError) as caught:
        keep(inbox, other)
    assert caught.value.code == "pacs-duplicate" and "CANARY" not in str(caught.value)
    assert [path.read_bytes() for path in kept(tmp_path / "inbox")] == [first.read_bytes()]


def test_of_two_that_come_at_once_under_one_uid_the_second_is_refused(
    inbox: Inbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def slowly(path: Path) -> Iterator[Path]:
        time.sleep(0.2)
        with replacing(path) as temporary:
            yield temporary

    monkeypatch.setattr("medtl.pacs.inbox.replacing", slowly)
    (first,) = write_instances(tmp_path / "first", 1)
    (other,) = write_instances(tmp_path / "other", 1, PatientID="CANARY-8")
    with ThreadPoolExecutor(2) as senders:
        ends = [senders.submit(keep, inbox, path) for path in (first, other)]
        (refused,) = filter(None, [end.exception() for end in ends])
    assert isinstance(refused, ReadError) and refused.code == "pacs-duplicate"
    assert len(kept(tmp_path / "inbox")) == 1


def test_the_same_data_set_is_known_whatever_wrote_the_file(inbox: Inbox, tmp_path: Path) -> None:
    (path,) = write_instances(tmp_path / "sent", 1)
    keep(inbox, path)
    before = path.read_bytes()
    header = dcmread(path)
    header.file_meta.ImplementationVersionName = "A LATER ONE"
    header.save_as(path)
    assert path.read_bytes() != before
    keep(inbox, path)
    assert [one.read_bytes() for one in kept(tmp_path / "inbox")] == [before]


@pytest.mark.parametrize("content", [b"", b"\0" * 128 + b"DICM", b"\0" * 128 + b"DICM" + b"\xff" * 999])
def test_what_is_no_dicom_is_refused(content: bytes, inbox: Inbox, tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="dicom-header"):
        inbox.save(content, "1.2", "1.3")
    assert not kept(tmp_path / "inbox")


def test_what_was_announced_as_something_else_is_refused(inbox: Inbox, tmp_path: Path) -> None:
    (path,) = write_instances(tmp_path / "sent", 1)
    with pytest.raises(ReadError, match="pacs-mismatch"):
        inbox.save(path.read_bytes(), dcmread(path).SOPClassUID, "1.2.3")
    assert not kept(tmp_path / "inbox")


def test_what_medtl_made_is_not_taken_for_a_study(inbox: Inbox, tmp_path: Path) -> None:
    keep(inbox, *write_instances(tmp_path / "sent", 1, Manufacturer="medtl"))
    assert not kept(tmp_path / "inbox") and not inbox.arrivals


def test_a_full_disk_leaves_nothing_and_is_told(
    inbox: Inbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (path,) = write_instances(tmp_path / "sent", 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            keep(inbox, path)
    assert not kept(tmp_path / "inbox") and not inbox.arrivals
    keep(inbox, path)
    assert len(kept(tmp_path / "inbox")) == 1


def test_after_a_kill_studies_are_seen_to_again_and_half_a_file_is_gone(inbox: Inbox, tmp_path: Path) -> None:
    keep(inbox, *write_instances(tmp_path / "sent", 1))
    (file,) = kept(tmp_path / "inbox")
    (file.parent / ".half.dcm.x1").write_bytes(b"half")
    again = Inbox(tmp_path / "inbox")
    assert kept(tmp_path / "inbox") == [file]
    assert again.arrivals.keys() == inbox.arrivals.keys()
    assert again.rested(0.0) == [file.parent.name] and not again.rested(60.0)


def test_a_study_is_done_unless_more_of_it_came(inbox: Inbox, tmp_path: Path) -> None:
    first, second = write_instances(tmp_path / "sent", 2)
    keep(inbox, first)
    ((study, since),) = inbox.arrivals.items()
    keep(inbox, second)
    inbox.done(study, since)
    assert inbox.rested(0.0) == [study]
    inbox.postpone(study, 60.0)
    assert not inbox.rested(0.0)
    inbox.done(study, inbox.arrivals[study])
    assert not inbox.arrivals
