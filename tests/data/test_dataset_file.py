"""The record of a prepared dataset: the same manifest again, with hashes for names."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medtl.data.dataset_file import dataset_of, is_dataset, load_dataset, write_record
from medtl.data.manifest import load_manifest
from medtl.data.prepared import PreparedDataset, prepare_samples
from medtl.data.splits import SplitConfig, split_samples
from medtl.data.task import Manifest, Sample, Target, Task, TaskConfig, has_patient_id, place_of
from medtl.errors import ConfigError, LabelError, ReadError
from medtl.imaging.preprocessing import PreprocessingConfig
from medtl.imaging.reader import read_series, scan
from medtl.imaging.series import Series
from tests.imaging.conftest import pattern

BINARY = Task("binary", ("normal", "lesion"))
CONFIG = PreprocessingConfig(size=(16, 16))


def sample(number: int, target: Target, patient: str = "", study: str = "") -> Sample:
    """Return a sample; without a patient it is its own, or its study's."""
    series = Series(Path(f"/source/{(number * 7) % 10} Kim/{number}.png"), (), "raster")
    name = f"s{number}"
    return Sample(name, series, patient or study or name, study_id=study, target=target)


def keep(folder: Path, samples: Sequence[Sample], task: Task = BINARY) -> Path:
    """Write the record of samples alone."""
    folder.mkdir(exist_ok=True)
    bare = PreparedDataset(folder, np.empty((0, 1, 16, 16), np.uint16), (), (), (), key="k")
    write_record(bare, Manifest(task, tuple(samples), ()), Path("/source"), None, TaskConfig(), CONFIG)
    return folder


def test_it_splits_as_the_source_does(tmp_path: Path) -> None:
    samples = [
        *(sample(number, number // 2 % 2, patient=f"P{(number * 11) % 13:02d}") for number in range(20)),
        *(sample(number, number % 2, study=f"S{number // 2}") for number in range(20, 30)),
        *(sample(number, number % 2) for number in range(30, 40)),
    ]
    again = load_dataset(keep(tmp_path / "kept", samples), None, TaskConfig()).samples
    for before, after in zip(samples, again, strict=True):
        assert (before.sample_id, before.target) == (after.sample_id, after.target)
        assert has_patient_id(before) == has_patient_id(after)
    assert (
        sorted(samples, key=lambda one: one.patient_id)[0].sample_id
        == min(again, key=lambda one: one.patient_id).sample_id
    )
    order = [one.sample_id for one in sorted(samples, key=place_of)]
    assert [one.sample_id for one in sorted(again, key=place_of)] == order
    for config in (SplitConfig(test=0.2), SplitConfig(folds=4, fold=1)):
        parts = [one.split for one in split_samples(samples, BINARY, config)]
        assert [one.split for one in split_samples(again, BINARY, config)] == parts


def test_patients_keep_their_order_and_not_their_names(tmp_path: Path) -> None:
    names = ["Zoe", "adam", "Eve", "10", "9"]
    samples = [sample(number, number % 2, patient=name) for number, name in enumerate(names)]
    again = load_dataset(keep(tmp_path / "kept", samples), None, TaskConfig()).samples
    ranks = sorted(range(5), key=lambda index: names[index])
    assert sorted(range(5), key=lambda index: again[index].patient_id) == ranks
    text = (tmp_path / "kept/dataset.json").read_text()
    assert not [name for name in (*names[:3], "Kim", "source") if name in text]


def test_classes_in_another_order_are_told_apart_by_name(tmp_path: Path) -> None:
    kept = keep(tmp_path / "kept", [sample(0, 0), sample(1, 1)])
    found = load_dataset(kept, None, TaskConfig(classes=("lesion", "normal")))
    assert found.task == Task("binary", ("lesion", "normal"))
    assert [one.target for one in found.samples] == [1, 0]
    found = load_dataset(kept, None, TaskConfig(kind="multiclass", classes=("cyst", "lesion", "normal")))
    assert [one.target for one in found.samples] == [2, 1]


def test_findings_are_told_apart_by_name(tmp_path: Path) -> None:
    task = Task("multilabel", ("mass", "fluid"))
    kept = keep(tmp_path / "kept", [sample(0, (1.0, None)), sample(1, (0.0, 1.0))], task)
    assert [one.target for one in load_dataset(kept, None, TaskConfig()).samples] == [(1.0, None), (0.0, 1.0)]
    found = load_dataset(kept, None, TaskConfig(kind="multilabel", classes=("fluid", "air")))
    assert [one.target for one in found.samples] == [(None, None), (1.0, None)]


def test_a_sample_of_no_class_of_the_task_is_refused(tmp_path: Path) -> None:
    kept = keep(tmp_path / "kept", [sample(0, 0), sample(1, 1)])
    with pytest.raises(LabelError, match="lesion") as caught:
        load_dataset(kept, None, TaskConfig(classes=("normal", "cyst")))
    assert caught.value.code == "label-rows"


@pytest.mark.parametrize("config", [TaskConfig(kind="multilabel"), TaskConfig(label_column="finding")])
def test_labels_that_were_read_otherwise_are_refused(config: TaskConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_dataset(keep(tmp_path / "kept", [sample(0, 0), sample(1, 1)]), None, config)
    assert caught.value.code == "dataset-recipe"


def test_a_binary_task_has_two_classes(tmp_path: Path) -> None:
    task = Task("multiclass", ("a", "b", "c"))
    kept = keep(tmp_path / "kept", [sample(number, number) for number in range(3)], task)
    with pytest.raises(ConfigError, match=r"task\.kind"):
        load_dataset(kept, None, TaskConfig(kind="binary"))


def test_a_sample_without_its_source_is_refused_by_name(tmp_path: Path) -> None:
    kept = load_dataset(keep(tmp_path / "kept", [sample(0, 0), sample(1, 1)]), None, TaskConfig())
    assert dataset_of(kept.samples) == tmp_path / "kept" and dataset_of([sample(0, 0)]) is None
    with pytest.raises(ReadError) as caught:
        read_series(kept.samples[0].series)
    assert caught.value.code == "file-missing"


@pytest.mark.parametrize("content", [b"", b"{}", b'{"name": "BRATS"}', b"\xff\xfe", b'{"format": "other"}'])
def test_other_files_of_this_name_make_no_dataset(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_bytes(content)
    assert not is_dataset(tmp_path) and not is_dataset(tmp_path / "absent")


def test_some_samples_of_a_dataset_have_their_own_rows(
    make_radiograph: Callable[..., Path], tmp_path: Path
) -> None:
    for number in range(5):
        make_radiograph(pattern(20, 30, seed=number), name=f"cr/{number}.dcm")
    series = scan(tmp_path / "cr").series
    samples = [replace(sample(number, number % 2), series=one) for number, one in enumerate(series)]
    os.truncate(series[3].path, 400)
    prepared = prepare_samples(samples, CONFIG, folder=tmp_path / "kept")
    manifest = Manifest(BINARY, tuple(samples), ())
    write_record(prepared, manifest, tmp_path, None, TaskConfig(), CONFIG)
    again = load_dataset(tmp_path / "kept", None, TaskConfig()).samples
    whole = prepare_samples(again, CONFIG)
    assert whole.sample_ids == ("s0", "s1", "s2", "s4") and (whole.pixels == prepared.pixels).all()
    assert [(name, error.code) for name, error in whole.refusals] == [("s3", prepared.refusals[0][1].code)]
    some = prepare_samples([again[4], again[1]], CONFIG)
    assert some.sample_ids == ("s1", "s4") and some.refusals == ()
    assert (some.pixels == prepared.pixels[[1, 3]]).all()
    assert some.content_hashes == (prepared.content_hashes[1], prepared.content_hashes[3])


WITNESS = Path(__file__).parents[1] / "witness/v0.1.0"


def test_a_dataset_that_medtl_0_1_0_prepared_is_read_and_can_be_replaced(tmp_path: Path) -> None:
    dataset = Path(shutil.copytree(WITNESS / "prepared", tmp_path / "prepared"))
    config = PreprocessingConfig.model_validate(
        json.loads((dataset / "dataset.json").read_text())["preprocessing"]
    )
    old = load_manifest(dataset, None, TaskConfig())
    stored = prepare_samples(old.samples, config)
    new = load_manifest(WITNESS / "studies", None, TaskConfig())
    fresh = prepare_samples(new.samples, config, folder=tmp_path / "fresh")
    assert np.array_equal(stored.pixels, fresh.pixels) and len(fresh.pixels) == 12
    assert stored.content_hashes == fresh.content_hashes
    assert old.task == new.task and [s.target for s in old.samples] == [s.target for s in new.samples]
    header = json.loads((dataset / "prepared.json").read_text())
    header["oddities"] = [["s5bcb28ba1c", ["image-constant", "every pixel has the same value"]]]
    (dataset / "prepared.json").write_text(json.dumps(header))
    assert stored.warnings == fresh.warnings == ()
    ((sample_id, warning),) = prepare_samples(old.samples, config).warnings
    assert (sample_id, warning.code) == ("s5bcb28ba1c", "image-constant")
    assert json.loads((fresh.folder / "prepared.json").read_text())["warnings"] == []
    del stored
    assert prepare_samples(new.samples, config, folder=dataset).content_hashes == fresh.content_hashes
