"""Lines on a terminal: folded at its width with an indent, elsewhere one line each, and true of metrics."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import numpy as np
import pytest

from medtl.cli.terminal import print_evaluation
from medtl.data.task import Task
from medtl.evaluation.evaluate import evaluate, to_json
from medtl.evaluation.metrics import Questions
from tests.cli import jobs
from tests.waiting import PATIENCE

PATH = "/data/a-folder/" + 9 * "of-a-long-name-" + ".dcm"
LINE = f"refused: [dicom-truncated] {PATH}: ends before its pixel data do: copy it again from its source"
SAY = f"from medtl.cli.terminal import say; say({LINE!r}, err=True)"


def on_terminal(code: str, columns: int) -> list[str]:
    """Run code on a terminal so wide; return the lines that it shows."""
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(
        command, cwd=jobs.ROOT, env=environment, stdin=end, stdout=end, stderr=end, close_fds=True
    )
    os.close(end)
    shown = b""
    try:
        while part := os.read(terminal, 4096):
            shown += part
    except OSError:  # Linux says so that the other end was closed
        pass
    os.close(terminal)
    assert process.wait(PATIENCE) == 0, shown
    return re.sub(r"\x1b\[[\d;]*m", "", shown.decode()).splitlines()


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_a_long_line_is_folded_with_an_indent_and_a_path_stays_whole(columns: int) -> None:
    lines = on_terminal(SAY, columns)
    assert " ".join(map(str.strip, lines)) == LINE and len(lines) > 1
    assert [line.startswith("    ") for line in lines] == [False] + [True] * (len(lines) - 1)
    assert all(len(line) <= columns or line.strip() == PATH + ":" for line in lines)


def test_a_note_is_folded_below_its_text() -> None:
    words = " ".join(["word"] * 30)
    lines = on_terminal(
        f"from medtl.cli.terminal import TerminalWatcher; TerminalWatcher('').note('note', {words!r})", 60
    )
    assert len(lines) > 2 and max(map(len, lines)) <= 60
    assert {line.rstrip().index("word") for line in lines} == {12}


def test_a_short_line_and_one_in_a_pipe_stay_as_they_are() -> None:
    assert on_terminal("from medtl.cli.terminal import say; say('page: a.html')", 80) == ["page: a.html"]
    command = [sys.executable, "-c", SAY]
    told = subprocess.run(command, cwd=jobs.ROOT, capture_output=True, text=True, check=True)
    assert told.stderr == LINE + "\n" and told.stdout == ""


@pytest.mark.parametrize(
    ("scores", "truth", "reason"),
    [
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], "the classes are perfectly separated"),
        ([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1], "the classes are perfectly separated"),
        ([0.3, 0.3, 0.3, 0.3], [0, 0, 1, 1], "all probabilities are equal"),
        ([0.1, 0.5, 0.5, 0.9], [0, 0, 1, 1], "no finite line fits"),
        ([0.1, 0.2, 0.8, 0.9], [1, 1, 1, 1], "one class only"),
    ],
)
def test_an_undefined_slope_says_why(
    scores: list[float], truth: list[int], reason: str, capsys: pytest.CaptureFixture
) -> None:
    positive = np.array(scores)
    task, patients = Task("binary", ("normal", "lesion")), [str(place) for place in range(4)]
    questions = Questions(np.stack([1 - positive, positive], axis=1), np.array(truth), task, patients)
    print_evaluation(to_json(evaluate(questions, (0.95,), resamples=20)), "Evaluation")
    lines = {line.split("  ")[1]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert lines["calibration slope"].endswith(f"undefined ({reason})")
    answers = "one class only" if len(set(truth)) == 1 else "all answers are the same"
    assert lines["mcc"].endswith(f"undefined ({answers})")
    assert ("undefined" in lines["auroc"]) == (len(set(truth)) == 1)
