"""medtl evaluate: thresholds by a rule, stated prevalence, subgroups, prediction sets and tables."""

import csv
import json
from pathlib import Path

import pytest

from medtl.training.checkpoint import load_checkpoint
from tests.cli import jobs
from tests.cli.conftest import Trained


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_keeps_its_validation_predictions_calibration_and_floors(trained: Trained) -> None:
    header = load_checkpoint(trained.run).header
    assert header.conformal is not None and len(header.conformal.floors) == 2
    kept = rows_of(trained.run / "predictions.csv")
    assert len(kept) == 8 and {row["split"] for row in kept} == {"val"}
    assert {"sample_id", "patient", "target", "logit_normal", "p_lesion"} <= kept[0].keys()


@pytest.mark.parametrize(("asked", "kept"), [("isotonic", "isotonic"), ("none", None)])
def test_the_recipe_says_how_probabilities_are_calibrated(
    asked: str, kept: str | None, trained: Trained, tmp_path: Path
) -> None:
    result = jobs.train(trained.data, tmp_path / "run", overrides=(f"fit.calibration={asked}",))
    assert result.exit_code == 0, result.output
    calibration = load_checkpoint(tmp_path / "run").header.calibration
    assert (calibration.method if calibration else None) == kept


def test_rule_prevalence_and_subgroups_reach_every_output(trained: Trained, tmp_path: Path) -> None:
    arguments = ["--data", trained.data, "--out", tmp_path, "--threshold", "sensitivity=1"]
    result = jobs.medtl("evaluate", trained.run, *arguments, "--prevalence", "0.05", "--part", "val")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["threshold_rule"] == "sensitivity=1" and found["sensitivity"]["value"] == 1.0
    assert found["sensitivity"]["low"] < 1 and found["prevalence"] == {"lesion": 0.05}
    assert {"conformal", "subgroups", "decision", "auroc_bootstrap", "ppv_at_prevalence"} <= found.keys()
    predictions = rows_of(tmp_path / "predictions.csv")
    assert len(predictions) == 8 and {"predicted", "set"} <= predictions[0].keys()
    assert rows_of(tmp_path / "metrics.csv") and (tmp_path / "subgroups.csv").is_file()


@pytest.mark.parametrize(
    "more",
    [
        ["--threshold", "best"],
        ["--prevalence", "x"],
        ["--prevalence", "1.5"],
        ["--prevalence", "normal=0.5"],
        ["--subgroup", "scanner"],
    ],
)
def test_what_is_not_understood_is_refused_in_one_line(
    more: list[str], trained: Trained, tmp_path: Path
) -> None:
    result = jobs.medtl("evaluate", trained.run, "--data", trained.data, "--out", tmp_path / "out", *more)
    assert result.exit_code in (1, 2) and "Traceback" not in result.output
    assert "[config-value]" in result.stderr or "[label-table]" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_without_predictions_keeps_its_own_thresholds(trained: Trained, tmp_path: Path) -> None:
    import shutil

    run = Path(shutil.copytree(trained.run, tmp_path / "run"))
    (run / "predictions.csv").unlink()
    arguments = ["evaluate", run, "--data", trained.data, "--out", tmp_path / "out"]
    assert "[predictions-missing]" in jobs.medtl(*arguments, "--threshold", "youden").stderr
    assert jobs.medtl(*arguments).exit_code == 0


def write_patients(folder: Path, **more: str) -> Path:
    """Write a radiograph of each of 24 patients, whose headers say sex and scanner; return labels.csv."""
    rows = []
    for row in range(24):
        facts = {"PatientID": f"P{row}", "PatientSex": "FM"[row // 2 % 2], "Manufacturer": "Maker", **more}
        path = jobs.write_radiograph(folder / f"{row:02d}.dcm", row, **facts)
        rows.append({"path": path.name, "label": ("normal", "lesion")[row % 2]})
    return jobs.write_labels(folder, rows)


@pytest.mark.parametrize("column", ["Sex", "PatientSex", "patient sex"])
def test_a_column_of_the_table_wins_over_the_same_fact_of_the_header(
    column: str, trained: Trained, tmp_path: Path
) -> None:
    labels = write_patients(tmp_path / "data")
    header, *rows = labels.read_text().splitlines()
    stated = [f"{row},{('male', 'female')[number // 6 % 2]}" for number, row in enumerate(rows)]
    labels.write_text("\n".join([f"{header},{column}", *stated]))
    arguments = ["evaluate", trained.run, "--data", tmp_path / "data", "--labels", labels, "--json"]
    for more in ([], ["--subgroup", "sex"]):
        result = jobs.medtl(*arguments, "--out", tmp_path / "out", "--part", "all", *more)
        assert result.exit_code == 0, result.output
        (grouping,) = json.loads(result.stdout)["subgroups"]
        assert grouping["attribute"] == column
        assert {group["name"] for group in grouping["groups"]} == {"male", "female"}


def test_an_empty_column_of_the_table_leaves_the_fact_to_the_header(trained: Trained, tmp_path: Path) -> None:
    labels = write_patients(tmp_path / "data")
    header, *rows = labels.read_text().splitlines()
    labels.write_text("\n".join([f"{header},Sex", *(f"{row}," for row in rows)]))
    arguments = ["evaluate", trained.run, "--data", tmp_path / "data", "--labels", labels, "--json"]
    result = jobs.medtl(*arguments, "--out", tmp_path / "out", "--part", "all", "--subgroup", "sex")
    assert result.exit_code == 0, result.output
    (grouping,) = json.loads(result.stdout)["subgroups"]
    assert {group["name"] for group in grouping["groups"]} == {"F", "M"}


def test_the_terminal_says_why_an_interval_lies_below_its_value(trained: Trained, tmp_path: Path) -> None:
    arguments = ["evaluate", trained.run, "--data", trained.data, "--out", tmp_path / "out"]
    result = jobs.medtl(*arguments, "--part", "all")
    ece = json.loads((tmp_path / "out/metrics.json").read_text())["ece"]
    assert ece["low"] is not None and ece["high"] - ece["value"] < ece["value"] - ece["low"]
    assert "A small sample raises the ece; its interval corrects for that" in " ".join(result.stdout.split())


def test_a_malformed_age_ends_no_evaluation_and_is_not_told(trained: Trained, tmp_path: Path) -> None:
    labels = write_patients(tmp_path / "data", PatientAge="061Y")
    file = tmp_path / "data" / "00.dcm"
    sound = file.read_bytes()
    file.write_bytes(sound.replace(b"\x10\x10AS\x04\x00", b"\x10\x10FD\x04\x00"))
    assert file.read_bytes() != sound
    arguments = ["--data", tmp_path / "data", "--labels", labels, "--out", tmp_path / "out", "--part", "all"]
    result = jobs.medtl("evaluate", trained.run, *arguments)
    assert result.exit_code == 0, result.output
    assert "061Y" not in result.output
    by_sex = json.loads((tmp_path / "out/metrics.json").read_text())["subgroups"][0]
    assert by_sex["attribute"] == "sex"
    assert {one["name"]: one["samples"] for one in by_sex["groups"]} == {"F": 11, "M": 12, "not stated": 1}


def test_subgroups_are_formed_by_what_dicom_says(tmp_path: Path) -> None:
    labels = write_patients(tmp_path / "data")
    assert jobs.train(tmp_path / "data", tmp_path / "run", "--labels", labels).exit_code == 0
    arguments = ["--data", tmp_path / "data", "--labels", labels, "--out", tmp_path / "out", "--part", "val"]
    result = jobs.medtl("evaluate", tmp_path / "run", *arguments)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out/metrics.json").read_text())["subgroups"]
    assert [one["attribute"] for one in found] == ["sex"]  # one scanner, and one age, are no groups
    assert {group["name"] for group in found[0]["groups"]} == {"F", "M"}
    assert (
        jobs.fault(jobs.medtl("evaluate", tmp_path / "run", *arguments, "--subgroup", "site"))
        == "label-table"
    )
