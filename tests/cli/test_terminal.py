"""Lines on a terminal: folded at its width with an indent; elsewhere each is one line."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

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
