"""medtl score: one row for each series or image, scored or refused, and nothing in the table that runs."""

import json
import os
import pty
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import ComputedRadiographyImageStorage

from medtl.cli import main
from medtl.cli.terminal import TerminalWatcher
from medtl.core.journal import Journal, open_journal
from medtl.inference import onnx_graph as graphs
from medtl.training.checkpoint import load_checkpoint
from tests.cli import jobs
from tests.cli.conftest import Trained
from tests.imaging.conftest import build_dataset, pattern, save

P_COLUMNS = ("p_normal", "p_lesion")
COLUMNS = ["sample_id", "source", "status", "code", "reason", "predicted", *P_COLUMNS, "set", "ood"]


def score(run: Path, folder: Path, out: Path, exit_code: int = 0) -> dict[str, dict[str, str]]:
    """Score a folder and return its rows by source."""
    result = jobs.medtl("score", run, folder, "--out", out)
    assert result.exit_code == exit_code, result.output
    assert "Traceback" not in result.output
    rows = jobs.read_rows(out / "scores.csv")
    by_source = {row["source"]: row for row in rows}
    assert len(by_source) == len(rows) == len({row["sample_id"] for row in rows})
    return by_source


def test_each_image_has_a_row_with_probabilities(trained: Trained, tmp_path: Path) -> None:
    rows = score(trained.run, trained.data, tmp_path / "out")
    assert sorted(rows) == [f"images/{row:03d}.png" for row in range(24)]
    for row in rows.values():
        assert list(row) == COLUMNS and row["status"] == "scored" and row["code"] == ""
        assert float(row["p_normal"]) + float(row["p_lesion"]) == pytest.approx(1, abs=2e-6)
        assert row["predicted"] in ("normal", "lesion")


def test_each_series_has_a_row(trained_3d: Trained, tmp_path: Path) -> None:
    rows = score(trained_3d.run, trained_3d.data, tmp_path / "out")
    assert len(rows) == 12 and {row["status"] for row in rows.values()} == {"scored"}


def test_a_series_in_the_folder_itself_and_one_in_a_folder_of_its_name_are_two_rows(
    trained_3d: Trained, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    jobs.write_volume(folder, 1, 1)
    jobs.write_volume(folder / "study", 2, 0)
    rows = score(trained_3d.run, folder, tmp_path / "out")
    assert sorted(rows) == ["./study", "study"]
    assert rows["study"]["p_lesion"] != rows["./study"]["p_lesion"]
    lone = score(trained_3d.run, folder / "study", tmp_path / "lone")
    assert lone["./study"]["p_lesion"] == rows["study"]["p_lesion"]


def test_bad_files_are_rows_and_the_others_score_as_without_them(trained: Trained, tmp_path: Path) -> None:
    clean = score(trained.run, trained.data, tmp_path / "clean")
    folder = Path(shutil.copytree(trained.data, tmp_path / "mixed"))
    whole = (folder / "images/000.png").read_bytes()
    bad = {
        "images/000-cut.png": whole[:-60],
        "images/011-empty.png": b"",
        "images/zz-page.png": b"<html>404</html>",
        "flipped.png": whole[:80] + bytes([whole[80] ^ 255]) + whole[81:],
        "cut.nii.gz": b"\x1f\x8b\x08\x00truncated",
    }
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    (folder / "notes.txt").write_text("not an image")
    rows = score(trained.run, folder, tmp_path / "out", exit_code=3)
    assert {name for name, row in rows.items() if row["status"] == "refused"} == set(bad)
    for name in bad:
        assert rows[name]["code"] and rows[name]["reason"] and rows[name]["predicted"] == ""
        assert rows[name]["p_lesion"] == ""
    assert {name: row for name, row in rows.items() if name not in bad} == clean


def test_refusals_are_told_one_line_each(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    jobs.write_png(folder / "good.png", jobs.draw(0, 0))
    (folder / "bad.png").write_bytes(b"")
    result = jobs.medtl("score", trained.run, folder, "--out", tmp_path / "out")
    told = [line for line in result.stderr.splitlines() if line.startswith("refused: ")]
    assert len(told) == 1 and told[0].startswith("refused: [file-empty] bad.png: ")
    assert result.stdout.startswith("1 scored, 1 refused")


def test_on_a_terminal_the_bar_is_gone_before_rows_are_told(trained: Trained, tmp_path: Path) -> None:
    jobs.write_png(tmp_path / "folder/good.png", jobs.draw(0, 0))
    (tmp_path / "folder/bad.png").write_bytes(b"")
    child, terminal = pty.fork()
    if not child:
        try:
            with Path("/dev/tty").open("w") as screen:
                sys.stdout = sys.stderr = screen  # pytest's own are none
                main(["score", str(trained.run), str(tmp_path / "folder"), "--out", str(tmp_path / "out")])
        finally:
            os._exit(99)
    shown = b""
    with suppress(OSError):  # the end of a terminal
        while part := os.read(terminal, 4096):
            shown += part
    os.waitpid(child, 0)
    (line,) = [line for line in shown.decode().splitlines() if "refused: [" in line]
    assert "scoring" not in line.split("\x1b[2K")[-1] and "good.png" not in line


def test_who_takes_the_journal_at_the_end_does_not_take_the_success(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/bad.png").write_bytes(b"")
    jobs.write_png(tmp_path / "folder/good.png", jobs.draw(0, 0))
    with ExitStack() as others:

        @contextmanager
        def snatched(folder: Path) -> Iterator[Journal]:
            with open_journal(folder) as journal:
                yield journal
            others.enter_context(open_journal(folder))

        monkeypatch.setattr("medtl.workflows.score.open_journal", snatched)
        formats = ("--format", "csv", "--format", "jsonl")
        result = jobs.medtl("score", trained.run, tmp_path / "folder", "--out", tmp_path / "out", *formats)
    assert result.exit_code == 3 and result.stderr.count("refused: [file-empty] bad.png") == 1
    assert result.stdout.startswith("1 scored, 1 refused")
    assert len((tmp_path / "out/scores.jsonl").read_text().splitlines()) == 2


def test_json_is_one_document_with_a_row_each(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    jobs.write_png(folder / "good.png", jobs.draw(0, 0))
    (folder / "bad.png").write_bytes(b"")
    result = jobs.medtl("score", trained.run, folder, "--out", tmp_path / "out", "--json")
    rows = {row["source"]: row for row in json.loads(result.stdout)}
    assert rows["good.png"]["status"] == "scored" and len(rows["good.png"]["probabilities"]) == 2
    assert rows["bad.png"]["code"] == "file-empty"


def test_a_second_scoring_writes_the_same_bytes(trained: Trained, tmp_path: Path) -> None:
    for out in ("one", "two"):
        score(trained.run, trained.data, tmp_path / out)
    assert (tmp_path / "one/scores.csv").read_bytes() == (tmp_path / "two/scores.csv").read_bytes()


def test_a_single_file_can_be_scored(trained: Trained, tmp_path: Path) -> None:
    rows = score(trained.run, trained.data / "images/003.png", tmp_path / "out")
    assert list(rows) == ["003.png"]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t"])
def test_a_formula_in_a_file_name_is_quoted(start: str, trained: Trained, tmp_path: Path) -> None:
    name = f"{start}1+cmd('calc').png"
    jobs.write_png(tmp_path / "folder" / name, jobs.draw(0, 0))
    (tmp_path / "folder" / f"{start}empty.png").write_bytes(b"")
    rows = jobs.read_rows(_table(trained.run, tmp_path, exit_code=3))
    assert len(rows) == 2
    assert not any(cell.startswith(start) for row in rows for cell in row.values())


@pytest.mark.parametrize(
    "name",
    [
        "line\nbreak.png",
        "carriage\rreturn.png",
        'quote".png',
        "[red]markup.png",
        "two  spaces.png",
        "accénts.png",
        "a,b;c.png",
    ],
)
def test_an_odd_file_name_stays_one_row(name: str, trained: Trained, tmp_path: Path) -> None:
    jobs.write_png(tmp_path / "folder" / name, jobs.draw(0, 0))
    (tmp_path / "folder" / f"empty {name}").write_bytes(b"")
    rows = jobs.read_rows(_table(trained.run, tmp_path, exit_code=3))
    assert {row["source"]: row["status"] for row in rows} == {name: "scored", f"empty {name}": "refused"}


def test_a_file_name_that_is_no_text_is_scored(trained: Trained, tmp_path: Path) -> None:
    good = jobs.write_png(tmp_path / "folder/a.png", jobs.draw(0, 0))
    shutil.copy(good, os.fsencode(good.parent) + b"/b\xff.png")
    rows = jobs.read_rows(_table(trained.run, tmp_path, exit_code=0))
    assert [row["status"] for row in rows] == ["scored", "scored"]


def test_square_brackets_in_the_folder_are_no_markup(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "a[" / "b]"
    jobs.write_png(folder / "a.png", jobs.draw(0, 0))
    result = jobs.medtl("score", trained.run, folder, "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert "a[/b]" in result.stderr.replace("\n", "")


def test_volumes_are_refused_by_a_model_of_images(trained: Trained, volumes: Path, tmp_path: Path) -> None:
    rows = score(trained.run, volumes, tmp_path / "out", exit_code=3)
    assert {row["code"] for row in rows.values()} == {"image-dimensions"} and len(rows) == 12


def test_images_are_refused_by_a_model_of_volumes(trained_3d: Trained, studies: Path, tmp_path: Path) -> None:
    rows = score(trained_3d.run, studies, tmp_path / "out", exit_code=3)
    assert {row["code"] for row in rows.values()} == {"image-dimensions"} and len(rows) == 24


def test_links_out_of_the_folder_are_not_followed(trained: Trained, tmp_path: Path) -> None:
    jobs.write_png(tmp_path / "folder/inside.png", jobs.draw(0, 0))
    outside = jobs.write_png(tmp_path / "elsewhere/outside.png", jobs.draw(1, 1))
    (tmp_path / "folder/link.png").symlink_to(outside)
    (tmp_path / "folder/up").symlink_to(outside.parent)
    assert list(score(trained.run, tmp_path / "folder", tmp_path / "out")) == ["inside.png"]


def test_a_pipe_is_skipped_without_waiting_for_it(trained: Trained, tmp_path: Path) -> None:
    jobs.write_png(tmp_path / "folder/inside.png", jobs.draw(0, 0))
    os.mkfifo(tmp_path / "folder/pipe.png")
    rows = score(trained.run, tmp_path / "folder", tmp_path / "out", exit_code=3)
    assert rows["inside.png"]["status"] == "scored" and rows["pipe.png"]["status"] == "refused"


def test_the_bar_tells_studies_a_minute_but_not_those_that_were_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    clock = iter(range(0, 1000, 3))
    with TerminalWatcher("scoring") as watcher:
        watcher.bar.get_time = lambda: float(next(clock))
        watcher.progress("scoring", 1000, 2000)
        for done in range(1010, 1051, 10):
            watcher.progress("scoring", done, 2000)
        rate = watcher.bar.tasks[0].fields["rate"]
    assert rate.endswith(" a minute") and 50 < float(rate.split()[0]) < 250  # ten in some seconds


def test_another_modality_is_refused_unless_asked_for(trained: Trained, tmp_path: Path) -> None:
    run = shutil.copytree(trained.run, tmp_path / "run")
    recipe = run / "checkpoints/best/checkpoint.json"
    header = json.loads(recipe.read_text())
    header["preprocessing"]["modalities"] = ["DX"]
    recipe.write_text(json.dumps(header))
    dataset = build_dataset(pattern(40, 40), ComputedRadiographyImageStorage, Modality="CR", BitsStored=12)
    save(dataset, tmp_path / "folder" / "cr.dcm")
    jobs.write_png(tmp_path / "folder/names-none.png", jobs.draw(0, 0))
    rows = score(run, tmp_path / "folder", tmp_path / "out", exit_code=3)
    assert rows["cr.dcm"]["code"] == "image-modality" and rows["names-none.png"]["status"] == "scored"
    result = jobs.medtl("score", run, tmp_path / "folder", "--out", tmp_path / "any", "--any-modality")
    assert result.exit_code == 0, result.output


def test_a_constant_image_is_warned_of(trained: Trained, tmp_path: Path) -> None:
    jobs.write_png(tmp_path / "folder/blank.png", np.full((32, 32), 9, np.uint8))
    result = jobs.medtl("score", trained.run, tmp_path / "folder", "--out", tmp_path / "out")
    assert result.exit_code == 0 and "warning: [image-constant] blank.png" in result.stderr


def test_a_folder_of_a_hundred_of_which_twenty_are_bad(trained: Trained, tmp_path: Path) -> None:
    """R3: 100 rows, 80 scores equal to the clean run's, 20 reasons."""
    for row in range(100):
        jobs.write_png(tmp_path / "folder" / f"{row:03d}.png", jobs.draw(row, row % 2))
    clean = score(trained.run, tmp_path / "folder", tmp_path / "clean")
    spoil = [
        lambda data: b"",
        lambda data: data[:-50],
        lambda data: b"<html>404</html>",
        lambda data: data[:9],
    ]
    bad = [f"{row:03d}.png" for row in range(3, 100, 5)]
    for row, name in enumerate(bad):
        path = tmp_path / "folder" / name
        path.write_bytes(spoil[row % 4](path.read_bytes()))
    for out in (tmp_path / "clean", tmp_path / "overwritten"):  # over the clean run's journal, and without
        rows = score(trained.run, tmp_path / "folder", out, exit_code=3)
        assert len(rows) == 100
        refused = {name: row for name, row in rows.items() if row["status"] == "refused"}
        assert sorted(refused) == bad and all(row["code"] and row["reason"] for row in refused.values())
        assert {name: row for name, row in rows.items() if name not in bad} == {
            name: row for name, row in clean.items() if name not in bad
        }


def test_a_second_process_is_refused_in_a_line(trained: Trained, tmp_path: Path) -> None:
    with open_journal(tmp_path / "out"):
        result = jobs.medtl("score", trained.run, trained.data, "--out", tmp_path / "out")
    assert jobs.fault(result) == "run-locked"


def test_a_damaged_journal_is_named(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/journal.sqlite").write_text("this is no database")
    result = jobs.medtl("score", trained.run, trained.data, "--out", tmp_path / "out")
    assert jobs.fault(result) == "scores-damaged"


def test_overwrite_forgets_what_the_journal_has(trained: Trained, tmp_path: Path) -> None:
    arguments = ("score", trained.run, trained.data, "--out", tmp_path / "out")
    jobs.medtl(*arguments)
    assert "(24 rows were already there)" in jobs.medtl(*arguments).stdout
    assert "rows were already there" not in jobs.medtl(*arguments, "--overwrite").stdout


def test_several_tables_say_the_same(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for row, name in enumerate(["a.png", "=cmd().png", "<script>.png"]):
        jobs.write_png(folder / name, jobs.draw(row, row % 2))
    (folder / "bad.png").write_bytes(b"")
    formats = ("--format", "csv", "--format", "jsonl")
    result = jobs.medtl("score", trained.run, folder, "--out", tmp_path / "out", *formats)
    assert result.exit_code == 3
    table = jobs.read_rows(tmp_path / "out/scores.csv")
    lines = [json.loads(line) for line in (tmp_path / "out/scores.jsonl").read_text().splitlines()]
    assert [list(line) for line in lines] == [COLUMNS] * 4
    for row, line in zip(table, lines, strict=True):
        assert row["source"].removeprefix("'") == line["source"]
        assert row["p_lesion"] == ("" if line["p_lesion"] is None else f"{line['p_lesion']:.6f}")
        assert all(row[name] == line[name] for name in COLUMNS if name not in ("source", *P_COLUMNS))


def test_parquet_says_the_same(trained: Trained, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow (medtl[parquet]) is not installed")
    jobs.write_png(tmp_path / "folder/a.png", jobs.draw(0, 0))
    (tmp_path / "folder/bad.png").write_bytes(b"")
    formats = ("--format", "parquet", "--format", "jsonl")
    jobs.medtl("score", trained.run, tmp_path / "folder", "--out", tmp_path / "out", *formats)
    lines = [json.loads(line) for line in (tmp_path / "out/scores.jsonl").read_text().splitlines()]
    assert parquet.read_table(tmp_path / "out/scores.parquet").to_pylist() == lines
    assert not (tmp_path / "out/scores.csv").exists()


def test_parquet_without_its_package_is_refused_before_scoring(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = jobs.medtl("score", trained.run, trained.data, "--out", tmp_path / "out", "--format", "parquet")
    assert jobs.fault(result) == "extra-missing" and not (tmp_path / "out").exists()


def test_runs_are_ensembled(trained: Trained, own_run: Path, tmp_path: Path) -> None:
    alone = score(trained.run, trained.data, tmp_path / "alone")
    out = tmp_path / "both"
    result = jobs.medtl("score", trained.run, trained.data, "--out", out, "--with", own_run)
    assert result.exit_code == 0, result.output
    both = {row["source"]: row for row in jobs.read_rows(out / "scores.csv")}
    for name, row in both.items():
        assert row["p_lesion"] == alone[name]["p_lesion"] and row["set"] == ""
    assert len(json.loads((out / "scores.json").read_text())["models"]) == 2


def test_runs_of_other_images_refuse_together(trained: Trained, trained_3d: Trained, tmp_path: Path) -> None:
    more = ("--with", trained_3d.run)
    result = jobs.medtl("score", trained.run, trained.data, "--out", tmp_path / "out", *more)
    assert result.exit_code == 3
    assert {row["code"] for row in jobs.read_rows(tmp_path / "out/scores.csv")} == {"image-dimensions"}


def test_mirror_images_that_training_never_saw_are_refused(trained: Trained, tmp_path: Path) -> None:
    result = jobs.medtl("score", trained.run, trained.data, "--out", tmp_path / "out", "--tta")
    assert jobs.fault(result) == "config-value" and "--tta" in result.stderr


def _table(run: Path, tmp_path: Path, exit_code: int) -> Path:
    result = jobs.medtl("score", run, tmp_path / "folder", "--out", tmp_path / "out")
    assert result.exit_code == exit_code, result.output
    return tmp_path / "out/scores.csv"


def test_what_is_not_like_the_training_images_is_told(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    shutil.copy(trained.data / "images/000.png", folder / "like.png")
    jobs.write_png(folder / "unlike.png", 255 * (np.indices((24, 20)).sum(axis=0) % 2).astype(np.uint8))
    rows = score(trained.run, folder, tmp_path / "out")
    assert rows["like.png"]["ood"] == "ok"
    assert rows["unlike.png"]["ood"] == "far from the training images"
    assert rows["unlike.png"]["p_lesion"], "it is scored all the same"
    result = jobs.medtl("score", trained.run, folder, "--out", tmp_path / "again", "--json")
    assert {row["ood"] for row in json.loads(result.stdout)} == {"ok", "far from the training images"}
    assert (
        "1 out of distribution"
        in jobs.medtl("score", trained.run, folder, "--out", tmp_path / "third").stdout
    )


def test_training_images_are_like_themselves(trained: Trained, trained_3d: Trained, tmp_path: Path) -> None:
    for place, run in (("flat", trained), ("deep", trained_3d)):
        rows = score(run.run, run.data, tmp_path / place)
        verdicts = [row["ood"] for row in rows.values()]
        assert verdicts.count("ok") >= 0.9 * len(verdicts) and "" not in verdicts


def test_another_modality_that_is_let_in_is_told(trained_3d: Trained, tmp_path: Path) -> None:
    jobs.write_volume(tmp_path / "in" / "case", 0, 0, Modality="CT")
    result = jobs.medtl("score", trained_3d.run, tmp_path / "in", "--out", tmp_path / "out", "--any-modality")
    assert result.exit_code == 0, result.output
    (row,) = jobs.read_rows(tmp_path / "out" / "scores.csv")
    assert row["ood"] == "modality" and row["status"] == "scored"


def test_a_run_without_ood_limits_scores_with_an_empty_column(
    own_run: Path, trained: Trained, tmp_path: Path
) -> None:
    header = own_run / "checkpoints" / "best" / "checkpoint.json"
    content = json.loads(header.read_text())
    del content["ood"], content["tensors"]["ood"]
    header.write_text(json.dumps(content))
    rows = score(own_run, trained.data, tmp_path / "out")
    assert {row["ood"] for row in rows.values()} == {""}


def test_ood_tensors_that_were_altered_are_refused(own_run: Path, trained: Trained, tmp_path: Path) -> None:
    (kept,) = (own_run / "checkpoints" / "best").glob("ood-*.safetensors")
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    result = jobs.medtl("score", own_run, trained.data, "--out", tmp_path / "out")
    assert jobs.fault(result) == "checkpoint-damaged"


def test_tables_of_another_folder_are_replaced_with_a_word(trained: Trained, tmp_path: Path) -> None:
    other, out = jobs.write_images(tmp_path / "other", count=2), tmp_path / "out"
    first = jobs.medtl("score", trained.run, trained.data, "--out", out)
    assert "are of another" not in first.stderr
    assert "are of another folder" in jobs.medtl("score", trained.run, other, "--out", out).stderr
    assert "are of another" not in jobs.medtl("score", trained.run, other, "--out", out).stderr


def test_onnx_runtime_scores_as_pytorch_does_and_the_journal_keeps_them_apart(
    trained: Trained, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    out = tmp_path / "out"
    by_torch = score(trained.run, trained.data, out)
    for workers in (2, 1):
        options = ("--engine", "onnx", "--workers", workers, "--overwrite")
        result = jobs.medtl("score", trained.run, trained.data, "--out", out, *options)
        assert result.exit_code == 0 and "(24 rows were already there)" not in result.stdout
        written = (out / "scores.csv").read_bytes()
        rows = jobs.read_rows(out / "scores.csv")
        assert {row["ood"] for row in rows} == {row["ood"] for row in by_torch.values()}
        for row in rows:
            assert float(row["p_lesion"]) == pytest.approx(
                float(by_torch[row["source"]]["p_lesion"]), abs=1e-4
            )
        facts = json.loads((out / "scores.json").read_text())
        assert facts["engine"] == "onnx" and facts["precision"] == "fp32"
        lone = tmp_path / f"lone {workers}"
        shutil.copytree(trained.data / "images", lone / "images", ignore=lambda _, names: sorted(names)[1:])
        jobs.medtl("score", trained.run, lone, "--out", tmp_path / f"out {workers}", *options)
        assert (tmp_path / f"out {workers}/scores.csv").read_bytes() == b"".join(
            written.splitlines(keepends=True)[:2]
        )
    again = jobs.medtl("score", trained.run, trained.data, "--out", out)
    assert "(24 rows were already there)" in again.stdout
    assert {row["source"]: row for row in jobs.read_rows(out / "scores.csv")} == by_torch


def test_pytorch_scores_where_the_graph_differs_and_says_so(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    monkeypatch.setattr(graphs, "TOLERANCE", -1.0)
    result = jobs.medtl("score", trained.run, trained.data, "--out", tmp_path / "out", "--engine", "onnx")
    assert result.exit_code == 0 and "PyTorch, since [export-differs]" in result.stderr
    assert json.loads((tmp_path / "out/scores.json").read_text())["engine"] == "torch"


def test_onnx_without_its_extra_is_a_line(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = jobs.medtl("score", trained.run, trained.data, "--out", tmp_path / "out", "--engine", "onnx")
    assert jobs.fault(result) == "extra-missing" and "pip install 'medtl[export]'" in result.stderr


def test_bfloat16_is_recorded_and_has_rows_of_its_own(trained: Trained, tmp_path: Path) -> None:
    command = ("score", trained.run, trained.data, "--out", tmp_path / "out")
    for precision in ("fp32", "bf16"):
        result = jobs.medtl(*command, "--precision", precision)
        assert result.exit_code == 0 and "rows were already there" not in result.stdout
        facts = json.loads((tmp_path / "out/scores.json").read_text())
        assert (facts["engine"], facts["precision"]) == ("torch", precision)
    assert "(24 rows were already there)" in jobs.medtl(*command).stdout


def test_bfloat16_is_pytorchs(trained: Trained, tmp_path: Path) -> None:
    options = ("--out", tmp_path / "out", "--engine", "onnx", "--precision", "bf16")
    result = jobs.medtl("score", trained.run, trained.data, *options)
    assert result.exit_code == 2 and "--engine torch" in result.stderr


def test_a_cluster_gives_the_table_of_this_machine(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra `ray`")
    expected = (
        score(trained.run, trained.data, tmp_path / "out") and (tmp_path / "out/scores.csv").read_bytes()
    )
    monkeypatch.chdir(trained.data.parent)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        out = ("--out", tmp_path / "there", "--cluster", "ray")
        result = jobs.medtl("score", trained.run, trained.data.name, *out)
    finally:
        ray.shutdown()
    assert result.exit_code == 0, result.output
    assert (tmp_path / "there/scores.csv").read_bytes() == expected


def test_a_cluster_that_is_not_there_is_one_line(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("score", trained.run, trained.data, "--out", tmp_path / "out", "--cluster", "ray")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "ray", None)
        assert jobs.fault(jobs.medtl(*command)) == "extra-missing"
    pytest.importorskip("ray", reason="needs the extra `ray`")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert jobs.fault(jobs.medtl(*command)) == "cluster-missing"


def test_copies_and_thresholds_are_told(trained: Trained, tmp_path: Path) -> None:
    source = jobs.write_radiograph(tmp_path / "in" / "a.dcm")
    (tmp_path / "in" / "b.dcm").write_bytes(source.read_bytes())
    (tmp_path / "in" / "notes.txt").write_text("none")
    result = jobs.medtl("score", trained.run, tmp_path / "in", "--out", tmp_path / "out")
    assert "2 skipped (files of other formats (.txt): 1, exact copies of other files: 1)" in result.stdout
    facts = json.loads((tmp_path / "out/scores.json").read_text())
    assert facts["left_out"]["exact copies of other files"] == 1
    assert facts["thresholds"] == list(load_checkpoint(trained.run).header.thresholds)
