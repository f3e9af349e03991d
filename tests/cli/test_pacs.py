"""medtl pacs: results go to a PACS once, studies come from it whole, and what is received is scored."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest
from pydicom import dcmread
from pydicom.uid import RLELossless

from medtl.cli import main
from medtl.core.journal import open_journal
from medtl.errors import PacsError
from medtl.pacs.instance import read_instance
from medtl.pacs.peer import DimsePeer, Tls, server_tls
from medtl.pacs.results import write_results
from tests.cli import jobs
from tests.cli.conftest import Trained
from tests.pacs.peers import (
    Orthanc,
    archive,
    free_port,
    make_certificates,
    orthanc,
    write_instances,
)
from tests.pacs.web import Answer, listing, part, serving, stored
from tests.waiting import PATIENCE, wait_until

pytest.importorskip("pynetdicom", reason="medtl[pacs] is not installed")
pytest.importorskip("requests", reason="medtl[pacs] is not installed")

NO_ADDRESSES = ("nowhere", "http://[::1", "http://a..b/d", "AE@a..b:104")
SYSTEM = "/usr/local/bin:/usr/bin"  # pynetdicom installs tools of the same names as dcmtk


@pytest.fixture
def running_orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    (tmp_path / "orthanc").mkdir()
    with orthanc(tmp_path / "orthanc") as found:
        yield found


def push(folder: Path, to: str, *more: object, exit_code: int = 0) -> str:
    """Push, and return what was printed, in which no patient is named."""
    result = jobs.medtl("pacs", "push", folder, "--to", to, *more)
    assert result.exit_code == exit_code, result.output
    assert "canary" not in result.output.lower().replace(str(folder).lower(), "")
    return result.output


def pull(out: Path, url: str, *more: object, exit_code: int = 0) -> str:
    result = jobs.medtl("pacs", "pull", "--from", url, "--out", out, *more)
    assert result.exit_code == exit_code, result.output
    assert "canary" not in result.output.lower()
    return result.stdout


# push


def test_what_was_acknowledged_is_not_sent_again(tmp_path: Path) -> None:
    write_instances(tmp_path / "out")
    with archive() as found:
        to = f"ARCHIVE@127.0.0.1:{found.port}"
        found.status = lambda number: 0xA700 if number == 1 else 0x0000
        told = push(tmp_path / "out", to, exit_code=3)
        assert "2 objects sent, 1 refused" in told and told.count("refused: [pacs-not-kept]") == 1
        assert "1 objects sent, 2 already there, 0 refused" in push(tmp_path / "out", to)
        assert "0 objects sent, 3 already there, 0 refused" in push(tmp_path / "out", to)
        assert len(found.received) == len(set(found.received)) == 3
        assert "3 objects sent, 0 refused" in push(tmp_path / "out", to, "--resend")
    with archive() as other:
        push(tmp_path / "out", f"ARCHIVE@localhost:{other.port}")
    assert len(other.received) == 3  # another PACS has its own memory


def test_an_object_that_changed_is_sent_again(tmp_path: Path) -> None:
    write_instances(tmp_path / "out", 2)
    with archive() as found:
        to = f"ARCHIVE@127.0.0.1:{found.port}"
        push(tmp_path / "out", to)
        write_instances(tmp_path / "out", 1, PatientID="P2")
        assert "1 objects sent, 1 already there" in push(tmp_path / "out", to)


def test_a_dropped_association_loses_nothing(tmp_path: Path) -> None:
    write_instances(tmp_path / "out", 4)
    with archive() as found:
        to = f"ARCHIVE@127.0.0.1:{found.port}"
        found.status = lambda number: -1 if number == 2 else 0x0000
        assert "[pacs-unreachable]" in push(tmp_path / "out", to, exit_code=1)
        assert "2 objects sent, 2 already there" in push(tmp_path / "out", to)
    assert len(found.received) == 4


def test_a_file_that_goes_while_others_are_sent_is_a_line(tmp_path: Path) -> None:
    sent = write_instances(tmp_path / "out", 3)

    def go(_: int) -> int:
        sent[1].unlink(missing_ok=True)
        return 0x0000

    with archive() as found:
        found.status = go
        told = push(tmp_path / "out", f"ARCHIVE@127.0.0.1:{found.port}", exit_code=3)
    assert "2 objects sent, 1 refused" in told and told.count("refused: [file-missing]") == 1
    uids = [dcmread(path).SOPInstanceUID for path in write_instances(tmp_path / "out", 3)]
    with serving() as server:
        server.answer = lambda *_: stored(*uids, status=200 + go(0))
        told = push(tmp_path / "out", server.url, exit_code=3)
    assert "2 objects sent, 1 refused" in told and told.count("refused: [file-missing]") == 1


def test_damaged_and_other_files_are_told_or_left_out(tmp_path: Path) -> None:
    first, second = write_instances(tmp_path / "out", 2)
    second.write_bytes(b"<script>=cmd()")
    (tmp_path / "out/results.csv").write_text("no DICOM")
    (tmp_path / "out/link.dcm").symlink_to(first)
    with archive() as found:
        told = push(tmp_path / "out", f"ARCHIVE@127.0.0.1:{found.port}", exit_code=3)
    assert "1 objects sent, 1 refused" in told and "refused: [dicom-header]" in told
    assert len(found.received) == 1


def test_push_says_in_a_line_what_is_wrong(tmp_path: Path) -> None:
    write_instances(tmp_path / "out", 1)
    (tmp_path / "empty").mkdir()
    nobody = f"ARCHIVE@127.0.0.1:{free_port()}"
    for folder, to, code in (
        ("out", nobody, "pacs-unreachable"),
        ("out", nobody.replace("ARCHIVE@127.0.0.1", "http://127.0.0.1"), "pacs-unreachable"),
        ("empty", nobody, "folder-empty"),
        ("absent", nobody, "file-missing"),
    ):
        assert jobs.fault(jobs.medtl("pacs", "push", tmp_path / folder, "--to", to)) == code
    for more in (("--to", nobody, "--ae", "A" * 17), *(("--to", to) for to in NO_ADDRESSES)):
        assert jobs.fault(jobs.medtl("pacs", "push", tmp_path / "out", *more), exit_code=2) == "pacs-address"
    assert jobs.medtl("pacs", "push", tmp_path / "out").exit_code == 2


def test_one_process_pushes_a_folder(tmp_path: Path) -> None:
    write_instances(tmp_path / "out", 1)
    with open_journal(tmp_path / "out/.medtl-pushed"):
        result = jobs.medtl("pacs", "push", tmp_path / "out", "--to", f"A@127.0.0.1:{free_port()}")
    assert jobs.fault(result) == "run-locked"


def test_tls_options_reach_the_association(tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    write_instances(tmp_path / "out", 1)
    with archive(server_tls(Tls(files.certificate, files.key, files.authority))) as found:
        to = f"ARCHIVE@localhost:{found.port}"
        push(tmp_path / "out", to, exit_code=1)
        options = ("--tls-cert", files.certificate, "--tls-key", files.key, "--tls-ca", files.authority)
        assert "1 objects sent" in push(tmp_path / "out", to, *options)


def test_a_key_without_its_certificate_is_refused(tmp_path: Path) -> None:
    write_instances(tmp_path / "out", 1)
    key = ("--tls-key", make_certificates(tmp_path).key)
    for command in (
        ("push", tmp_path / "out", "--to", "A@127.0.0.1:1"),
        ("pull", "--from", "https://127.0.0.1:1", "--out", tmp_path / "in"),
        (*["listen", "--ae", "MEDTL", "--port", "0", "--allow-ae", "A", "--out"], tmp_path / "got"),
    ):
        result = jobs.medtl("pacs", *command, *key)
        assert result.exit_code == 2 and "--tls-key needs --tls-cert" in result.stderr


def test_without_the_extra_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_instances(tmp_path / "out", 1)
    for name in ("pynetdicom", "requests", "medtl.pacs.dimse_scu", "medtl.pacs.dicomweb"):
        monkeypatch.setitem(sys.modules, name, None)
    for to in ("A@127.0.0.1:104", "http://127.0.0.1:1"):
        result = jobs.medtl("pacs", "push", tmp_path / "out", "--to", to)
        assert jobs.fault(result) == "extra-missing" and "medtl[pacs]" in result.stderr


# with Orthanc


def test_results_go_to_orthanc_once_by_either_way(
    running_orthanc: Orthanc, trained: Trained, tmp_path: Path
) -> None:
    jobs.write_radiograph(tmp_path / "in/a.dcm", 1)
    assert jobs.medtl("results", trained.run, tmp_path / "in", "--out", tmp_path / "out").exit_code == 0
    results = tmp_path / "out/dicom"
    assert "2 objects sent, 0 refused" in push(results, running_orthanc.url)
    assert running_orthanc.count() == 2
    assert "0 objects sent, 2 already there" in push(results, running_orthanc.url)
    assert "2 objects sent" in push(results, f"ORTHANC@127.0.0.1:{running_orthanc.port}")
    assert running_orthanc.count() == 2


def test_studies_come_from_orthanc_as_the_bytes_that_it_has(running_orthanc: Orthanc, tmp_path: Path) -> None:
    sent = [
        *write_instances(tmp_path / "a", 3, study=1),
        *write_instances(tmp_path / "b", 2, study=2, StudyDate="20250101"),
        *write_instances(tmp_path / "c", 2, study=3, Modality="MR"),
    ]
    push(tmp_path, running_orthanc.url)
    query = ("--modality", "CR", "--date", "20260101-")
    assert pull(tmp_path / "out", running_orthanc.url, *query).startswith("1 study, 3 instances fetched")
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.read_bytes() for path in files} == {path.read_bytes() for path in sent[:3]}
    told = " ".join(map(str, files))
    assert not [one for one in sent if dcmread(one).SOPInstanceUID in told]
    files[0].unlink()
    assert "1 instances fetched, 2 already there" in pull(tmp_path / "out", running_orthanc.url, *query)
    study = dcmread(sent[3]).StudyInstanceUID
    assert "1 study, 2 instances" in pull(tmp_path / "one", running_orthanc.url, "--study", study)
    assert pull(tmp_path / "two", running_orthanc.url, "--limit", 2).startswith("2 studies")
    assert "matches this query" in pull(tmp_path / "none", running_orthanc.url, "--modality", "CT")


def test_studies_come_from_orthanc_by_c_get_in_their_transfer_syntax(
    running_orthanc: Orthanc, tmp_path: Path
) -> None:
    plain, packed = write_instances(tmp_path / "a", 2, study=1)
    write_instances(tmp_path / "b", 2, study=2, StudyDate="20250101")
    header = dcmread(packed)
    header.compress(RLELossless, generate_instance_uid=False)
    header.save_as(packed)
    push(tmp_path, running_orthanc.url)
    archive_of = f"ORTHANC@127.0.0.1:{running_orthanc.port}"
    told = pull(tmp_path / "out", archive_of, "--modality", "CR", "--date", "20260101-")
    assert told.startswith("1 study, 2 instances fetched, 0 already there, 0 refused")
    found = {dcmread(one).SOPInstanceUID: dcmread(one) for one in (tmp_path / "out").rglob("*.dcm")}
    for path in (plain, packed):
        sent = dcmread(path)
        assert found[sent.SOPInstanceUID].PixelData == sent.PixelData
        assert found[sent.SOPInstanceUID].file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
    assert "0 instances fetched, 2 already there" in pull(tmp_path / "out", archive_of, "--date", "20260101-")
    assert pull(tmp_path / "one", archive_of, "--limit", 1).startswith("1 study, 2 instances")


def test_pull_says_in_a_line_what_is_wrong(tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    for more, code in (((), "pacs-unreachable"), (("--date", "yesterday"), "config-value")):
        result = jobs.medtl("pacs", "pull", "--from", nobody, "--out", tmp_path / "out", *more)
        assert jobs.fault(result) == code
    bad = jobs.medtl("pacs", "pull", "--from", nobody, "--out", tmp_path, "--study", "../x")
    assert jobs.fault(bad) == "config-value"
    for source in NO_ADDRESSES:
        result = jobs.medtl("pacs", "pull", "--from", source, "--out", tmp_path / "out")
        assert jobs.fault(result, exit_code=2) == "pacs-address"
    absent = f"A@127.0.0.1:{free_port()}"
    result = jobs.medtl("pacs", "pull", "--from", absent, "--out", tmp_path / "out")
    assert jobs.fault(result) == "pacs-unreachable"


def web_answers(instances: list[Path], at_retrieval: Callable[[int], Answer | None]) -> Callable:
    """Answer as a PACS that has one series; at_retrieval: another answer to the n-th retrieval."""
    headers = [dcmread(path) for path in instances]
    counts = iter(range(100))

    def answer(_: str, path: str) -> Answer:
        name, _, query = path.removeprefix("/dicom-web/").partition("?")
        if not query:
            uid = name.rsplit("/", 1)[1]
            (index,) = (k for k, header in enumerate(headers) if uid == header.SOPInstanceUID)
            return at_retrieval(next(counts)) or part(instances[index].read_bytes())
        if "offset=0" not in query:
            return Answer(204)
        tag, keyword = {
            "studies": ("0020000D", "StudyInstanceUID"),
            "series": ("0020000E", "SeriesInstanceUID"),
            "instances": ("00080018", "SOPInstanceUID"),
        }[name.rsplit("/", 1)[-1]]
        return listing(*dict.fromkeys(header[keyword].value for header in headers), tag=tag)

    return answer


def test_a_pull_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    sent = write_instances(tmp_path / "in", 4)
    with serving() as server:
        server.answer = web_answers(sent, lambda number: Answer(0) if number == 2 else None)
        result = jobs.medtl("pacs", "pull", "--from", server.url, "--out", tmp_path / "out")
        assert jobs.fault(result) == "pacs-unreachable"
        assert len([*(tmp_path / "out").rglob("*.dcm")]) == 2
        assert "2 instances fetched, 2 already there" in pull(tmp_path / "out", server.url)


def test_another_instance_than_was_asked_for_is_a_line(tmp_path: Path) -> None:
    sent = write_instances(tmp_path / "in", 3)
    odd = {0: part(sent[2].read_bytes()), 1: part(b"<script>=cmd()")}
    with serving() as server:
        server.answer = web_answers(sent, odd.get)
        result = jobs.medtl("pacs", "pull", "--from", server.url, "--out", tmp_path / "out")
    assert result.exit_code == 3 and "1 instances fetched, 0 already there, 2 refused" in result.stdout
    assert "refused: [pacs-mismatch]" in result.stderr and "refused: [dicom-header]" in result.stderr
    assert "canary" not in result.output.lower()


def test_a_full_disk_ends_a_pull_with_whole_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with serving() as server:
        server.answer = web_answers(write_instances(tmp_path / "in", 2), lambda _: None)
        with monkeypatch.context() as patch:
            patch.setattr("medtl.core.files.os.fsync", full)
            result = jobs.medtl("pacs", "pull", "--from", server.url, "--out", tmp_path / "out")
        assert jobs.fault(result) == "output-unwritable"
        assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_between_two_instances_keeps_those_before(number: int, code: int, tmp_path: Path) -> None:
    sent = write_instances(tmp_path / "in", 4)

    def stop_at(count: int) -> None:
        if count == 1:
            os.kill(os.getpid(), number)

    with serving() as server:
        server.answer = web_answers(sent, stop_at)
        result = jobs.medtl("pacs", "pull", "--from", server.url, "--out", tmp_path / "out")
        assert result.exit_code == code and "medtl: [interrupted]" in result.stderr
        assert 1 <= len([*(tmp_path / "out").rglob("*.dcm")]) < 4
        pull(tmp_path / "out", server.url)
    assert len([*(tmp_path / "out").rglob("*.dcm")]) == 4
    with archive() as found:
        to = f"ARCHIVE@127.0.0.1:{found.port}"
        found.status = lambda count: stop_at(count) or 0x0000
        result = jobs.medtl("pacs", "push", tmp_path / "in", "--to", to)
        assert result.exit_code == code and "medtl: [interrupted]" in result.stderr
        push(tmp_path / "in", to)
    assert sorted(found.received) == sorted({dcmread(path).SOPInstanceUID for path in sent})


# listen


class Listener:
    """A listener in a process of its own."""

    def __init__(self, out: Path, *more: object) -> None:
        self.out, self.port = out, free_port()
        self.log = out.parent / "listener.log"
        self.command = ("pacs", "listen", "--ae", "MEDTL", "--port", self.port, "--out", out, "--allow-ae")
        self.more = ("SENDER", "--settle", "0.5", *more)
        self.child = 0

    def start(self) -> None:
        """Fork it, and wait until it listens."""
        begun = self.said().count("listening")
        self.child = os.fork()
        if not self.child:
            try:
                with self.log.open("a", buffering=1) as log:
                    sys.stdout = sys.stderr = log
                    main([str(part) for part in (*self.command, *self.more)])
            except SystemExit as end:
                os._exit(int(end.code or 0))
            finally:
                os._exit(99)
        wait_until(lambda: self.said().count("listening") > begun)

    def end(self, number: int) -> int:
        """Send a signal, and return the exit code, minus the signal where that ended it."""
        os.kill(self.child, number)
        ended, self.child = os.waitpid(self.child, 0)[1], 0
        return os.waitstatus_to_exitcode(ended)

    def said(self) -> str:
        """Return what it printed so far, in which there is no traceback and no patient."""
        text = self.log.read_text() if self.log.exists() else ""
        assert "Traceback" not in text, text
        assert "canary^" not in text.lower() and "canary-" not in text.lower(), text
        return text

    def rows(self) -> list[dict[str, str]]:
        """Return the rows of all results, a study's in the folder of its own."""
        tables = sorted((self.out / "results").glob("*/results.csv"))
        return [row for table in tables for row in jobs.read_rows(table)]


@pytest.fixture
def listeners() -> Iterator[list[Listener]]:
    """Listeners to be ended, whatever becomes of the test."""
    found: list[Listener] = []
    yield found
    for one in found:
        if one.child:
            one.end(signal.SIGKILL)


def storescu(port: int, paths: list[Path]) -> int:
    """Send files with dcmtk; return its exit code."""
    tool = shutil.which("storescu", path=SYSTEM)
    if tool is None:
        pytest.skip("storescu is not on this machine (Debian: dcmtk)")
    command = [tool, "-aet", "SENDER", "-aec", "MEDTL", "127.0.0.1", str(port), *map(str, paths)]
    return subprocess.run(command, capture_output=True, timeout=PATIENCE).returncode


def send(port: int, paths: list[Path], tls: Tls | None = None) -> None:
    """Send files from this process; each must be acknowledged."""
    from medtl.pacs.dimse_scu import c_store

    peer = DimsePeer("MEDTL", "127.0.0.1", port)
    assert not [why for _, why in c_store(peer, [*map(read_instance, paths)], tls, "SENDER") if why]


def radiographs(folder: Path, count: int) -> list[Path]:
    return [jobs.write_radiograph(folder / f"{row:02d}.dcm", row) for row in range(count)]


def test_what_is_received_is_scored_and_results_are_sent_on_once(
    trained: Trained, tmp_path: Path, listeners: list[Listener]
) -> None:
    with archive() as found:
        to = f"ARCHIVE@127.0.0.1:{found.port}"
        listener = Listener(tmp_path / "out", "--score", trained.run, "--send-to", to)
        listeners.append(listener)
        listener.start()
        sent = radiographs(tmp_path / "in", 3)
        send(listener.port, sent)
        wait_until(lambda: listener.said().count("sent   ") == 3)
        assert listener.end(signal.SIGTERM) == 143
        assert "[interrupted]" in listener.said()
        listener.start()  # all is done: nothing is scored or sent again
        send(listener.port, sent[:1])
        send(listener.port, radiographs(tmp_path / "more", 4)[3:])
        wait_until(lambda: listener.said().count("sent   ") == 4)
        assert listener.end(signal.SIGINT) == 130
    assert len(found.received) == len(set(found.received)) == 8  # a report and a picture a study
    assert [row["status"] for row in listener.rows()] == ["scored"] * 4
    assert listener.said().count("scored ") == 4


def test_a_study_that_grows_keeps_its_objects_and_sends_those_of_today_alone(
    trained_3d: Trained, tmp_path: Path, listeners: list[Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medtl.pacs.listen.RETRY_SECONDS", 0.5)
    monkeypatch.setattr("medtl.pacs.listen.LONGEST_RETRY", 0.5)
    first, second = (
        sorted(jobs.write_volume(tmp_path / name, 1, 1, FrameOfReferenceUID="1.2").glob("*.dcm"))
        for name in ("first", "second")
    )
    objects = tmp_path / "out/results"
    with archive() as found:
        found.status = lambda _: 0xA700  # until the study has grown
        to = f"ARCHIVE@127.0.0.1:{found.port}"
        listener = Listener(tmp_path / "out", "--score", trained_3d.run, "--send-to", to)
        listeners.append(listener)
        listener.start()
        send(listener.port, first[:7])
        wait_until(lambda: listener.said().count("scored ") == 1)
        short = {path: path.read_bytes() for path in objects.rglob("*.dcm")}
        send(listener.port, first[7:])
        wait_until(lambda: listener.said().count("scored ") == 2)
        whole = {path: path.read_bytes() for path in objects.rglob("*.dcm") if path not in short}
        found.status = lambda _: 0x0000
        wait_until(lambda: listener.said().count("sent   ") == 1)
        assert set(found.received) == {dcmread(path).SOPInstanceUID for path in whole}
        send(listener.port, second)
        wait_until(lambda: listener.said().count("sent   ") == 2)
    assert len(short) == len(whole) == 3 and all(path.read_bytes() == whole[path] for path in whole)
    assert (
        len(found.received) == len(set(found.received)) == 6
    )  # what was sent of the first is not sent again
    assert len(listener.rows()) == 2


def test_another_pacs_kind_or_model_is_not_taken_for_what_was_done(
    trained: Trained, tmp_path: Path, listeners: list[Listener]
) -> None:
    other = Path(shutil.copytree(trained.run, tmp_path / "other run"))
    header = next(other.glob("checkpoints/best/checkpoint.json"))
    facts = json.loads(header.read_text())
    header.write_text(json.dumps({**facts, "thresholds": [0.123]}))
    with archive() as one, archive() as two:
        first, second = (("--send-to", f"ARCHIVE@127.0.0.1:{found.port}") for found in (one, two))
        asked = [
            ("--score", trained.run, "--kind", "sr", *first),
            ("--score", trained.run, "--kind", "sr", *second),
            ("--score", trained.run, *second),
            ("--score", other, *second),
        ]
        for count, more in enumerate(asked, start=1):
            listener = Listener(tmp_path / "out", *more)
            listeners.append(listener)
            listener.start()
            if count == 1:
                send(listener.port, radiographs(tmp_path / "in", 1))
            wait_until(lambda: listener.said().count("sent   ") == count)  # noqa: B023
            assert listener.end(signal.SIGTERM) == 143
    assert [len(one.received), len(two.received)] == [1, 4]
    assert one.received[0] == two.received[0] and len(set(two.received)) == 4


def test_the_model_is_loaded_once(trained: Trained, tmp_path: Path, listeners: list[Listener]) -> None:
    run = Path(shutil.copytree(trained.run, tmp_path / "run"))
    listener = Listener(tmp_path / "out", "--score", run)
    listeners.append(listener)
    listener.start()
    shutil.rmtree(run)
    send(listener.port, radiographs(tmp_path / "in", 2))
    wait_until(lambda: listener.said().count("scored ") == 2)
    assert "fault" not in listener.said()


def test_tls_is_spoken_on_both_sides(trained: Trained, tmp_path: Path, listeners: list[Listener]) -> None:
    files = make_certificates(tmp_path)
    ours = Tls(files.certificate, files.key, files.authority)
    named = ("--tls-cert", files.certificate, "--tls-key", files.key, "--tls-ca", files.authority)
    with archive(server_tls(ours)) as found:
        to = ("--send-to", f"ARCHIVE@localhost:{found.port}", "--send-tls-ca", files.authority)
        listener = Listener(tmp_path / "out", "--score", trained.run, *named, *to)
        listeners.append(listener)
        listener.start()
        sent = radiographs(tmp_path / "in", 1)
        with pytest.raises(PacsError):
            send(listener.port, sent)
        send(listener.port, sent, ours)
        wait_until(lambda: listener.said().count("sent   ") == 1)
    assert len(found.received) == 2


def test_results_wait_until_the_pacs_is_back(
    trained: Trained, tmp_path: Path, listeners: list[Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medtl.pacs.listen.RETRY_SECONDS", 0.5)
    monkeypatch.setattr("medtl.pacs.listen.LONGEST_RETRY", 0.5)
    with archive() as found:
        found.status = lambda number: 0xA700 if number < 3 else 0x0000
        to = f"ARCHIVE@127.0.0.1:{found.port}"
        listener = Listener(tmp_path / "out", "--score", trained.run, "--send-to", to)
        listeners.append(listener)
        listener.start()
        send(listener.port, radiographs(tmp_path / "in", 1))
        wait_until(lambda: listener.said().count("sent   ") == 1)
    assert "Out of Resources" in listener.said() and listener.said().count("scored ") == 1
    assert len(found.received) == len(set(found.received)) == 2


def test_a_study_that_cannot_be_scored_is_a_line_and_the_others_go_on(
    trained: Trained, tmp_path: Path, listeners: list[Listener]
) -> None:
    listener = Listener(tmp_path / "out", "--score", trained.run)
    listeners.append(listener)
    listener.start()
    short = jobs.write_radiograph(tmp_path / "in/short.dcm", 1)
    header = dcmread(short)
    header.PixelData = header.PixelData[:-80]
    header.save_as(short)
    good = jobs.write_radiograph(tmp_path / "in/good.dcm", 2)
    send(listener.port, [short, good])
    wait_until(lambda: len(listener.rows()) == 2)
    assert sorted(row["status"] for row in listener.rows()) == ["refused", "scored"]
    wait_until(lambda: "[dicom-truncated]" in listener.said())


def test_whatever_a_study_does_to_a_library_it_waits_and_the_others_go_on(
    trained: Trained, tmp_path: Path, listeners: list[Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))

    def fail_first(*arguments: object, **options: object) -> object:
        if next(calls) == 0:
            raise RuntimeError("Canary^Kim made the library fail")
        return write_results(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("medtl.pacs.listen.write_results", fail_first)
    monkeypatch.setattr("medtl.pacs.listen.RETRY_SECONDS", 1.0)
    listener = Listener(tmp_path / "out", "--score", trained.run)
    listeners.append(listener)
    listener.start()
    send(listener.port, radiographs(tmp_path / "in", 2))
    wait_until(lambda: listener.said().count("scored ") == 2)
    assert listener.said().count("scoring failed (RuntimeError); next try in 1 s") == 1


def test_a_study_that_ends_the_process_again_and_again_is_left_alone(
    trained: Trained, tmp_path: Path, listeners: list[Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("medtl.pacs.listen.MOST_TRIES", 2)
    listener = Listener(tmp_path / "out", "--score", trained.run)
    listeners.append(listener)
    with monkeypatch.context() as patch:
        patch.setattr("medtl.pacs.listen.write_results", die)
        for _ in range(2):
            listener.start()
            if not [*(tmp_path / "out/inbox").rglob("*.dcm")]:
                send(listener.port, radiographs(tmp_path / "in", 1))
            assert os.WTERMSIG(os.waitpid(listener.child, 0)[1]) == signal.SIGKILL
            listener.child = 0
    listener.start()
    wait_until(lambda: "[pacs-given-up]" in listener.said())
    send(listener.port, radiographs(tmp_path / "more", 2)[1:])
    wait_until(lambda: listener.said().count("scored ") == 1)


def test_volumes_from_several_senders_at_once_are_scored_whole(
    trained_3d: Trained, tmp_path: Path, listeners: list[Listener]
) -> None:
    listener = Listener(tmp_path / "out", "--score", trained_3d.run)
    listeners.append(listener)
    listener.start()
    folders = [jobs.write_volume(tmp_path / f"in/{k}", k, k % 2, FrameOfReferenceUID="1.2") for k in range(4)]
    threads = [Thread(target=send, args=(listener.port, sorted(one.glob("*.dcm")))) for one in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: len(listener.rows()) == 4)
    assert all(row["status"] == "scored" and row["map"] for row in listener.rows())
    assert len([*(tmp_path / "out/inbox").rglob("*.dcm")]) == 4 * 8


def test_results_that_come_back_are_not_scored(
    trained: Trained, tmp_path: Path, listeners: list[Listener]
) -> None:
    sent = radiographs(tmp_path / "in", 1)
    assert jobs.medtl("results", trained.run, tmp_path / "in", "--out", tmp_path / "made").exit_code == 0
    listener = Listener(tmp_path / "out", "--score", trained.run)
    listeners.append(listener)
    listener.start()
    send(listener.port, sent)
    send(listener.port, sorted((tmp_path / "made/dicom").glob("*.dcm")))
    wait_until(lambda: bool(listener.rows()))
    assert len([*(tmp_path / "out/inbox").rglob("*.dcm")]) == 1


def test_the_archive_of_a_hospital_in_and_out(
    trained: Trained, tmp_path: Path, listeners: list[Listener]
) -> None:
    """storescu -> medtl -> Orthanc by STOW-RS: a study has its images there, and its results once."""
    (tmp_path / "orthanc").mkdir()
    with orthanc(tmp_path / "orthanc") as found:
        sent = radiographs(tmp_path / "in", 3)
        push(tmp_path / "in", found.url)
        listener = Listener(tmp_path / "out", "--score", trained.run, "--send-to", found.url)
        listeners.append(listener)
        listener.start()
        assert storescu(listener.port, sent) == 0
        wait_until(lambda: listener.said().count("sent   ") == 3)
        assert (found.count("studies"), found.count()) == (3, 9)


def test_a_killed_listener_loses_no_acknowledged_instance_and_scores_each_study_once(
    trained: Trained, tmp_path: Path, listeners: list[Listener]
) -> None:
    drawn, studies = random.Random(0), 8
    sent = radiographs(tmp_path / "in", studies)
    acknowledged: list[Path] = []
    with archive() as found:
        to = f"ARCHIVE@127.0.0.1:{found.port}"
        listener = Listener(tmp_path / "out", "--score", trained.run, "--send-to", to, "--kind", "sr")
        listeners.append(listener)
        for kills in range(4):
            listener.start()
            until = time.monotonic() + drawn.uniform(0.1, 1.5)
            while time.monotonic() < until:
                path = sent[len(acknowledged) % studies]
                if len(acknowledged) < (kills + 1) * studies // 4:
                    send(listener.port, [path])
                    acknowledged.append(path)
            listener.end(signal.SIGKILL)
            kept = {dcmread(one).SOPInstanceUID for one in (tmp_path / "out/inbox").rglob("*.dcm")}
            assert {dcmread(one).SOPInstanceUID for one in acknowledged} <= kept
        listener.start()
        send(listener.port, sent)
        wait_until(lambda: listener.said().count("sent   ") >= studies)
        wait_until(lambda: len(found.received) >= studies)
    assert len(listener.rows()) == studies
    assert {row["status"] for row in listener.rows()} == {"scored"}
    assert len(set(found.received)) == studies


def test_a_listener_killed_while_dcmtk_sends_keeps_what_it_acknowledged(
    tmp_path: Path, listeners: list[Listener]
) -> None:
    sent = write_instances(tmp_path / "in", 60)
    listener = Listener(tmp_path / "out")
    listeners.append(listener)
    tool = shutil.which("storescu", path=SYSTEM)
    if tool is None:
        pytest.skip("storescu is not on this machine (Debian: dcmtk)")
    for seconds in (0.05, 0.1, 0.2, 0.4):
        listener.start()
        command = [tool, "-v", "-aet", "SENDER", "-aec", "MEDTL", "127.0.0.1", str(listener.port)]
        sender = subprocess.Popen(
            [*command, *map(str, sent)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        time.sleep(seconds)
        listener.end(signal.SIGKILL)
        answers = sender.communicate(timeout=PATIENCE)[0].count("Success")
        kept = {dcmread(one).SOPInstanceUID for one in (tmp_path / "out/inbox").rglob("*.dcm")}
        assert {dcmread(one).SOPInstanceUID for one in sent[:answers]} <= kept
    listener.start()
    assert storescu(listener.port, sent) == 0
    assert len([*(tmp_path / "out/inbox").rglob("*.dcm")]) == 60
    assert not [*(tmp_path / "out/inbox").rglob(".*")]


def test_listen_says_in_a_line_what_is_wrong(trained: Trained, tmp_path: Path) -> None:
    base = ("pacs", "listen", "--ae", "MEDTL", "--port", "0", "--out", tmp_path / "out")
    assert jobs.medtl(*base).exit_code == 2  # nobody is let in by default
    allowed = (*base, "--allow-ae", "SENDER")
    assert jobs.medtl(*allowed, "--bind", "0.0.0.0").exit_code == 2
    assert jobs.medtl(*allowed, "--send-to", "A@b:1").exit_code == 2
    assert jobs.medtl(*allowed, "--score", trained.run, "--kind", "fhir", "--send-to", "A@b:1").exit_code == 2
    files = make_certificates(tmp_path)
    assert jobs.medtl(*allowed, "--tls-ca", files.authority).exit_code == 2
    for more, code in (
        (("--score", tmp_path / "no run"), "run-missing"),
        (("--bind", "203.0.113.1", "--allow-address", "10.0.0.0/8"), "pacs-port"),
        (("--tls-cert", files.certificate, "--tls-key", files.stranger_key), "pacs-tls"),
    ):
        assert jobs.fault(jobs.medtl(*allowed, *more)) == code
    for more in (
        ("--allow-address", "everyone"),
        ("--bind", "a..b", "--allow-address", "10.0.0.0/8"),
        *(("--score", trained.run, "--send-to", to) for to in NO_ADDRESSES),
    ):
        assert jobs.fault(jobs.medtl(*allowed, *more), exit_code=2) == "pacs-address"
    with open_journal(tmp_path / "out/listener"):
        assert jobs.fault(jobs.medtl(*allowed)) == "run-locked"
