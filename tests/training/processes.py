"""Processes that train together, without torchrun: this process keeps their store, as torchrun does."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from queue import Empty
from typing import Any

import torch.distributed as dist

from medtl.training.distributed import ProcessGroup, joined_group
from tests.waiting import PATIENCE


def in_processes(member: Callable[[ProcessGroup], Any], size: int = 2, method: str = "fork") -> list[Any]:
    """Run member(process_group) in `size` processes; return what each returned, or raised in words, by rank.

    None stands for a process that was killed. method: spawn where CUDA is used, which no fork survives;
    member is then a function of a module.
    """
    waiting = timedelta(seconds=PATIENCE)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=waiting)
    context: Any = multiprocessing.get_context(method)
    results = context.Queue()
    processes = [
        context.Process(target=_take_part, args=(member, rank, size, store.port, results))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    found: dict[int, Any] = {}
    while len(found) < size and (any(process.is_alive() for process in processes) or not results.empty()):
        with suppress(Empty):
            found.update([results.get(timeout=0.2)])
    for process in processes:
        process.join(PATIENCE)
        process.kill()
    return [found.get(rank) for rank in range(size)]


def _take_part(member: Callable[[ProcessGroup], Any], rank: int, size: int, port: int, results: Any) -> None:
    os.environ.update(
        WORLD_SIZE=str(size),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
    )
    try:
        with joined_group() as process_group:
            found = member(process_group)
    except BaseException as error:
        traceback.print_exc()  # shown where a test fails
        found = f"{type(error).__name__}: {error}"
    results.put((rank, found))
