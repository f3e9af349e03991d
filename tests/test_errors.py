"""Every error is one line with a documented code."""

import ast
import pickle
import re
from pathlib import Path

import pytest

import medtl
from medtl.core.parallel import work_in_order
from medtl.core.progress import StoppedError
from medtl.data.labels import LabelRowsError, LeakRowsError
from medtl.errors import CODES, LINE_LIMIT, MedtlError, ReadError

PACKAGE = Path(medtl.__file__).parent


def raised_codes() -> set[tuple[str, str]]:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith("Error") and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant) and node.func.id in MEDTL_ERRORS:
                    found.add((path.name, first.value))
    return found


MEDTL_ERRORS = {cls.__name__ for cls in MedtlError.__subclasses__()}


def test_every_raised_code_is_documented():
    codes = raised_codes()
    assert len(codes) > 20
    assert not {(file, code) for file, code in codes if code not in CODES}


def test_the_guide_explains_every_code_and_says_what_to_do():
    guide = (Path(__file__).parents[1] / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| (.+) \| (.+) \|$", guide, flags=re.MULTILINE)
    assert [(code, meaning) for code, meaning, _ in rows] == list(CODES.items())
    assert all(remedy.strip().endswith(".") for _, _, remedy in rows)


def test_the_line_names_code_place_reason_and_fix():
    error = ReadError("file-empty", "has no bytes", where="a/b.dcm", fix="copy it again")
    assert str(error) == "[file-empty] a/b.dcm: has no bytes: copy it again"


def make_every_error() -> list[MedtlError]:
    kinds, made = [MedtlError], []
    for kind in kinds:
        kinds += kind.__subclasses__()
        if kind not in (LabelRowsError, LeakRowsError):
            made.append(kind("file-empty", "has no bytes", where="a/b.dcm", fix="copy it again"))
    assert StoppedError in kinds
    problems = ["row 2: no file a.dcm", "row 3: no class"]
    return [*made, LabelRowsError(problems, Path("labels.csv")), LeakRowsError(problems, Path("labels.csv"))]


@pytest.mark.parametrize("error", make_every_error(), ids=lambda error: type(error).__name__)
def test_every_error_crosses_processes_whole(error):
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 its own
        assert type(again) is type(error) and str(again) == str(error)
        assert vars(again) == vars(error) and again.args == error.args


def test_an_error_of_a_child_arrives_as_it_was_raised():
    with pytest.raises(LabelRowsError) as caught:
        list(work_in_order(refuse, [Path("labels.csv")] * 2, 2, 0.0))
    assert caught.value.problems == ("row 2: no file", "row 3: no class")


def refuse(path):
    raise LabelRowsError(["row 2: no file", "row 3: no class"], path)


@pytest.mark.parametrize("length", [10, 150, 5000])
def test_the_line_stays_short_and_keeps_the_reason(length):
    error = ReadError(
        "file-empty", "has no bytes\nat all", where="x" * length + "/end.dcm", fix="copy it again"
    )
    assert len(str(error)) <= LINE_LIMIT
    assert "end.dcm: has no bytes at all: copy it again" in str(error)
