"""medtl tune: what it prints, what it refuses, and that its recipe trains."""

import json
import os
import signal
import time
from itertools import count
from pathlib import Path

import pytest
from click.testing import Result

from medtl.core.progress import StopSignal
from tests.cli import jobs
from tests.waiting import PATIENCE, wait_until

HEAD = ("schedule=linear-probe", "schedule.head_epochs=2")
SPACE = (
    "schedule.head_learning_rate: {low: 1e-3, high: 1e-1, log: true}\nfit.imbalance: [none, class-weighted]\n"
)


@pytest.fixture
def space(tmp_path: Path) -> Path:
    """A space of two keys."""
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    return path


def search(data: Path, out: Path, *more: str | Path) -> Result:
    """Run `medtl tune` with the tiny recipe at the level of the head."""
    arguments = ("--data", data, "--out", out, *jobs.settings(*HEAD))
    return jobs.medtl("tune", "--modality", "xray", *arguments, *more)


def test_a_search_prints_a_line_a_trial_the_best_and_a_warning(
    studies: Path, space: Path, tmp_path: Path
) -> None:
    out = tmp_path / "study"
    result = search(studies, out, "--trials", "3", "--space", space)
    assert result.exit_code == 0, result.output
    lines = [line.strip() for line in result.stderr.splitlines()]
    assert [line.split()[1] for line in lines if line.startswith("trial ")] == ["0", "1", "2"]
    assert all("auroc" in line and " s; " in line for line in lines if line.startswith("trial "))
    assert "head_learning_rate 0.003" in result.stderr and "the recipe itself" in result.stderr
    assert "epoch" not in result.stderr
    assert "3 trials (3 complete)" in result.stdout and "optimistic" in result.stdout
    assert "trials a minute" in result.stdout and str(out / "best.yaml") in result.stdout
    assert "CANARY" not in result.output

    best = jobs.medtl(
        "train", "--config", out / "best.yaml", "--data", studies, "--out", tmp_path / "run", "--json"
    )
    assert best.exit_code == 0
    rows = jobs.read_rows(out / "trials.csv")
    found = json.loads(best.stdout)["split"]["val"]["auroc"]["value"]
    assert found == max(float(row["auroc"]) for row in rows)


def test_json_is_one_document_and_the_same_command_goes_on(
    studies: Path, space: Path, tmp_path: Path
) -> None:
    search(studies, tmp_path / "study", "--trials", "1", "--space", space)
    result = search(studies, tmp_path / "study", "--trials", "3", "--space", space, "--json", "--keep", "1")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["states"] == {"complete": 3} and found["metric"] == "auroc"
    values = [row["value"] for row in found["best"]]
    assert values == sorted(values, reverse=True) and len(values) == 3
    assert found["best"][0]["values"].keys() == {"schedule.head_learning_rate", "fit.imbalance"}
    assert (Path(found["best"][0]["run"]) / "checkpoints/best").is_dir()
    assert len(list(tmp_path.glob("study/trials/*/checkpoints"))) == 1
    assert found["median_seconds"]["trial"] > 0 and found["trials_a_minute"] > 0
    assert found["test"] is None and "optimistic" in found["notes"][0]
    assert not [line for line in result.stderr.splitlines() if line.strip().startswith("trial 0")]


def test_the_test_part_is_judged_where_asked(studies: Path, space: Path, tmp_path: Path) -> None:
    more = ("--set", "split.test=0.25", "--trials", "1", "--space", space, "--evaluate")
    result = search(studies, tmp_path / "study", *more)
    assert result.exit_code == 0, result.output
    assert "Trial 0 on the test part" in result.stdout
    assert (tmp_path / "study/test/metrics.json").is_file()


def test_a_refused_input_gives_exit_code_3(space: Path, tmp_path: Path) -> None:
    data = jobs.write_images(tmp_path / "data", count=26)
    (data / "images/025.png").write_bytes(b"")
    result = search(data, tmp_path / "study", "--trials", "1", "--space", space)
    assert result.exit_code == 3
    assert result.stderr.count("refused: [file-empty]") == 1


def test_the_kept_space_can_be_given_again(studies: Path, tmp_path: Path) -> None:
    assert search(studies, tmp_path / "study", "--trials", "1").exit_code == 0
    space = tmp_path / "study/space.yaml"
    assert "schedule.head_learning_rate" in space.read_text()
    again = search(studies, tmp_path / "study", "--trials", "2", "--space", space)
    assert again.exit_code == 0 and "2 trials" in again.stdout


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (("--metric", "aurok"), "config-value"),
        (("--space", "nowhere.yaml"), "config-missing"),
        (("--set", "schedule.rat=1"), "config-unknown"),
        (("--set", "fit.batch_size=0"), "config-value"),
        (("--labels", "nowhere.csv"), "file-missing"),
    ],
)
def test_bad_input_is_one_line(more: tuple[str, ...], code: str, studies: Path, tmp_path: Path) -> None:
    assert jobs.fault(search(studies, tmp_path / "study", *more)) == code


def test_an_unknown_key_of_a_space_names_the_nearest(studies: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("schedule.head_learning_rte: [1e-3, 1e-2]\n")
    result = search(studies, tmp_path / "study", "--space", space)
    assert jobs.fault(result) == "config-unknown"
    assert "did you mean schedule.head_learning_rate?" in result.stderr


def test_another_recipe_in_the_same_study_is_refused(studies: Path, space: Path, tmp_path: Path) -> None:
    assert search(studies, tmp_path / "study", "--trials", "1", "--space", space).exit_code == 0
    other = search(studies, tmp_path / "study", "--space", space, "--set", "fit.dropout=0.5")
    assert jobs.fault(other) == "study-changed"


@pytest.mark.parametrize("more", [("--trials", "0"), ("--minutes", "0"), ("--keep", "0"), ("--trials", "x")])
def test_numbers_that_make_no_search_are_a_matter_of_usage(
    more: tuple[str, str], studies: Path, tmp_path: Path
) -> None:
    result = search(studies, tmp_path / "study", *more)
    assert result.exit_code == 2 and not (tmp_path / "study").exists()


def test_a_modality_or_recipe_is_needed(studies: Path, tmp_path: Path) -> None:
    result = jobs.medtl("tune", "--data", studies, "--out", tmp_path / "study")
    assert result.exit_code == 2 and "--modality" in result.stderr


def test_a_signal_saves_the_trial_and_ends_the_search_in_a_line(
    studies: Path, own_home: Path, space: Path, tmp_path: Path
) -> None:
    study, recipe = tmp_path / "study", jobs.settings(*HEAD, "schedule.head_epochs=3000")
    search_it = ["tune", "--modality", "xray", "--data", studies, "--out", study, *recipe, "--space", space]
    process = jobs.start(*search_it, "--trials", "1", home=own_home)
    log = study / "trials/0000/log.jsonl"
    wait_until(lambda: log.is_file() and '"event": "epoch"' in log.read_text(), process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143 and "Traceback" not in stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("medtl: ")]
    assert "[interrupted]" in line and "in trial 0" in line and "--resume" not in line


def test_a_search_that_is_stopped_goes_on_to_the_same_trials(
    studies: Path, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial asks after its step, in a validation and while its best epoch is judged; then the search."""
    more = ("--trials", "2", "--space", space, "--evaluate", "--set", "split.test=0.25")
    more = (*more, "--set", "schedule.head_epochs=1")
    assert search(studies, tmp_path / "whole", *more).exit_code == 0
    rows = [{**row, "seconds": ""} for row in jobs.read_rows(tmp_path / "whole/trials.csv")]
    places = {
        1: "in trial 0, in stage head after",
        5: "after trial 0",
        7: "in trial 1, in stage head while",
        11: "while the best trial was evaluated",
    }
    for poll, place in places.items():
        study = tmp_path / f"stopped-{poll}"
        with monkeypatch.context() as patch:
            asked = count(1)
            patch.setattr(StopSignal, "__call__", lambda _, asked=asked, poll=poll: next(asked) == poll)
            result = search(studies, study, *more)
        assert jobs.fault(result, exit_code=130) == "interrupted"
        assert place in result.stderr.splitlines()[-1]
        assert search(studies, study, *more).exit_code == 0
        assert [{**row, "seconds": ""} for row in jobs.read_rows(study / "trials.csv")] == rows


def test_ctrl_c_while_the_data_are_read_is_one_line_and_130(
    studies: Path, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    with monkeypatch.context() as patch:
        patch.setattr("medtl.workflows.train.prepare_samples", interrupt)
        result = search(studies, tmp_path / "study", "--trials", "1", "--space", space)
    assert jobs.fault(result, exit_code=130) == "interrupted"
    assert search(studies, tmp_path / "study", "--trials", "1", "--space", space).exit_code == 0
