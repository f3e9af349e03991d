"""What libraries say of a file is never shown, with --debug or without; and none of them calls its maker."""

import logging
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from pydicom import dcmread

from medtl.core.library_warnings import PlaceHandler
from tests.cli import canaries, jobs
from tests.cli.conftest import Trained

# Malformed in ways that pydicom, nibabel and pillow quote in their warnings.
MALFORMED = {
    "PatientBirthDate": "Xqname, 1977",
    "PatientAge": "Xqname years",
    "PatientName": "Xqname" * 20,
    "PatientID": "Xqname\\Xqname",
    "StudyTime": "xqname",
    "PatientWeight": "Xqname kg",
    "AccessionNumber": "Xqname" * 9,
    "WindowCenter": "Xqname",
    "SpecificCharacterSet": "XQNAME 6",
    "FrameOfReferenceUID": "1.2.Xqname",
}

SET_BY_MEDTL = (
    "DO_NOT_TRACK",
    "HF_HUB_DISABLE_TELEMETRY",
    "ORT_DISABLE_TELEMETRY",
    "RAY_USAGE_STATS_ENABLED",
)


def malformed(folder: Path) -> Path:
    """Write a radiograph whose header breaks the rules of its value representations."""
    path = jobs.write_radiograph(folder / "a.dcm")
    dataset = dcmread(path)
    with canaries.unchecked(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword, value in MALFORMED.items():
            dataset.add_new(keyword, "LO" if keyword == "PatientWeight" else "LT", value)
        dataset.save_as(path, enforce_file_format=True)
    return folder


def in_a_process(*arguments: str | Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, whose standard error holds whatever any library wrote.

    The user has set nothing about telemetry, and has an empty home.
    """
    home.mkdir()
    own = {name: value for name, value in os.environ.items() if name not in SET_BY_MEDTL}
    return subprocess.run(
        [sys.executable, "-m", "tests.cli.jobs", *map(str, arguments)],
        cwd=jobs.ROOT,
        env={**own, "MEDTL_HOME": str(home / "medtl"), "HOME": str(home), "XDG_CACHE_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_warnings_of_libraries_quote_no_header(trained: Trained, tmp_path: Path) -> None:
    folder = malformed(tmp_path / "in")
    arguments = ["results", trained.run, folder, "--out", tmp_path / "out"]
    done = in_a_process("--debug", *arguments, home=tmp_path / "home")
    assert done.returncode in (0, 3), done.stderr
    assert "xqname" not in (done.stdout + done.stderr).lower()
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("debug", [False, True])
def test_of_a_warning_the_place_is_shown_and_no_word(debug: bool, capsys: pytest.CaptureFixture[str]) -> None:
    from medtl.core.library_warnings import quieten_libraries

    before = logging.lastResort, warnings.showwarning
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            quieten_libraries(debug)
            warnings.warn("Invalid value for VR DA: 'Xqname'", UserWarning, stacklevel=1)
    finally:
        logging.lastResort, warnings.showwarning = before
    told = capsys.readouterr().err
    assert ("UserWarning at cli/test_library_warnings.py:" in told) == debug and "Xqname" not in told


@pytest.mark.parametrize("debug", [False, True])
def test_of_a_log_line_the_place_is_shown_and_medtls_own_words(
    debug: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = PlaceHandler(debug)
    for name, words in (("pydicom.values", "Xqname"), ("medtl.imaging", "left out\x1b[2J")):
        handler.emit(logging.LogRecord(name, logging.WARNING, "/x/pydicom/charset.py", 7, words, (), None))
    told = capsys.readouterr().err
    assert ("warning at pydicom/charset.py:7" in told) == debug
    assert "medtl: left out?[2J\n" in told and "Xqname" not in told


def test_nothing_connects_to_anything(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        tried.append(arguments)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    commands = [
        ["train", "--modality", "xray", "--data", trained.data, "--out", tmp_path / "run", *jobs.settings()],
        ["score", tmp_path / "run", trained.data, "--out", tmp_path / "scores"],
        ["report", tmp_path / "run", tmp_path / "scores", "--out", tmp_path / "report"],
        ["export", tmp_path / "run", "--to", "onnx", "--out", tmp_path / "onnx"],
    ]
    for arguments in commands:
        result = jobs.medtl(*arguments)
        assert result.exit_code == 0, result.output
    assert tried == []


def test_no_library_prepares_to_call_its_maker(trained: Trained, tmp_path: Path) -> None:
    """ONNX Runtime keeps a device id and a queue of events in the user's cache where it may report."""
    pytest.importorskip("onnxruntime", reason="medtl[export] is not installed")
    arguments = ["export", trained.run, "--to", "onnx", "--out", tmp_path / "out"]
    done = in_a_process(*arguments, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert not [path for path in (tmp_path / "home").rglob("*") if "microsoft" in str(path).lower()]
