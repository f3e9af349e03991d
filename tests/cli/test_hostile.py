"""Names and files made to do harm: nothing of them runs, leaves its folder, or acts on a terminal.

R9: no code of a journal, run, dataset or class name is run. R10: nothing is read or written outside the
folders named. R11: no markup, address or formula of a name is live in a page or table.
"""

import ast
import csv
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from click.testing import Result

import medtl
from tests.cli import jobs
from tests.cli.conftest import Trained
from tests.report.pages import check_page, read_pages

ESCAPE = "\x1b[2J\x1b]0;owned\x07\u202e"
CLASSES = (
    '=HYPERLINK("x")',
    '<script>alert(1)</script>"><img src=x onerror=alert(1)>',
    "javascript:alert(1)",
)
SITES = ("@SUM(1)", "+1+cmd", "<b>bold</b>")
FORMULAS = ("=", "+", "-", "@", "\t", "\r")


class Tour(NamedTuple):
    """The folder of hostile names, all that was written about it, and what was printed."""

    folder: Path
    written: Path
    printed: dict[str, Result]


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Tour:
    """Commands on images whose files, classes and columns have hostile names."""
    folder = tmp_path_factory.mktemp("in") / f"=folder{ESCAPE}<i>"
    rows = []
    for row in range(36):
        kind = row // 2 % 3
        name = f"={row:03d}{ESCAPE}<img src=x onerror=alert(1)>.png"
        jobs.write_png(folder / name, jobs.draw(row, kind))
        rows.append(
            {"path": name, "label": CLASSES[kind], "patient_id": f"=p{row // 2}", "@site": SITES[row % 3]}
        )
    (folder / f"-cut{ESCAPE}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    jobs.write_labels(folder, rows)
    root, printed = tmp_path_factory.mktemp("written"), {}
    with pytest.MonkeyPatch.context() as patch, jobs.tiny_backbones_registered():
        patch.setenv("MEDTL_HOME", str(root / "home"))
        for name, arguments in _commands(folder, root).items():
            printed[name] = jobs.medtl(*arguments)
    return Tour(folder, root, printed)


def _commands(folder: Path, root: Path) -> dict[str, list[str | Path]]:
    tiny, run, data = jobs.settings(), root / "run", ["--modality", "xray", "--data", folder]
    return {
        "inspect": ["inspect", folder, "--html", root / "inspect"],
        "prepare": ["prepare", folder, "--modality", "xray", "--out", root / "dataset", *tiny],
        "train": ["train", *data, "--out", run, *tiny],
        "scratch": ["train", *data, "--out", root / "<b>scratch", *tiny, "--set", "schedule=scratch"],
        "evaluate": ["evaluate", run, "--data", folder, "--part", "all", "--out", root / "evaluation"],
        "compare": ["compare", run, root / "<b>scratch", "--out", root / "comparison"],
        "score": ["score", run, folder, "--out", root / "scores"],
        "explain": ["explain", run, folder, "--out", root / "explain"],
        "report": ["report", run, root / "scores", "--out", root / "report"],
        "export": ["export", run, "--to", "torch", "--out", root / "torch"],
        "bundle": ["export", run, "--to", "monai-bundle", "--out", root / "bundle"],
    }


def test_hostile_names_stop_no_command(tour: Tour) -> None:
    codes = {name: result.exit_code for name, result in tour.printed.items()}
    assert set(codes.values()) <= {0, 3}, {n: r.output for n, r in tour.printed.items() if r.exit_code == 1}


def test_no_markup_of_a_name_is_live_in_a_page(tour: Tour) -> None:
    pages = read_pages(tour.written)
    assert len(pages) > 36
    for name, page in pages.items():
        check_page(page, tour.written / name)
        assert "alert(1)" not in "".join(page.blocks.values())
        assert not {"b", "i"} & {tag for tag, _ in page.tags}, name
        links = page.values("a", "href") + page.values("img", "src")
        assert not [link for link in links if link.casefold().startswith("javascript:")]


def test_no_cell_of_a_table_is_a_formula(tour: Tour) -> None:
    tables = [path for path in tour.written.rglob("*.csv") if "home" not in path.parts]
    assert len(tables) >= 8
    for path in tables:
        with path.open(newline="", encoding="utf-8") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        live = [cell for cell in cells if cell.startswith(FORMULAS) and not _is_number(cell)]
        assert not live, (path.name, live[:3])


def test_the_card_of_an_export_shows_markup_as_text(tour: Tour) -> None:
    for path in ("torch/README.md", "bundle/docs/README.md"):
        card = (tour.written / path).read_text()
        assert "<script" not in card and "<img" not in card and "&lt;script>" in card


def test_no_name_acts_on_the_terminal(tour: Tour) -> None:
    for name, result in tour.printed.items():
        acting = {mark for mark in result.output if not mark.isprintable() and mark != "\n"}
        assert not acting, name
    assert "?[2J" in tour.printed["score"].stderr


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", ["$__import__('os').system('touch CANARY')", "@network", "%{x}", "_target_"])
def test_a_class_that_a_bundle_would_run_is_refused(
    name: str, own_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    header = own_run / "checkpoints/best/checkpoint.json"
    header.write_text(json.dumps({**json.loads(header.read_text()), "classes": ["normal", name]}))
    result = jobs.medtl("export", own_run, "--to", "monai-bundle", "--out", tmp_path / "out")
    assert jobs.fault(result) == "export-unsupported"
    assert not (tmp_path / "out").exists() and not (tmp_path / "CANARY").exists()


ROWS = {
    "no JSON": "{",
    "a list": "[]",
    "unknown fields": '{"__class__": "os.system", "source": "touch CANARY"}',
    "wrong types": '{"sample_id": 1, "source": [], "status": "scored", "probabilities": "x"}',
    "too few probabilities": '{"sample_id": "s", "source": "x", "status": "scored", "probabilities": [0.5]}',
    "no share": '{"sample_id": "s", "source": "x", "status": "scored", "probabilities": [2.0, -1.0]}',
    "text for numbers": '{"sample_id": "s", "source": "x", "status": "scored", "probabilities": ["a", "b"]}',
}


@pytest.mark.parametrize("row", ROWS)
def test_a_journal_whose_rows_are_none_is_one_line(row: str, trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert jobs.medtl("score", trained.run, trained.data, "--out", out).exit_code == 0
    with sqlite3.connect(out / "journal.sqlite") as journal:
        journal.execute("update rows set row = ?", (ROWS[row],))
    journal.close()
    result = jobs.medtl("score", trained.run, trained.data, "--out", out)
    assert jobs.fault(result) == "scores-damaged"


def test_a_journal_of_another_shape_is_one_line(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with sqlite3.connect(tmp_path / "out/journal.sqlite") as journal:
        journal.execute("create view rows as select 1 as judge")
        journal.execute("create table facts (key text, value text, other text not null)")
    journal.close()
    result = jobs.medtl("score", trained.run, trained.data, "--out", tmp_path / "out")
    assert jobs.fault(result) == "scores-damaged"


METRICS: dict[str, object] = {
    "a list": [],
    "a split of numbers": {"split": -1},
    "stages of numbers": {"stages": 7},
    "seconds of text": {
        "stages": [{"name": "a", "groups": 0, "epochs": 1, "cached": 0}],
        "seconds": {"a": "x"},
    },
    "seconds of nothing": {"seconds": -1, "stages": [{"name": "a", "groups": 0, "epochs": 1, "cached": 0}]},
}


@pytest.mark.parametrize("content", METRICS)
def test_metrics_of_a_run_that_are_none_are_one_line(content: str, own_run: Path, tmp_path: Path) -> None:
    (own_run / "metrics.json").write_text(json.dumps(METRICS[content]))
    result = jobs.medtl("export", own_run, "--to", "torch", "--out", tmp_path / "out")
    assert jobs.fault(result) == "checkpoint-damaged"


@pytest.mark.parametrize(
    "change", [[], {"content_hashes": []}, {"sample_ids": None}, {"shape": "x"}, {"warnings": "x"}], ids=str
)
def test_a_prepared_dataset_with_another_header_is_one_line(
    change: object, trained: Trained, tmp_path: Path
) -> None:
    made = ["--modality", "xray", "--out", tmp_path / "dataset", *jobs.settings()]
    assert jobs.medtl("prepare", trained.data, *made).exit_code == 0
    header = tmp_path / "dataset/prepared.json"
    content = {**json.loads(header.read_text()), **change} if isinstance(change, dict) else change
    header.write_text(json.dumps(content))
    result = jobs.medtl("evaluate", trained.run, "--data", tmp_path / "dataset", "--out", tmp_path / "out")
    assert jobs.fault(result) == "dataset-damaged"


def test_an_archive_with_objects_or_leading_paths_stays_shut(tmp_path: Path) -> None:
    touched = tmp_path / "touched"

    class Touch:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (touched,)  # type: ignore[return-value]

    arrays = {
        f"{part}_{kind}": np.zeros((2, 28, 28), np.uint8) for part in ("train",) for kind in ("images",)
    }
    np.savez(tmp_path / "a.npz", **arrays, train_labels=np.array([Touch(), Touch()], dtype=object))
    np.savez(
        tmp_path / "b.npz", **{"../../outside": np.zeros(2)}, **arrays, train_labels=np.zeros((2, 1), int)
    )
    for name in ("a.npz", "b.npz"):
        result = jobs.medtl("inspect", tmp_path / name)
        assert "Traceback" not in result.output and result.exit_code in (0, 1, 3)
    assert not touched.exists() and {path.name for path in tmp_path.iterdir()} == {"a.npz", "b.npz"}


def test_links_out_of_the_folder_are_neither_read_nor_written(trained: Trained, tmp_path: Path) -> None:
    secret = jobs.write_png(tmp_path / "outside/secret.png", jobs.draw(1, 0))
    folder = tmp_path / "in"
    jobs.write_png(folder / "a.png", jobs.draw(0, 0))
    (folder / "link.png").symlink_to(secret)
    (folder / "folder").symlink_to(secret.parent)
    out = tmp_path / "out"
    result = jobs.medtl("score", trained.run, folder, "--out", out)
    assert result.exit_code == 0
    assert [row["source"] for row in jobs.read_rows(out / "scores.csv")] == ["a.png"]
    assert [path.name for path in secret.parent.iterdir()] == ["secret.png"]


def test_a_uid_or_id_that_is_a_path_names_no_file(trained: Trained, tmp_path: Path) -> None:
    evil = "../../../../evil"
    jobs.write_radiograph(tmp_path / "in/a.dcm", PatientID=evil, PatientName=evil, AccessionNumber="../evil")
    result = jobs.medtl("results", trained.run, tmp_path / "in", "--out", tmp_path / "deep/er/out")
    assert result.exit_code == 0, result.output
    names = {path.name for path in tmp_path.rglob("*")}
    assert not [name for name in names if "evil" in name]


FORBIDDEN = {"eval", "exec", "compile"}
# Read with an unpickler of medtl's own that makes nothing (test_weight_store.py), and in no other way.
INERT = "models/safe_unpickle.py"


def _calls() -> Iterator[tuple[str, str, dict[str, ast.expr]]]:
    """Yield file, dotted name and keywords of every call in medtl."""
    root = Path(medtl.__file__).parent
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                named = {keyword.arg or "": keyword.value for keyword in node.keywords}
                yield path.relative_to(root).as_posix(), ast.unparse(node.func), named


def _is_true(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is True


def test_no_call_in_medtl_could_run_what_a_file_holds() -> None:
    calls = list(_calls())
    assert len(calls) > 5000
    for file, name, keywords in calls:
        last = name.rsplit(".", 1)[-1]
        assert name not in FORBIDDEN, (file, name)
        assert not (
            name.startswith(("pickle.", "marshal.", "shelve.", "dill.")) and last != "UnpicklingError"
        )
        assert not (name.startswith("yaml.") and last not in ("safe_load", "safe_dump")), file
        assert name not in ("os.system", "os.popen") and not _is_true(keywords.get("shell")), file
        assert not _is_true(keywords.get("allow_pickle")), file
        if name == "torch.load" and file != INERT:
            assert _is_true(keywords.get("weights_only")), file
        if last in ("load", "read_array") and name.startswith("np."):
            assert "allow_pickle" in keywords, file
