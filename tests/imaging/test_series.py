"""Headers of large folders are read in child processes: in order and as in one, or with one clear error."""

import multiprocessing
import os
import signal
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from medtl.core import parallel as in_children
from medtl.core.parallel import work_in_order
from medtl.core.progress import Watcher
from medtl.errors import ReadError, TrainingError
from medtl.imaging import series as headers
from medtl.imaging.reader import scan
from medtl.imaging.series import Scan, read_headers
from tests.waiting import PATIENCE


def text_of(path: Path) -> str:
    """Return what a file holds; an empty one is refused, and "end" ends the process as the system would."""
    text = path.read_text()
    if not text:
        raise ReadError("file-empty", "has no bytes", where=path, fix="copy it again")
    if text == "end":
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{text} {os.getpid() == PARENT}"


PARENT = os.getpid()


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files of which one in ten is empty and one is missing, in chunks of three."""
    monkeypatch.setattr(headers, "CHUNK_FILES", 3)
    monkeypatch.setattr("tests.imaging.test_series.PARENT", os.getpid())
    paths = [tmp_path / f"{number:02d}" for number in range(40)]
    for number, path in enumerate(paths):
        path.write_text("" if number % 10 == 4 else path.name)
    paths[7].unlink()
    return paths


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_headers_and_refusals_are_in_order(texts: list[Path], workers: int) -> None:
    found, refusals = read_headers(text_of, texts, workers)
    left = [path for number, path in enumerate(texts) if number % 10 != 4 and number != 7]
    assert found == [f"{path.name} {workers == 1}" for path in left]
    assert [(error.code, Path(error.where).name) for error in refusals] == [
        ("file-empty", "04"),
        ("file-missing", "07"),
        ("file-empty", "14"),
        ("file-empty", "24"),
        ("file-empty", "34"),
    ]


def test_few_files_start_no_child(texts: list[Path]) -> None:
    assert read_headers(text_of, texts[:3], 4)[0] == ["00 True", "01 True", "02 True"]


def test_children_come_in_where_a_folder_takes_long(
    texts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_children, "usable_processors", lambda: 2)
    assert all(text.endswith("True") for text in read_headers(text_of, texts, None)[0])
    monkeypatch.setattr(headers, "ALONE_SECONDS", 0.0)
    assert all(text.endswith("False") for text in read_headers(text_of, texts, None)[0])


def test_a_process_that_may_have_no_children_reads_alone(
    texts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the workers of a loader are."""
    monkeypatch.setattr(headers, "ALONE_SECONDS", 0.0)
    context = multiprocessing.get_context("fork")
    found = context.SimpleQueue()
    process = context.Process(
        target=lambda: found.put(len(read_headers(text_of, texts, None)[0])), daemon=True
    )
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 0 and found.get() == 35


def test_a_child_that_is_ended_is_one_clear_error(texts: list[Path]) -> None:
    texts[20].write_text("end")
    with pytest.raises(TrainingError) as caught:
        read_headers(text_of, texts, 2)
    assert caught.value.code == "worker-lost" and threading.active_count() < 5


def test_who_stops_taking_results_leaves_no_child(texts: list[Path]) -> None:
    results = work_in_order(text_of, [texts[0]] * 20, 2, 0.0)
    assert next(results) == "00 False"
    results.close()
    assert threading.active_count() < 5


def scans(source: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Scan, Scan]:
    """Scan in this process, and in children with few files each."""
    monkeypatch.setattr(headers, "CHUNK_FILES", 4)
    return scan(source, workers=1), scan(source, workers=2)


def test_a_scan_is_the_same_in_children(
    make_series: Callable[..., list[Path]],
    make_radiograph: Callable[..., Path],
    make_nifti: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for patient in range(4):
        make_series(patient, instances=6, folder=f"all/{patient}")
    paths = make_series(9, instances=6, folder="all/gap")
    paths[2].unlink()
    (tmp_path / "all/nii").mkdir()
    for number in range(12):
        make_radiograph(name=f"all/cr/{number}.dcm", SOPInstanceUID=f"1.2.{number}")
        make_nifti(name=f"all/nii/{number}.nii.gz")
    (tmp_path / "all/cr/cut.dcm").write_bytes((tmp_path / "all/cr/0.dcm").read_bytes()[:-9])
    (tmp_path / "all/cr/copy.dcm").write_bytes((tmp_path / "all/cr/0.dcm").read_bytes())
    alone, shared = scans(tmp_path / "all", monkeypatch)
    assert shared.series == alone.series and shared.left_out == alone.left_out
    assert [one.planes for one in shared.series] == [one.planes for one in alone.series]
    assert [str(error) for error in shared.refusals] == [str(error) for error in alone.refusals]
    assert (len(alone.series), len(alone.refusals), alone.skipped) == (4 + 12 + 12, 2, 1)


class Counting(Watcher):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, int, int]] = []

    def progress(self, what: str, done: int, total: int) -> None:
        self.reports.append((what, done, total))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_scan_reports_its_progress(
    make_radiograph: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(headers, "CHUNK_FILES", 4)
    for number in range(9):
        make_radiograph(name=f"all/{number}.dcm", SOPInstanceUID=f"1.2.{number}")
    with zipfile.ZipFile(tmp_path / "all/a.zip", "w") as archive:
        for number in range(3):
            archive.write(make_radiograph(name="loose.dcm", SOPInstanceUID=f"1.3.{number}"), str(number))
    watcher = Counting()
    scan(tmp_path / "all", workers=workers, watcher=watcher)
    assert watcher.reports == [
        *(("looking at files", done, 10) for done in (4, 8, 10)),
        ("looking into an archive", 3, 3),
        *(("reading headers", done, 12) for done in (4, 8, 12)),
    ]


def test_children_have_the_task_from_the_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = object()
    task = lambda item: (item, id(kept))  # noqa: E731  # neither it nor what it holds can be pickled
    assert list(work_in_order(task, [1, 2, 3], 2, 0.0)) == [(n, id(kept)) for n in (1, 2, 3)]
