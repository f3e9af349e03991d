"""The prepared dataset: decoded once, made anew when anything changes, whole or absent."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medtl.errors import OutputError, ReadError
from medtl.imaging import prepared as module
from medtl.imaging.manifest import Sample
from medtl.imaging.prepared import prepare_samples
from medtl.imaging.preprocessing import PreprocessingConfig, prepare_image
from medtl.imaging.series import read_series, scan
from tests.imaging.conftest import pattern

CONFIG = PreprocessingConfig(size=(16, 16))


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

    monkeypatch.setattr(module, "read_series", read)
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


def test_the_order_of_workers_changes_nothing(radiographs: list[Sample], own_home: Path) -> None:
    one = prepare_samples(radiographs, CONFIG, workers=1)
    pixels = np.array(one.pixels)
    shutil.rmtree(one.folder)
    assert (prepare_samples(radiographs, CONFIG, workers=4).pixels == pixels).all()


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
        patch.setattr(module, "read_series", unreachable)
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


def test_a_full_disk_leaves_nothing_behind(
    radiographs: list[Sample], own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(OutputError) as caught:
            prepare_samples(radiographs, CONFIG)
    assert caught.value.code == "output-unwritable" and "No space left" in str(caught.value)
    assert left_behind(own_home) == []
    assert len(prepare_samples(radiographs, CONFIG).sample_ids) == 4


def test_an_interruption_leaves_nothing_behind(radiographs: list[Sample], own_home: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_samples(radiographs, CONFIG, progress=stop)
    assert left_behind(own_home) == []


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
