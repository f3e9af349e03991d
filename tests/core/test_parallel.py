"""Results come in order from any process; children are forked or spawned; freed memory is used again."""

import json
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from medtl.core.parallel import in_order

WORK = """
import resource, sys
import numpy as np
from medtl.core.parallel import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def work():
    for _ in range(20):
        np.ones(2**23, np.float64)  # 64 MiB
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="an option of glibc")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", WORK, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("keep") < faults("give back") / 20


@pytest.mark.parametrize("most", [1, 3])
def test_results_come_in_order_and_few_are_under_way(most: int) -> None:
    under_way: list[int] = []

    def take(item: int) -> int:
        time.sleep(0.01 * (item % 3))
        return item

    def submit(item: int) -> Future[int]:
        under_way.append(item)
        return pool.submit(take, item)

    with ThreadPoolExecutor(4) as pool:
        for taken, result in enumerate(in_order(submit, range(20), most)):
            assert result == taken
            assert len(under_way) - taken <= most
    assert under_way == list(range(20))


# As the command line's script is: guarded, since a spawned child imports it.
SPAWNING = """
import functools, json, multiprocessing, os, sys
from medtl.core import parallel

def process_and_square(item):
    return os.getpid(), item * item

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    parallel.may_spawn, parallel.SPAWN_SECONDS = sys.argv[1] == "allowed", 0.0
    task = (lambda item: process_and_square(item)) if sys.argv[2] == "lambda" else process_and_square
    results = list(parallel.work_in_order(task, range(9), 2, 0.0))
    print(json.dumps([len({pid for pid, _ in results} - {os.getpid()}), [square for _, square in results]]))
"""


@pytest.mark.parametrize(
    ("allowed", "task", "children"),
    [("allowed", "function", (1, 2)), ("allowed", "lambda", (0,)), ("not allowed", "function", (0,))],
)
def test_children_are_spawned_where_the_script_is_guarded_and_the_task_can_be_pickled(
    allowed: str, task: str, children: tuple[int, ...], tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(SPAWNING)
    command = [sys.executable, str(tmp_path / "script.py"), allowed, task]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, squares = json.loads(done.stdout)
    assert count in children and squares == [item * item for item in range(9)]
