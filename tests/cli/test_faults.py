"""Bad input: exit code 1, one line with a stable code, no traceback, and nothing that was there is harmed."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result

from medtl.errors import CODES
from medtl.training.checkpoint import load_checkpoint
from tests.cli import jobs
from tests.cli.conftest import Trained


def flip_byte(path: Path) -> None:
    """Change one byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def relabel(data: Path, change: Callable[[int, dict[str, str]], dict[str, str]]) -> None:
    """Write a folder's labels again, each row changed."""
    rows = jobs.read_rows(data / "labels.csv")
    jobs.write_labels(data, [change(index, row) for index, row in enumerate(rows)])


@pytest.fixture
def data(studies: Path, tmp_path: Path) -> Path:
    """A copy of the labelled folder, to be damaged."""
    return Path(shutil.copytree(studies, tmp_path / "data"))


def test_data_that_is_not_there(tmp_path: Path) -> None:
    assert jobs.fault(jobs.train(tmp_path / "absent", tmp_path / "run")) in ("file-missing", "label-table")


def test_labels_that_are_not_there(data: Path, tmp_path: Path) -> None:
    result = jobs.train(data, tmp_path / "run", "--labels", tmp_path / "absent.csv")
    assert jobs.fault(result) in ("file-missing", "label-table")
    assert "absent.csv" in result.stderr


def test_labels_that_are_a_folder(data: Path, tmp_path: Path) -> None:
    code = jobs.fault(jobs.train(data, tmp_path / "run", "--labels", data))
    assert code in ("file-unreadable", "label-table")


def test_labels_that_are_an_image(data: Path, tmp_path: Path) -> None:
    image = data / "images/000.png"
    assert jobs.fault(jobs.train(data, tmp_path / "run", "--labels", image)) in CODES


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    jobs.write_labels(tmp_path / "empty", [{"path": "a.png", "label": "normal"}])
    assert jobs.fault(jobs.train(tmp_path / "empty", tmp_path / "run")) in ("folder-empty", "label-rows")


def test_a_folder_without_labels(data: Path, tmp_path: Path) -> None:
    (data / "labels.csv").unlink()
    assert jobs.fault(jobs.train(data, tmp_path / "run")) == "label-table"


def test_a_table_with_unknown_columns(data: Path, tmp_path: Path) -> None:
    relabel(data, lambda _, row: {"file": row["path"], "diagnosis": row["label"]})
    result = jobs.train(data, tmp_path / "run")
    assert jobs.fault(result) == "label-table"


def test_rows_that_are_wrong_are_all_listed(data: Path, tmp_path: Path) -> None:
    wrong = {1: {"path": "images/absent.png"}, 4: {"label": ""}, 7: {"path": "../outside.png"}}
    relabel(data, lambda index, row: {**row, **wrong.get(index, {})})
    result = jobs.train(data, tmp_path / "run")
    assert jobs.fault(result) == "label-rows"
    listed = [line for line in result.stderr.splitlines() if line.startswith("  row ")]
    assert [line.split(":")[0] for line in listed] == ["  row 3", "  row 6", "  row 9"]


def test_a_class_with_one_patient(data: Path, tmp_path: Path) -> None:
    relabel(data, lambda index, row: {**row, "label": "rare" if index < 2 else row["label"]})
    result = jobs.train(data, tmp_path / "run")
    assert jobs.fault(result) == "class-too-small"
    assert "rare" in result.stderr


def test_a_patient_on_both_sides_of_the_split(data: Path, tmp_path: Path) -> None:
    relabel(data, lambda index, row: {**row, "split": "val" if index % 2 else "train"})
    assert jobs.fault(jobs.train(data, tmp_path / "run")) == "patient-leak"
    assert not (tmp_path / "run/splits.csv").exists()


def test_weights_that_are_absent_are_named_with_place_and_licence(
    volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDTL_HOME", str(tmp_path / "home"))
    wanted = ["backbone.name=medicalnet_resnet10", "backbone.weights=medicalnet", *jobs.SETTINGS_3D[1:]]
    result = jobs.train(volumes, tmp_path / "run", modality="mri", overrides=wanted)
    assert jobs.fault(result) == "weights-missing"
    for part in ("resnet_10_23dataset.pth", "MIT", "home/weights"):
        assert part in result.stderr


def test_weights_of_another_network(data: Path, tmp_path: Path, trained: Trained) -> None:
    (weights,) = (trained.run / "checkpoints/best").glob("model-*.safetensors")
    wanted = ["backbone.name=efficientnet_lite0", f"backbone.weights={weights}"]
    assert jobs.fault(jobs.train(data, tmp_path / "run", overrides=wanted)) == "weights-mismatch"


def test_a_typo_in_an_override_is_told_with_the_nearest_key(data: Path, tmp_path: Path) -> None:
    result = jobs.train(data, tmp_path / "run", overrides=["schedule.head_epoch=3"])
    assert jobs.fault(result) == "config-unknown"
    assert "did you mean schedule.head_epochs?" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "override",
    [
        "schedule.head_epochs=0",
        "schedule.head_epochs=many",
        "schedule.head_learning_rate=-1",
        "schedule.head_learning_rate=nan",
        "schedule.head_learning_rate=1e38",
        "schedule.head_learning_rate=inf",
        "preprocessing.size=[32]",
        "preprocessing.size=[32,32,32]",
        "preprocessing.spacing_mm=[0,0]",
        "preprocessing.percentiles=[99,1]",
        "backbone.name=tinny",
        "fit.imbalance=none-such",
        "fit.batch_size=0",
        "split.val=1.5",
        "schedule=gradul",
        "nonsense",
        "=3",
        "fit={",
        "${oc.env:HOME}=1",
    ],
)
def test_a_value_that_is_not_allowed(override: str, data: Path, tmp_path: Path) -> None:
    assert jobs.fault(jobs.train(data, tmp_path / "run", overrides=[override])) in (
        "config-value",
        "config-unknown",
    )


def test_a_recipe_never_runs_or_resolves_anything(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    for content in (f"!!python/object/apply:os.mkdir ['{touched}']", "modality: ${oc.env:HOME}"):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(content)
        result = jobs.medtl("config", "show", "--config", recipe)
        assert jobs.fault(result) == "config-value"
        assert os.environ["HOME"] not in result.output.replace(str(tmp_path), "")
    assert not touched.exists()


def test_a_recipe_that_is_not_there(data: Path, tmp_path: Path) -> None:
    result = jobs.medtl("train", "--config", tmp_path / "xray.yml", "--data", data, "--out", tmp_path / "run")
    assert jobs.fault(result) == "config-missing"


def test_a_recipe_of_the_other_modality(trained: Trained, tmp_path: Path) -> None:
    config = trained.run / "config.yaml"
    result = jobs.medtl("train", "--modality", "mri", "--config", config, "--out", tmp_path / "run")
    assert jobs.fault(result) == "config-value"


def test_volumes_for_a_model_of_images(volumes: Path, tmp_path: Path) -> None:
    result = jobs.train(volumes, tmp_path / "run", modality="mri", overrides=["preprocessing.size=[32,32]"])
    assert jobs.fault(result) == "split-empty"
    assert "image-dimensions" in result.stderr


def test_a_device_that_is_not_here(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert jobs.fault(jobs.train(data, tmp_path / "run", "--device", "cuda")) == "device-missing"


@pytest.mark.parametrize("command", ["train", "evaluate", "score", "report"])
def test_an_output_folder_that_is_a_file(command: str, trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    if command == "train":
        result = jobs.train(trained.data, out)
    elif command == "evaluate":
        result = jobs.medtl("evaluate", trained.run, "--data", trained.data, "--out", out)
    else:
        result = jobs.medtl(command, trained.run, trained.data, "--out", out)
    assert jobs.fault(result) == "output-unwritable"
    assert out.read_text() == "mine"


def test_a_file_in_the_place_of_the_checkpoints(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").write_text("mine")
    assert jobs.fault(jobs.train(data, tmp_path / "run")) == "output-unwritable"


def test_a_log_that_cannot_be_written(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run/log.jsonl").mkdir(parents=True)
    assert jobs.fault(jobs.train(data, tmp_path / "run")) == "output-unwritable"


def test_a_home_that_cannot_be_written(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").write_text("mine")
    monkeypatch.setenv("MEDTL_HOME", str(tmp_path / "home"))
    assert jobs.fault(jobs.train(data, tmp_path / "run")) == "output-unwritable"


WRITING = (
    "inspect",
    "prepare",
    "evaluate",
    "compare",
    "score",
    "explain",
    "report",
    "results",
    "torch",
    "bundle",
)


def writing(command: str, trained: Trained, out: Path) -> Result:
    """Run a command that writes below `out`, its tables, pages, datasets, objects or models."""
    tiny = [trained.data, "--modality", "xray", "--out", out, *jobs.settings()]
    twin = Path(shutil.copytree(trained.run, trained.run.parent / "twin", dirs_exist_ok=True))
    if command == "results":
        jobs.write_radiograph(trained.run.parent / "radiographs/a.dcm", SOPInstanceUID="1.2.826.0.1.1")
    arguments: dict[str, list[str | Path]] = {
        "inspect": [trained.data, "--html", out],
        "prepare": tiny,
        "evaluate": [trained.run, "--data", trained.data, "--part", "all", "--out", out],
        "compare": [trained.run, twin, "--out", out],
        "results": [trained.run, trained.run.parent / "radiographs", "--out", out],
        "torch": [trained.run, "--to", "torch", "--out", out],
        "bundle": [trained.run, "--to", "monai-bundle", "--out", out],
    }
    name = "export" if command in ("torch", "bundle") else command
    return jobs.medtl(name, *arguments.get(command, [trained.run, trained.data, "--out", out]))


@pytest.mark.parametrize("command", WRITING)
def test_a_full_disk_leaves_no_half_written_output(
    command: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    result = writing(command, trained, tmp_path / "out")
    assert jobs.fault(result) == "output-unwritable"
    left = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert left <= {"journal.sqlite"}  # whole rows, from which scoring goes on


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Return a maker of a disk with so many free kilobytes, which root alone may mount."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(free: int) -> Path:
        options = ["-t", "tmpfs", "-o", f"size={64 + free}k", "tmpfs", str(place)]
        if shutil.which("mount") is None or subprocess.run(["mount", *options], check=False).returncode:
            pytest.skip("no disk can be mounted here: it needs root on Linux")
        (place / "ballast").write_bytes(bytes(60 * 1024))
        return place

    yield mount
    subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


@pytest.mark.parametrize("free", [8, 24])
@pytest.mark.parametrize("command", WRITING)
def test_a_disk_that_fills_up_ends_a_command_in_one_line(
    command: str, free: int, trained: Trained, small_disk: Callable[[int], Path]
) -> None:
    """A real one: no patched call finds a library in C++ that ends the process where it cannot write."""
    disk = small_disk(free)
    result = writing(command, trained, disk / "out")
    assert jobs.fault(result) == "output-unwritable"
    assert "No space left" in result.stderr or "full" in result.stderr
    assert not [path for path in disk.rglob(".*") if path.is_file() and path.name != ".lock"]


@pytest.mark.parametrize("command", ["score", "report", "evaluate", "results"])
@pytest.mark.parametrize("place", ["absent", "empty"])
def test_a_run_that_is_none(command: str, place: str, studies: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    source = ["--data", studies] if command == "evaluate" else [studies]
    result = jobs.medtl(command, tmp_path / place, *source, "--out", tmp_path / "out")
    assert jobs.fault(result) == "run-missing"
    assert not (tmp_path / "out").exists()


def _flip_tensors(best: Path) -> None:
    flip_byte(next(best.glob("model-*.safetensors")))


def _remove_tensors(best: Path) -> None:
    next(best.glob("model-*.safetensors")).unlink()


def _cut_header(best: Path) -> None:
    header = best / "checkpoint.json"
    header.write_bytes(header.read_bytes()[:300])


def _edit_header(**changes: object) -> Callable[[Path], None]:
    def edit(best: Path) -> None:
        header = best / "checkpoint.json"
        header.write_text(json.dumps({**json.loads(header.read_text()), **changes}))

    return edit


DAMAGES: dict[str, Callable[[Path], None]] = {
    "tensors altered": _flip_tensors,
    "tensors gone": _remove_tensors,
    "header cut": _cut_header,
    "header of bytes": lambda best: (best / "checkpoint.json").write_bytes(b"\xff\xfe\x00"),
    "header of a list": lambda best: (best / "checkpoint.json").write_text("[]"),
    "unknown backbone": _edit_header(backbone="resnet9000"),
    "other classes": _edit_header(classes=["a", "b", "c"], task_kind="multiclass"),
    "two classes fewer": _edit_header(classes=[]),
    "other channels": _edit_header(in_channels=3),
    "no channels": _edit_header(in_channels=0),
    "thresholds of text": _edit_header(thresholds=["high"]),
    "no tensors named": _edit_header(tensors={}),
    "format of the future": _edit_header(format=999),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_is_damaged(damage: str, own_run: Path, studies: Path, tmp_path: Path) -> None:
    DAMAGES[damage](own_run / "checkpoints/best")
    result = jobs.medtl("score", own_run, studies, "--out", tmp_path / "out")
    assert jobs.fault(result) == "checkpoint-damaged"
    assert not (tmp_path / "out").exists()


def test_tensors_outside_the_checkpoint_are_never_read(own_run: Path, studies: Path, tmp_path: Path) -> None:
    best = own_run / "checkpoints/best"
    (tensors,) = best.glob("model-*.safetensors")
    outside = tensors.rename(own_run / tensors.name)
    header = json.loads((best / "checkpoint.json").read_text())
    header["tensors"]["model"]["file"] = f"../../{outside.name}"
    (best / "checkpoint.json").write_text(json.dumps(header))
    result = jobs.medtl("score", own_run, studies, "--out", tmp_path / "out")
    assert jobs.fault(result) == "checkpoint-damaged"


@pytest.mark.parametrize("damage", ["tensors altered", "header cut"])
def test_resuming_from_a_damaged_checkpoint(damage: str, own_run: Path, studies: Path) -> None:
    DAMAGES[damage](own_run / "checkpoints/last")
    assert jobs.fault(jobs.train(studies, own_run, "--resume")) == "checkpoint-damaged"
    load_checkpoint(own_run)


@pytest.mark.parametrize("name", ["history.csv", "config.yaml", "splits.csv"])
def test_resuming_a_run_that_lost_a_file(name: str, own_run: Path, studies: Path) -> None:
    (own_run / name).unlink()
    result = jobs.train(studies, own_run, "--resume")
    if result.exit_code:
        assert jobs.fault(result) in CODES
    else:
        assert (own_run / name).stat().st_size
    load_checkpoint(own_run)


def test_evaluating_a_run_that_lost_its_list_of_pixels(own_run: Path, studies: Path, tmp_path: Path) -> None:
    (own_run / "pixels.json").unlink()
    result = jobs.medtl("evaluate", own_run, "--data", studies, "--out", tmp_path / "out")
    assert jobs.fault(result) in CODES


@pytest.mark.parametrize("command", ["score", "report", "results"])
def test_a_source_that_is_not_there(command: str, trained: Trained, tmp_path: Path) -> None:
    result = jobs.medtl(command, trained.run, tmp_path / "absent", "--out", tmp_path / "out")
    assert jobs.fault(result) == "file-missing"
    assert "absent" in result.stderr


@pytest.mark.parametrize("command", ["score", "report"])
def test_a_folder_with_nothing_to_read(command: str, trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/readme.txt").write_text("nothing here")
    result = jobs.medtl(command, trained.run, tmp_path / "folder", "--out", tmp_path / "out")
    assert jobs.fault(result) == "folder-empty"


def test_a_folder_with_damaged_images_alone_is_rows(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.png").write_bytes(b"")
    result = jobs.medtl("score", trained.run, tmp_path / "folder", "--out", tmp_path / "out")
    assert result.exit_code == 3
    assert [row["code"] for row in jobs.read_rows(tmp_path / "out/scores.csv")] == ["file-empty"]


def test_scores_that_were_damaged(trained: Trained, tmp_path: Path) -> None:
    jobs.medtl("score", trained.run, trained.data, "--out", tmp_path / "out")
    (tmp_path / "out/scores.json").write_text("{")
    result = jobs.medtl("report", trained.run, tmp_path / "out", "--out", tmp_path / "report")
    assert jobs.fault(result) in CODES


def test_an_image_that_may_not_be_opened(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("locked.png", "open.png"):
        jobs.write_png(tmp_path / "folder" / name, jobs.draw(0, 0))
    opened = Path.open

    def refuse(path: Path, *args: object, **options: object) -> object:
        if path.name == "locked.png":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    result = jobs.medtl("score", trained.run, tmp_path / "folder", "--out", tmp_path / "out")
    assert result.exit_code == 3
    monkeypatch.undo()
    rows = {row["source"]: row["code"] for row in jobs.read_rows(tmp_path / "out/scores.csv")}
    assert rows == {"locked.png": "file-unreadable", "open.png": ""}


def test_labels_of_other_classes_than_the_models(trained: Trained, tmp_path: Path) -> None:
    data = jobs.write_images(tmp_path / "data", ("cyst", "tumour"))
    result = jobs.medtl("evaluate", trained.run, "--data", data, "--out", tmp_path / "out")
    assert jobs.fault(result) == "label-rows"


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["train", "--modality", "ct"],
        ["train", "--no-such-option"],
        ["score", "run"],
        ["evaluate", "run"],
        ["no-such-command"],
        ["evaluate", "run", "--data", "x", "--out", "y", "--part", "some"],
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments: list[str]) -> None:
    result = jobs.medtl(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr and "Traceback" not in result.output
