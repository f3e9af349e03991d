"""Ctrl-C and SIGTERM: answered after the current step; at once where nobody asks, and at the second."""

import os
import signal
import time

import pytest

from medtl.core.progress import StoppedError, StopSignal


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_waits_for_the_question_once_it_was_asked(number: int, code: int) -> None:
    with StopSignal() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop() and stop.exit_code == code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_before_anyone_asks_a_signal_ends_at_once(number: int) -> None:
    with StopSignal() as stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
        time.sleep(1)
    assert stop.exit_code == 128 + number


def test_the_second_signal_ends_at_once() -> None:
    with StopSignal() as stop:
        stop()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert stop.exit_code == 130


def test_what_ends_a_stopped_job_has_the_exit_code_of_the_signal() -> None:
    with pytest.raises(StoppedError) as caught, StopSignal() as stop:
        stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        raise StoppedError("interrupted", "stopped", fix="run the same command again")
    assert caught.value.exit_code == 143
    with pytest.raises(KeyboardInterrupt) as interrupt, StopSignal():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert interrupt.value.args == (signal.SIGINT,)


def test_one_of_many_processes_is_not_hurried_by_the_launcher() -> None:
    with StopSignal() as stop:
        stop.of_many = True
        stop()
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert stop()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN


def test_the_handlers_of_before_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopSignal():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(("number", "ended_by"), [(signal.SIGINT, 0), (signal.SIGTERM, signal.SIGTERM)])
def test_a_child_minds_no_ctrl_c_of_its_terminal_but_does_end_by_sigterm(number: int, ended_by: int) -> None:
    """The last step may wait for a loader's batch; whoever terminates a loader expects it to end."""
    with StopSignal() as stop:
        stop()
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), number)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -ended_by
    assert stop.received is None
