"""The prepared dataset: decoded once, made anew when anything changes, whole or absent, continued."""

import errno
import math
import multiprocessing
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from medtl.core import parallel as in_children
from medtl.core import staging
from medtl.data import prepared as module
from medtl.data import prepared as preparing
from medtl.data.prepared import prepare_samples
from medtl.data.task import Sample
from medtl.errors import OutputError, ReadError, TrainingError
from medtl.imaging.preprocessing import PreprocessingConfig, prepare_image
from medtl.imaging.reader import read_series, scan
from tests.imaging.conftest import pattern
from tests.waiting import PATIENCE, wait_until

CONFIG = PreprocessingConfig(size=(16, 16))


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare in this process, however slow the machine is."""
    monkeypatch.setattr(preparing, "ALONE_SECONDS", math.inf)


def share_with(children: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare in child processes from the first sample on."""
    monkeypatch.setattr(preparing, "ALONE_SECONDS", 0.0)
    monkeypatch.setattr(in_children, "usable_processors", lambda: children)


def samples_in(folder: Path) -> list[Sample]:
    """Return a sample for each series of a folder."""
    series = scan(folder).series
    return [Sample(f"s{row}", one, f"p{row}") for row, one in enumerate(series)]


def left_behind(home: Path) -> list[str]:
    """Return what lies in the home's folder of prepared datasets."""
    return sorted(path.name for path in (home / "prepared").glob("*"))


@pytest.fixture
def radiographs(make_radiograph: Callable[..., Path], tmp_path: Path) -> list[Sample]:
    """Four radiographs of different pixels and proportions."""
    for row in range(4):
        make_radiograph(pattern(20 + row, 30 - row, seed=row), name=f"cr/{row}.dcm")
    return samples_in(tmp_path / "cr")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded from here on."""
    seen: list[str] = []

    def read(series):
        seen.append(series.path.name)
        return read_series(series)

    monkeypatch.setattr(preparing, "read_series", read)
    return seen


def test_pixels_are_those_of_prepare_image(radiographs: list[Sample]) -> None:
    prepared = prepare_samples(radiographs, CONFIG)
    assert prepared.sample_ids == ("s0", "s1", "s2", "s3")
    for row, sample in enumerate(radiographs):
        exact = prepare_image(read_series(sample.series), CONFIG).pixels
        found = prepared.read([row])[0].numpy()
        assert found.shape == (1, 16, 16) and found.dtype == np.float32
        assert np.abs(found - exact).max() < 1e-5
        assert exact.std() > 0.1


def test_volumes_are_prepared_too(make_series: Callable[..., list[Path]], tmp_path: Path) -> None:
    make_series(instances=5)
    config = PreprocessingConfig(size=(4, 8, 8))
    (sample,) = samples_in(tmp_path / "mr")
    exact = prepare_image(read_series(sample.series), config).pixels
    assert np.abs(prepare_samples([sample], config).read([0])[0].numpy() - exact).max() < 1e-5


def test_rows_are_read_in_the_order_asked_for(radiographs: list[Sample]) -> None:
    prepared = prepare_samples(radiographs, CONFIG)
    rows = prepared.rows_of([radiographs[2], radiographs[0]])
    assert rows.tolist() == [2, 0]
    assert (prepared.read(rows)[1] == prepared.read([0])[0]).all()
    assert not (prepared.read(rows)[0] == prepared.read(rows)[1]).all()


def test_a_second_call_decodes_nothing(radiographs: list[Sample], reads: list[str]) -> None:
    first = prepare_samples(radiographs, CONFIG)
    assert sorted(reads) == ["0.dcm", "1.dcm", "2.dcm", "3.dcm"]
    reads.clear()
    again = prepare_samples(radiographs, CONFIG)
    assert reads == [] and again.folder == first.folder
    assert (again.read(range(4)) == first.read(range(4))).all()
    assert again.content_hashes == first.content_hashes


def test_other_preprocessing_prepares_anew(radiographs: list[Sample], reads: list[str]) -> None:
    first = prepare_samples(radiographs, CONFIG)
    other = prepare_samples(radiographs, CONFIG.model_copy(update={"percentiles": (5.0, 95.0)}))
    assert len(reads) == 8 and other.folder != first.folder
    assert not (other.read([0]) == first.read([0])).all()


def test_a_changed_file_prepares_anew(
    radiographs: list[Sample], reads: list[str], make_radiograph: Callable[..., Path]
) -> None:
    first = prepare_samples(radiographs, CONFIG)
    make_radiograph(pattern(20, 30, seed=99), name="cr/0.dcm")
    os.utime(radiographs[0].series.path, ns=(0, 0))
    changed = prepare_samples(radiographs, CONFIG)
    assert changed.folder != first.folder and len(reads) == 8
    assert changed.content_hashes[0] != first.content_hashes[0]
    assert changed.content_hashes[1:] == first.content_hashes[1:]


def test_equal_pixels_have_equal_hashes_under_any_name(
    make_radiograph: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copy(make_radiograph(name="cr/a.dcm"), tmp_path / "cr/b.dcm")
    make_radiograph(pattern(12, 10, seed=5), name="cr/c.dcm")
    samples = [Sample(path.name, scan(path).series[0], "p") for path in sorted((tmp_path / "cr").iterdir())]
    a, b, c = prepare_samples(samples, CONFIG).content_hashes
    assert a == b != c


def test_a_damaged_sample_is_listed_and_the_rest_go_on(radiographs: list[Sample]) -> None:
    path = radiographs[1].series.path
    path.write_bytes(path.read_bytes()[:-200])
    prepared = prepare_samples(radiographs, CONFIG)
    assert prepared.sample_ids == ("s0", "s2", "s3")
    ((sample_id, error),) = prepared.refusals
    assert sample_id == "s1" and error.code.startswith("dicom-") and error.where == str(path)
    exact = prepare_image(read_series(radiographs[2].series), CONFIG).pixels
    assert np.abs(prepared.read(prepared.rows_of([radiographs[2]]))[0].numpy() - exact).max() < 1e-5
    again = prepare_samples(radiographs, CONFIG).refusals[0][1]
    assert str(again) == str(error)


def test_images_of_other_dimensions_are_all_refused(radiographs: list[Sample]) -> None:
    prepared = prepare_samples(radiographs, PreprocessingConfig(size=(4, 8, 8)))
    assert prepared.sample_ids == () and prepared.pixels.shape == (0, 1, 4, 8, 8)
    assert {error.code for _, error in prepared.refusals} == {"image-dimensions"}


def test_progress_counts_every_sample(radiographs: list[Sample]) -> None:
    steps: list[tuple[int, int]] = []
    prepare_samples(radiographs, CONFIG, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_pixels_are_mapped_and_not_loaded(radiographs: list[Sample]) -> None:
    prepared = prepare_samples(radiographs, CONFIG)
    assert isinstance(prepared.pixels, np.memmap) and not prepared.pixels.flags.writeable
    assert (prepared.folder / "pixels.u16").stat().st_size == 4 * 16 * 16 * 2
    assert (prepare_samples(radiographs, CONFIG).pixels == prepared.pixels).all()


def test_a_file_that_was_out_of_reach_for_a_moment_is_not_left_out_for_ever(
    radiographs: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(series):
        if series.path.name == "2.dcm":
            raise ReadError("file-unreadable", "input/output error", where=series.path)
        return read_series(series)

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "read_series", unreachable)
        assert len(prepare_samples(radiographs, CONFIG).refusals) == 1
    prepared = prepare_samples(radiographs, CONFIG)
    assert prepared.refusals == () and len(prepared.sample_ids) == 4


def test_a_refusal_leaves_no_name_in_the_cache(radiographs: list[Sample]) -> None:
    radiographs[1].series.path.write_bytes(b"")
    prepared = prepare_samples(radiographs, CONFIG)
    assert [sample_id for sample_id, _ in prepared.refusals] == ["s1"]
    assert "1.dcm" not in (prepared.folder / "prepared.json").read_text()


@pytest.mark.parametrize("damage", ["cut", "gone", "json"])
def test_a_dataset_that_is_not_whole_is_made_again(radiographs: list[Sample], damage: str) -> None:
    prepared = prepare_samples(radiographs, CONFIG)
    pixels, whole = prepared.folder / "pixels.u16", prepared.pixels.copy()
    if damage == "cut":
        pixels.write_bytes(pixels.read_bytes()[:-2])
    elif damage == "gone":
        pixels.unlink()
    else:
        (prepared.folder / "prepared.json").write_text("{")
    assert (prepare_samples(radiographs, CONFIG).pixels == whole).all()


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def die(*_: object, **__: object) -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(call: int, function: Callable[..., object]) -> Callable[..., object]:
    """Return a function that ends this process when it is called for the nth time."""
    calls: list[object] = []

    def counting(*given: object, **named: object) -> object:
        calls.append(given)
        return die() if len(calls) == call else function(*given, **named)

    return counting


def run_apart(job: Callable[[], object]) -> multiprocessing.process.BaseProcess:
    """Start a job in a process of its own, which sees what is patched here."""
    process = multiprocessing.get_context("fork").Process(target=job)
    process.start()
    return process


def break_off(samples: list[Sample], done: int) -> None:
    """Prepare in another process, which is killed once that many samples are done."""

    def progress(count: int, _: int) -> None:
        if count == done:
            die()

    process = run_apart(lambda: prepare_samples(samples, CONFIG, progress=progress))
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL


def staging_of(home: Path) -> Path:
    """Return the one folder that is being prepared."""
    (found,) = (path for path in (home / "prepared").glob(".preparing-*") if path.is_dir())
    return found


@pytest.fixture
def unbroken(radiographs: list[Sample], own_home: Path) -> dict[str, bytes]:
    """The files of a dataset whose preparing nothing broke off; it is gone from the home."""
    folder = prepare_samples(radiographs, CONFIG).folder
    found = contents(folder)
    shutil.rmtree(folder)
    return found


@pytest.mark.parametrize("done", [1, 3, 4])
def test_a_killed_preparing_goes_on_where_it_was(
    radiographs: list[Sample], unbroken: dict[str, bytes], own_home: Path, reads: list[str], done: int
) -> None:
    break_off(radiographs, done)
    assert left_behind(own_home) == [(name := staging_of(own_home).name), f"{name}.lock"]
    steps: list[tuple[int, int]] = []
    prepared = prepare_samples(radiographs, CONFIG, progress=lambda *step: steps.append(step))
    assert reads == [f"{row}.dcm" for row in range(done, 4)]
    assert steps == [(row + 1, 4) for row in range(done, 4)]
    assert contents(prepared.folder) == unbroken
    assert left_behind(own_home) == [prepared.folder.name]


@pytest.mark.parametrize(
    ("place", "name", "call", "decoded"),
    [
        (Path, "replace", 1, 4),  # the journal is begun
        (module, "journal_line", 1, 4),  # pixels are there, their line is not
        (module, "journal_line", 4, 1),
        (module, "write_json", 1, 0),
        (Path, "replace", 2, 0),  # the header is written
        (staging.StagingFolder, "publish", 1, 0),
        (staging, "remove_folder", 1, 0),  # the journal is gone
        (Path, "replace", 3, 0),  # the damaged dataset that is there moves away
        (shutil, "rmtree", 2, 0),
        (Path, "replace", 4, 0),  # the new one moves to its place
        (staging, "flush", 1, 0),
        (staging, "remove_lock", 1, 0),
        (module, "_open", 1, 0),
    ],
)
def test_killed_between_any_two_steps_it_comes_to_the_same_bytes(
    radiographs: list[Sample],
    unbroken: dict[str, bytes],
    own_home: Path,
    reads: list[str],
    monkeypatch: pytest.MonkeyPatch,
    place: object,
    name: str,
    call: int,
    decoded: int,
) -> None:
    folder = own_home / "prepared" / module.Job(radiographs, CONFIG).key
    folder.mkdir(parents=True)
    (folder / "pixels.u16").write_bytes(unbroken["pixels.u16"][:-1])
    with monkeypatch.context() as patch:
        patch.setattr(place, name, die_at(call, getattr(place, name)))
        process = run_apart(lambda: prepare_samples(radiographs, CONFIG))
        process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL
    prepared = prepare_samples(radiographs, CONFIG)
    assert contents(prepared.folder) == unbroken
    assert len(reads) == decoded
    assert {path.name for path in folder.parent.iterdir() if path.is_dir()} == {folder.name}


@pytest.mark.parametrize(
    ("name", "damage", "decoded"),
    [
        ("journal.jsonl", lambda data: data[:-5], [2, 3]),
        ("journal.jsonl", lambda data: data + b'["s3", "0', [3]),
        ("journal.jsonl", lambda data: data + b"\0" * 40, [3]),
        ("journal.jsonl", lambda data: data.replace(b'"s1"', b'"s9"'), [1, 2, 3]),
        ("journal.jsonl", lambda data: b"", [0, 1, 2, 3]),
        ("journal.jsonl", lambda data: b"[]\n7\nnull\n", [0, 1, 2, 3]),
        ("pixels.u16", lambda data: data + b"torn", [3]),
        ("pixels.u16", lambda data: data[:-1], [2, 3]),
        ("pixels.u16", lambda data: data[:512] + bytes(len(data) - 512), [1, 2, 3]),
        ("pixels.u16", lambda data: b"", [0, 1, 2, 3]),
    ],
)
def test_what_the_journal_does_not_vouch_for_is_decoded_again(
    radiographs: list[Sample],
    unbroken: dict[str, bytes],
    own_home: Path,
    reads: list[str],
    name: str,
    damage: Callable[[bytes], bytes],
    decoded: list[int],
) -> None:
    break_off(radiographs, 3)
    path = staging_of(own_home) / name
    path.write_bytes(damage(path.read_bytes()))
    assert contents(prepare_samples(radiographs, CONFIG).folder) == unbroken
    assert reads == [f"{row}.dcm" for row in decoded]


def test_a_refused_sample_is_read_again_on_going_on(
    radiographs: list[Sample], unbroken: dict[str, bytes], reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(series):
        if series.path.name == "1.dcm":
            raise ReadError("file-unreadable", "input/output error", where=series.path)
        return read_series(series)

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "read_series", unreachable)
        break_off(radiographs, 3)
    assert contents(prepare_samples(radiographs, CONFIG).folder) == unbroken
    assert reads == ["1.dcm", "1.dcm", "2.dcm", "3.dcm"]  # its row lies before those of the later ones


def test_a_sample_that_is_still_refused_costs_no_later_one(
    radiographs: list[Sample], reads: list[str]
) -> None:
    radiographs[1].series.path.write_bytes(b"")
    break_off(radiographs, 3)
    prepared = prepare_samples(radiographs, CONFIG)
    assert reads == ["1.dcm", "3.dcm"]
    assert prepared.sample_ids == ("s0", "s2", "s3")
    assert [sample_id for sample_id, _ in prepared.refusals] == ["s1"]


@pytest.mark.parametrize("killed", [False, True])
def test_a_second_process_waits_and_takes_what_the_first_has_made(
    radiographs: list[Sample], unbroken: dict[str, bytes], reads: list[str], killed: bool
) -> None:
    half_done = multiprocessing.get_context("fork").Event()

    def linger(done: int, _: int) -> None:
        if done == 2:
            half_done.set()
            time.sleep(0.5)
            if killed:
                die()

    first = run_apart(lambda: prepare_samples(radiographs, CONFIG, progress=linger))
    assert half_done.wait(PATIENCE)
    prepared = prepare_samples(radiographs, CONFIG)
    first.join(PATIENCE)
    assert first.exitcode == (-signal.SIGKILL if killed else 0)
    assert reads == (["2.dcm", "3.dcm"] if killed else [])
    assert contents(prepared.folder) == unbroken


def test_an_interruption_by_the_user_goes_on_too(radiographs: list[Sample], reads: list[str]) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_samples(radiographs, CONFIG, progress=stop)
    reads.clear()
    assert len(prepare_samples(radiographs, CONFIG).sample_ids) == 4
    assert reads == ["2.dcm", "3.dcm"]


def test_a_full_disk_is_told_and_nothing_half_made_is_opened(
    radiographs: list[Sample],
    unbroken: dict[str, bytes],
    own_home: Path,
    reads: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(OutputError) as caught:
            prepare_samples(radiographs, CONFIG)
    assert caught.value.code == "output-unwritable" and "No space left" in str(caught.value)
    assert left_behind(own_home) == [staging_of(own_home).name]
    reads.clear()
    assert contents(prepare_samples(radiographs, CONFIG).folder) == unbroken
    assert reads == []


def test_a_disk_that_fills_within_a_sample_keeps_those_before(
    radiographs: list[Sample], unbroken: dict[str, bytes], reads: list[str]
) -> None:
    """The limit on the size of a file tears the third image as a full disk does."""

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1100, 1100))
        with pytest.raises(OutputError):
            prepare_samples(radiographs, CONFIG)

    first = run_apart(prepare)
    first.join(PATIENCE)
    assert first.exitcode == 0
    assert contents(prepare_samples(radiographs, CONFIG).folder) == unbroken
    assert reads == ["2.dcm", "3.dcm"]


def test_at_a_place_of_the_users_choice_it_goes_on_too(
    radiographs: list[Sample], unbroken: dict[str, bytes], own_home: Path, tmp_path: Path, reads: list[str]
) -> None:
    def stop(done: int, _: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    kept = tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt):
        prepare_samples(radiographs, CONFIG, folder=kept, progress=stop)
    assert contents(prepare_samples(radiographs, CONFIG, folder=kept).folder) == unbroken
    assert reads == ["0.dcm", "1.dcm", "2.dcm", "3.dcm"] and left_behind(own_home) == []
    prepare_samples(radiographs, CONFIG, folder=kept)
    assert len(reads) == 4


def test_what_was_begun_of_other_samples_is_not_gone_on_with(
    radiographs: list[Sample], unbroken: dict[str, bytes], tmp_path: Path, reads: list[str]
) -> None:
    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    kept, other = tmp_path / "kept", CONFIG.model_copy(update={"percentiles": (5.0, 95.0)})
    with pytest.raises(KeyboardInterrupt):
        prepare_samples(radiographs, other, folder=kept, progress=stop)
    assert contents(prepare_samples(radiographs, CONFIG, folder=kept).folder) == unbroken
    assert contents(prepare_samples(radiographs, other, folder=kept).folder) != unbroken


def test_a_folder_of_the_users_is_never_replaced(radiographs: list[Sample], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.txt").write_text("mine")
    with pytest.raises(OutputError):
        prepare_samples(radiographs, CONFIG, folder=tmp_path / "mine")
    assert contents(tmp_path / "mine") == {"a.txt": b"mine"}


def test_no_one_else_may_look_into_a_dataset(radiographs: list[Sample]) -> None:
    assert prepare_samples(radiographs, CONFIG).folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("children", [2, 3])
def test_the_number_of_processes_changes_no_byte(
    radiographs: list[Sample], monkeypatch: pytest.MonkeyPatch, children: int
) -> None:
    radiographs[1].series.path.write_bytes(b"")
    alone = prepare_samples(radiographs, CONFIG)
    before = contents(alone.folder)
    shutil.rmtree(alone.folder)
    share_with(children, monkeypatch)
    prepared = prepare_samples(radiographs, CONFIG)
    assert contents(prepared.folder) == before
    assert [(name, str(error)) for name, error in prepared.refusals] == [
        (name, str(error)) for name, error in alone.refusals
    ]
    assert len(prepared.refusals) == 1


def test_a_long_job_is_shared_with_children(
    radiographs: list[Sample], reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    share_with(2, monkeypatch)
    assert len(prepare_samples(radiographs, CONFIG).sample_ids) == 4
    assert reads == []  # children keep lists of their own


def test_a_child_that_is_killed_is_told_and_costs_no_finished_sample(
    radiographs: list[Sample], unbroken: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        share_with(2, patch)
        patch.setattr(preparing, "read_series", lambda series: die())
        with pytest.raises(TrainingError) as caught:
            prepare_samples(radiographs, CONFIG)
    assert caught.value.code == "worker-lost"
    assert contents(prepare_samples(radiographs, CONFIG).folder) == unbroken


def test_children_end_with_a_parent_that_is_killed(
    radiographs: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(series: object) -> None:
        (tmp_path / f"{os.getpid()}.pid").touch()
        time.sleep(PATIENCE)

    share_with(2, monkeypatch)
    monkeypatch.setattr(preparing, "read_series", hang)
    parent = run_apart(lambda: prepare_samples(radiographs, CONFIG))
    wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    parent.kill()
    parent.join(PATIENCE)
    wait_until(lambda: not any(is_running(int(path.stem)) for path in tmp_path.glob("*.pid")))


def is_running(pid: int) -> bool:
    """Say whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_every_step_reads_as_it_always_did(tmp_path: Path) -> None:
    stored = np.arange(65536, dtype=np.uint16).reshape(4, 1, 128, 128)
    dataset = module.PreparedDataset(tmp_path, stored, tuple("abcd"), tuple("abcd"), ())
    exact = torch.from_numpy(stored.astype(np.float32)).div_(65535)
    for rows in ([0, 1, 2, 3], [1, 2], [3], [2, 0], [1, 3], [1, 1], [3, 2], [-1], [-2, -1, 0], []):
        found = dataset.read(rows)
        assert found.dtype == torch.float32 and torch.equal(found, exact[rows])
        assert torch.equal(dataset.read(np.array(rows, dtype=np.int64)), found)


def test_a_batch_is_the_readers_own(radiographs: list[Sample]) -> None:
    prepared = prepare_samples(radiographs, CONFIG)
    batch = prepared.read([0, 1])
    before = batch.clone()
    batch.zero_()
    assert torch.equal(prepared.read([0, 1]), before)


def test_constant_images_are_counted_and_kept(
    radiographs: list[Sample], make_radiograph: Callable[..., Path], tmp_path: Path, reads: list[str]
) -> None:
    make_radiograph(np.full((12, 10), 7, np.uint16), name="cr/0.dcm")
    make_radiograph(np.full((12, 10), 7, np.uint16), name="cr/2.dcm")
    samples = samples_in(tmp_path / "cr")
    break_off(samples, 2)
    first, again = prepare_samples(samples, CONFIG), prepare_samples(samples, CONFIG)
    assert len(reads) == 2
    for prepared in (first, again):
        assert [(name, odd.code) for name, odd in prepared.warnings] == [
            ("s0", "image-constant"),
            ("s2", "image-constant"),
        ]
        (note,) = module.warning_notes(prepared)
        assert note == "2 images of 4: every pixel has the same value (image-constant)"
    assert module.warning_notes(prepare_samples(samples[1:2], CONFIG)) == ()


def test_only_what_was_refused_is_read_again(radiographs: list[Sample], reads: list[str]) -> None:
    path = radiographs[1].series.path
    path.write_bytes(path.read_bytes()[:-200])
    prepare_samples(radiographs, CONFIG)
    reads.clear()
    assert len(prepare_samples(radiographs, CONFIG).refusals) == 1
    assert reads == ["1.dcm"]


def test_a_file_that_is_gone_is_refused_or_told(radiographs: list[Sample]) -> None:
    """Whoever asks for samples whose file has gone gets a line that names the file."""
    radiographs[3].series.path.unlink()
    try:
        refusals = [error for _, error in prepare_samples(radiographs, CONFIG).refusals]
    except module.ReadError as error:
        refusals = [error]
    assert [error.code for error in refusals] == ["file-missing"]


def test_a_home_in_the_way_is_an_output_error(
    radiographs: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("MEDTL_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError):
        prepare_samples(radiographs, CONFIG)


def test_a_header_names_no_patient_and_no_path(radiographs: list[Sample], tmp_path: Path) -> None:
    prepared = prepare_samples(radiographs, CONFIG)
    header = (prepared.folder / "prepared.json").read_text().lower()
    assert "canary" not in header and str(tmp_path) not in header and "1.2.826" not in header
