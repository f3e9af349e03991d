"""The processes that train one run together: who leads it, whose samples are whose, what all agree on.

torchrun starts one process a device -> each computes its part of every step -> gradients, losses, statistics
and stops, added up, are the same in all of them, and so are the weights.

No wrapper around the network: which parameters have gradients changes from stage to stage. A process alone is
a world of its own, in which nothing here does anything.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from medtl.core.progress import StoppedError
from medtl.errors import AlreadyReportedError, TrainingError

JOIN_TIMEOUT = timedelta(minutes=5)
# Of one collective: between two of them nobody reads files or judges a run alone.
STEP_TIMEOUT = timedelta(minutes=30)
# torchrun kills whoever has not ended 30 seconds after a signal.
PATIENCE_WITH_LEADER = 25.0
LONGEST_PAUSE = 0.05
VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class World:
    """One of `size` processes: number `rank` of all, number `local` on its machine.

    board: where processes leave notes for each other, None in a process alone. Waiting at the board may take
    as long as it likes and heeds signals; collectives are for what all do at once. Every method is called by
    all processes in the same order, unless it says otherwise.
    """

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0, board: dist.Store | None = None) -> None:
        self.rank, self.size, self.local = rank, size, local
        self._board = board
        self._barriers = 0

    @property
    def leads(self) -> bool:
        """Whether this process decides, writes and speaks for all."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is nobody to agree with."""
        return self._board is None

    def part(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return this process's part of the samples of a step; parts differ by one sample at most."""
        return np.array_split(samples, self.size)[self.rank]

    def connect(self, device: torch.device) -> None:
        """Open the collectives: gloo, and NCCL between GPUs. Raises TrainingError world-unjoined."""
        if self._board is None or dist.is_initialized():
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        # Waiting for a process that ends before it comes here must heed signals; the group's own does not.
        self.barrier()
        try:
            dist.init_process_group(
                backend,
                store=dist.PrefixStore("group", self._board),
                rank=self.rank,
                world_size=self.size,
                timeout=STEP_TIMEOUT,
            )
        except (RuntimeError, ValueError) as error:
            raise unjoined(str(error)) from error

    def align(self, module: nn.Module) -> None:
        """Give all processes the weights and buffers of the one that leads."""
        if not self.alone:
            for tensor in module.state_dict().values():
                plain = tensor.reshape(-1).clone()  # whatever the layout of the weights
                self._collect(dist.broadcast, plain, 0)
                tensor.copy_(plain.view_as(tensor))

    def share(self, numbers: Sequence[float]) -> list[float]:
        """Return the numbers of the process that leads, from which all decide alike."""
        if self.alone:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64)
        self._collect(dist.broadcast, values, 0)
        return values.tolist()

    def agree(self, asked: bool) -> bool:
        """Return whether any process asks."""
        if self.alone:
            return asked
        return bool(self.sum(torch.tensor([float(asked)])).item())

    def sum(self, values: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place."""
        if not self.alone:
            self._collect(dist.all_reduce, values)
        return values

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Put the mean over all processes into each tensor."""
        tensors = list(tensors)
        if self.alone or not tensors:
            return
        flat = self.sum(torch.cat([tensor.reshape(-1) for tensor in tensors])) / self.size
        _lay_back(flat, tensors)

    def sum_gradients(self, parameters: Iterable[nn.Parameter], extras: Tensor) -> Tensor:
        """Add up the gradients of all processes in place; return the sum of their `extras`, (n,).

        One collective, whatever there is to add up. A parameter without a gradient counts as zero here, and
        stays without: the same network has none of it in the other processes either.
        """
        if self.alone:
            return extras
        found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = self.sum(torch.cat([*(gradient.reshape(-1) for gradient in found), extras.float()]))
        _lay_back(flat, found)
        return flat[-len(extras) :]

    def barrier(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Wait until all are here. meanwhile is called again and again, and may raise.

        Raises TrainingError world-lost where another process has failed.
        """
        if self._board is None:
            return
        self._barriers += 1
        key = f"barrier {self._barriers}"
        self._count(key, 1)
        self._until(lambda: self._count(key, 0) >= self.size, meanwhile)

    def announce(self, milestone: str) -> None:
        """Say that something is done which the others wait for; the process that leads calls this alone."""
        if self._board is not None:
            self._count(milestone, 1)

    def await_leader(self, milestone: str) -> None:
        """Wait for what the process that leads announces; the others call this. Raises as barrier does."""
        self._until(lambda: self._count(milestone, 0) > 0)

    def heard(self, asked: bool) -> bool:
        """Return whether any process has asked to stop so far; each calls this whenever it likes."""
        if self._board is None:
            return asked
        return self._count("stop", int(asked)) > 0

    def tells_of(self, error: BaseException) -> bool:
        """Return whether this process is to tell of the fault that ends it: the first one is.

        Where all were asked to stop it is the one that leads, after it has saved: until then the others stay,
        since torchrun ends all processes once the first one has ended.
        """
        if self.alone:
            return True
        try:
            if isinstance(error, StoppedError | KeyboardInterrupt) and not self.leads:
                deadline = time.monotonic() + PATIENCE_WITH_LEADER
                while self._count("fault", 0) == 0 and time.monotonic() < deadline:
                    time.sleep(LONGEST_PAUSE)
            return self._count("fault", 1) == 1
        except TrainingError:  # the board is gone, and with it whoever kept it
            return True

    def part_from(self) -> None:
        """Leave in good order: the process that leads last, since it may keep the board."""
        if self._board is None:
            return
        self._count("left", 1)
        if self.leads:
            self._until(lambda: self._count("left", 0) >= self.size)

    def _collect(self, collective: Callable[..., Any], *arguments: Any) -> None:
        try:
            collective(*arguments)
        except RuntimeError as error:  # whoever ended has closed its connections
            raise self._lost() from error

    def _count(self, key: str, more: int) -> int:
        assert self._board is not None
        try:
            return self._board.add(key, more)
        except RuntimeError as error:
            raise self._lost() from error

    def _until(self, done: Callable[[], bool], meanwhile: Callable[[], object] = lambda: None) -> None:
        pause = 0.001
        while not done():
            meanwhile()
            if self._count("fault", 0):
                raise self._lost()
            time.sleep(pause)
            pause = min(LONGEST_PAUSE, 1.5 * pause)

    def _lost(self) -> TrainingError:
        reason = "another process of the run has ended; what was saved is kept"
        fix = "see what it said, then --resume"
        return TrainingError("world-lost", reason, where=f"process {self.rank} of {self.size}", fix=fix)


@contextmanager
def joined_world() -> Iterator[World]:
    """Join the processes that torchrun started; one that was started alone is a world of its own.

    Of a fault in several processes one tells: the others raise AlreadyReportedError in its place. Raises
    TrainingError world-unjoined.
    """
    world = _join()
    try:
        yield world
        world.part_from()
    except BaseException as error:
        if world.tells_of(error):
            raise
        raise AlreadyReportedError("world-lost", "another process has told of it") from error
    finally:
        if not world.alone and dist.is_initialized():
            dist.destroy_process_group()


def unjoined(reason: str, fix: str = "start medtl train by torchrun, or alone") -> TrainingError:
    """Return the error of a process that finds no way to the others."""
    return TrainingError("world-unjoined", reason, where="torchrun", fix=fix)


def _join() -> World:
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return World()
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if missing:
        raise unjoined(f"WORLD_SIZE is set, and {missing[0]} is not")
    try:
        rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        if not 0 <= rank < size or local < 0:
            raise unjoined(f"there is no process {rank} of {size}")
        board, _, _ = next(dist.rendezvous("env://", timeout=JOIN_TIMEOUT))
    except (RuntimeError, ValueError) as error:
        raise unjoined(str(error)) from error
    return World(rank, size, local, dist.PrefixStore("medtl", board))


def _lay_back(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy the front of a flat tensor back into those of which it was made."""
    start = 0
    for tensor in tensors:
        tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()
