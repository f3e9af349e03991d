"""medtl train: what a run holds, for each kind of task and of image."""

import json
from pathlib import Path

import pytest

from medtl.training.checkpoint import load_checkpoint
from medtl.training.run_folder import RunFolder
from tests.cli import jobs
from tests.cli.conftest import Trained

PARTS = (
    "config.yaml",
    "checkpoints/best/checkpoint.json",
    "checkpoints/last/checkpoint.json",
    "history.csv",
    "metrics.json",
    "splits.csv",
    "log.jsonl",
)


@pytest.mark.parametrize("name", ["trained", "trained_3d"])
def test_a_run_holds_every_part(name: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(name).run
    assert all((run / part).stat().st_size for part in PARTS)


def test_metrics_say_task_values_intervals_stages_seconds_and_versions(trained: Trained) -> None:
    metrics = json.loads((trained.run / "metrics.json").read_text())
    assert metrics["task"] == {"kind": "binary", "classes": ["normal", "lesion"]}
    for name in ("auroc", "accuracy"):
        found = metrics["split"]["val"][name]
        assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
    assert [stage["name"] for stage in metrics["stages"]] == ["head", "all"]
    assert metrics["seconds"]["total"] >= metrics["seconds"]["head"] > 0
    assert {"medtl", "torch", "monai"} <= metrics["versions"].keys()


def test_splits_hold_each_sample_once_and_patients_whole(trained: Trained) -> None:
    splits = jobs.read_rows(trained.run / "splits.csv")
    assert len({row["sample_id"] for row in splits}) == len(splits) == 24
    counts = {part: [row["split"] for row in splits].count(part) for part in ("train", "val")}
    assert sum(counts.values()) == 24
    assert all(count and count % 2 == 0 for count in counts.values())  # two images a patient


def test_history_and_log_have_a_row_for_each_epoch(trained: Trained) -> None:
    history = jobs.read_rows(trained.run / "history.csv")
    assert [(row["stage"], row["epoch"]) for row in history] == [("head", "1"), ("all", "1")]
    events = [json.loads(line) for line in (trained.run / "log.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["started", "epoch", "epoch", "finished"]


def test_the_resolved_recipe_trains_the_same_model_again(
    trained: Trained, tmp_path: Path, own_home: Path
) -> None:
    config = trained.run / "config.yaml"
    result = jobs.medtl("train", "--config", config, "--data", trained.data, "--out", tmp_path / "again")
    assert result.exit_code == 0
    assert load_checkpoint(tmp_path / "again").sha256 == load_checkpoint(trained.run).sha256
    assert (tmp_path / "again/config.yaml").read_text() == config.read_text()


def test_json_prints_the_metrics_and_nothing_else(studies: Path, tmp_path: Path) -> None:
    result = jobs.train(studies, tmp_path / "run", "--json")
    assert json.loads(result.stdout) == json.loads((tmp_path / "run/metrics.json").read_text())
    assert "stage 1/2" in result.stderr


def test_another_seed_trains_another_model(studies: Path, trained: Trained, tmp_path: Path) -> None:
    jobs.train(studies, tmp_path / "run", overrides=["fit.seed=1"])
    assert load_checkpoint(tmp_path / "run").sha256 != load_checkpoint(trained.run).sha256


def test_multiclass(tmp_path: Path) -> None:
    data = jobs.write_images(tmp_path / "data", ("none", "cyst", "tumour"), count=36)
    assert jobs.train(data, tmp_path / "run").exit_code == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["task"] == {"kind": "multiclass", "classes": ["none", "cyst", "tumour"]}
    assert set(metrics["split"]["val"]["per_class"]) == {"none", "cyst", "tumour"}


def test_multilabel_with_missing_labels(tmp_path: Path) -> None:
    data, rows = tmp_path / "data", []
    for row in range(24):
        jobs.write_png(data / f"{row:02d}.png", jobs.draw(row, row % 2))
        fluid = "" if row % 5 == 4 else str(row // 2 % 2)
        rows.append({"path": f"{row:02d}.png", "label_mass": str(row % 2), "label_fluid": fluid})
    jobs.write_labels(data, rows)
    assert jobs.train(data, tmp_path / "run").exit_code == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["task"] == {"kind": "multilabel", "classes": ["mass", "fluid"]}
    scored = jobs.medtl("score", tmp_path / "run", data, "--out", tmp_path / "out")
    assert scored.exit_code == 0
    for row in jobs.read_rows(tmp_path / "out/scores.csv"):
        cuts = dict(zip(metrics["task"]["classes"], metrics["thresholds"], strict=True))
        above = [name for name, cut in cuts.items() if float(row[f"p_{name}"]) >= round(cut, 6)]
        assert row["predicted"].split("|") == (above or [""])


def test_a_labelled_input_that_is_damaged_is_refused_and_the_rest_train(tmp_path: Path) -> None:
    data = jobs.write_images(tmp_path / "data", count=26)
    damaged = data / "images/025.png"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    result = jobs.train(data, tmp_path / "run")
    assert result.exit_code == 3
    assert "refused: [raster-damaged]" in result.stderr and "025.png" in result.stderr
    assert len(jobs.read_rows(tmp_path / "run/splits.csv")) == 25


def test_a_labelled_input_that_the_scan_refuses_counts_as_refused(tmp_path: Path) -> None:
    data = jobs.write_images(tmp_path / "data", count=26)
    (data / "images/025.png").write_bytes(b"")
    result = jobs.train(data, tmp_path / "run")
    assert result.exit_code == 3
    assert "refused: [file-empty]" in result.stderr


def test_a_damaged_slice_refuses_its_series_alone(tmp_path: Path) -> None:
    data = jobs.write_volumes(tmp_path / "data", count=12)
    (data / "case11/IM003.dcm").write_bytes((data / "case11/IM003.dcm").read_bytes()[:-100])
    result = jobs.train(data, tmp_path / "run", modality="mri", overrides=jobs.SETTINGS_3D)
    assert result.exit_code == 3
    assert len(jobs.read_rows(tmp_path / "run/splits.csv")) == 11


@pytest.mark.parametrize("name", ["trained", "trained_3d"])
def test_nothing_in_a_run_tells_who_the_patients_are(name: str, request: pytest.FixtureRequest) -> None:
    data, run = request.getfixturevalue(name)
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) > len(PARTS)
    for path in files:
        content = path.read_bytes().lower()
        for word in (b"canary", b"19771231", b"20010911", str(data).encode(), b"1.2.826.0"):
            assert word not in content, (path.name, word)


def test_thresholds_of_the_run_are_kept_in_the_checkpoint(trained: Trained) -> None:
    metrics = json.loads(RunFolder(trained.run).metrics.read_text())
    assert list(load_checkpoint(trained.run).header.thresholds or ()) == metrics["thresholds"]
