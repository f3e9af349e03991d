"""The processes that train one run together: torchrun starts one for each device.

Each computes its part of every step -> gradients, losses, statistics and stop requests, summed, are the same
in all of them, and so are the weights. There is no wrapper around the network: which parameters have
gradients changes from stage to stage. In a process alone nothing here does anything.
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
# Of one collective: between two of them no process reads files or evaluates a run alone.
STEP_TIMEOUT = timedelta(minutes=30)
# torchrun kills every process that has not ended 30 seconds after a signal.
LEADER_TIMEOUT = 25.0
LONGEST_PAUSE = 0.05
VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class ProcessGroup:
    """One of `size` processes: number `rank` of all, number `local` on its machine.

    store: where processes count events for each other, None in a process alone. Waiting at the store may take
    any time and heeds signals; collectives are for what all do at once. Every method is called by all
    processes in the same order, unless it says otherwise.
    """

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0, store: dist.Store | None = None) -> None:
        self.rank, self.size, self.local = rank, size, local
        self._store = store
        self._barriers = 0

    @property
    def leads(self) -> bool:
        """Whether this process decides, writes and reports for all."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self._store is None

    def split(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return this process's part of the samples of a step; parts differ by one sample at most."""
        return np.array_split(samples, self.size)[self.rank]

    def connect(self, device: torch.device) -> None:
        """Open the collectives: gloo, and NCCL between GPUs. Raises TrainingError world-unjoined."""
        if self._store is None or dist.is_initialized():
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # Waiting for a process that ends before it gets here must heed signals; init_process_group does not.
        self.barrier()
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                store=dist.PrefixStore("group", self._store),
                rank=self.rank,
                world_size=self.size,
                timeout=STEP_TIMEOUT,
            )
        except (RuntimeError, ValueError) as error:
            raise join_error(str(error)) from error

    def broadcast_weights(self, module: nn.Module) -> None:
        """Give all processes the weights and buffers of the one that leads."""
        if not self.alone:
            for tensor in module.state_dict().values():
                plain = tensor.reshape(-1).clone()  # independent of the layout of the weights
                self._collect(dist.broadcast, plain, 0)
                tensor.copy_(plain.view_as(tensor))

    def broadcast(self, numbers: Sequence[float]) -> list[float]:
        """Return the numbers of the process that leads, so that all decide alike."""
        values = torch.tensor(numbers, dtype=torch.float64)
        if not self.alone:
            self._collect(dist.broadcast, values, 0)
        return values.tolist()

    def any(self, requested: bool) -> bool:
        """Return whether any process requests it."""
        return requested if self.alone else bool(self.sum(torch.tensor([float(requested)])).item())

    def sum(self, values: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place."""
        if not self.alone:
            self._collect(dist.all_reduce, values)
        return values

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Put the mean over all processes into each tensor."""
        tensors = list(tensors)
        if not self.alone and tensors:
            _unflatten(self.sum(torch.cat([tensor.reshape(-1) for tensor in tensors])) / self.size, tensors)

    def sum_gradients(self, parameters: Iterable[nn.Parameter], extras: Tensor) -> Tensor:
        """Add up the gradients of all processes in place; return the sum of their `extras`, (n,).

        One collective for all of them. A parameter without a gradient counts as zero here, and stays without:
        the same network has none of it in the other processes either.
        """
        if self.alone:
            return extras
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = self.sum(torch.cat([*(gradient.reshape(-1) for gradient in gradients), extras.float()]))
        _unflatten(flat, gradients)
        return flat[-len(extras) :]

    def barrier(self, meanwhile: Callable[[], object] = lambda: None, *, failed: bool = False) -> bool:
        """Wait until all are here; return whether any of them has failed.

        meanwhile is called again and again, and may raise. Raises TrainingError world-lost where another
        process has ended.
        """
        if self._store is None:
            return failed
        self._barriers += 1
        key = f"barrier {self._barriers}"
        self._count(f"{key} failed", int(failed))
        self._count(key, 1)
        self._wait_until(lambda: self._count(key, 0) >= self.size, meanwhile)
        return self._count(f"{key} failed", 0) > 0

    def stop_requested(self, requested: bool) -> bool:
        """Return whether any process has requested a stop so far; each calls this whenever it likes."""
        return requested if self._store is None else self._count("stop", int(requested)) > 0

    def reports(self, error: BaseException) -> bool:
        """Return whether this process reports the fault that ends it: the first one does.

        Where all were asked to stop it is the one that leads, after it has saved: until then the others stay,
        since torchrun ends all processes once the first one has ended.
        """
        if self.alone:
            return True
        try:
            if isinstance(error, StoppedError | KeyboardInterrupt) and not self.leads:
                deadline = time.monotonic() + LEADER_TIMEOUT
                while self._count("fault", 0) == 0 and time.monotonic() < deadline:
                    time.sleep(LONGEST_PAUSE)
            return self._count("fault", 1) == 1
        except TrainingError:  # the store is gone, and with it the process that held it
            return True

    def leave(self) -> None:
        """Leave in good order: the process that leads goes last, since it may hold the store."""
        if self._store is not None:
            self._count("left", 1)
            if self.leads:
                self._wait_until(lambda: self._count("left", 0) >= self.size)

    def _collect(self, collective: Callable[..., Any], *arguments: Any) -> None:
        try:
            collective(*arguments)
        except RuntimeError as error:  # a process that has ended has closed its connections
            raise self._lost() from error

    def _count(self, key: str, more: int) -> int:
        assert self._store is not None
        try:
            return self._store.add(key, more)
        except RuntimeError as error:
            raise self._lost() from error

    def _wait_until(self, done: Callable[[], bool], meanwhile: Callable[[], object] = lambda: None) -> None:
        pause = 0.001
        while not done():
            meanwhile()
            if self._count("fault", 0):
                raise self._lost()
            time.sleep(pause)
            pause = min(LONGEST_PAUSE, 1.5 * pause)

    def _lost(self) -> TrainingError:
        reason = "another process of the run has ended; what was saved is safe"
        fix = "see its error message, then --resume"
        return TrainingError("world-lost", reason, where=f"process {self.rank} of {self.size}", fix=fix)


def _unflatten(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy the front of a flat tensor back into the tensors that were joined in it."""
    start = 0
    for tensor in tensors:
        tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()


@contextmanager
def joined_group() -> Iterator[ProcessGroup]:
    """Join the processes that torchrun started; a process that was started alone is a group of its own.

    Of a fault in several processes one reports: the others raise AlreadyReportedError in its place. Raises
    TrainingError world-unjoined.
    """
    group = _join()
    try:
        yield group
        group.leave()
    except BaseException as error:
        if group.reports(error):
            raise
        raise AlreadyReportedError("world-lost", "another process has reported it") from error
    finally:
        if not group.alone and dist.is_initialized():
            dist.destroy_process_group()


def join_error(reason: str, fix: str = "start medtl train by torchrun, or alone") -> TrainingError:
    """Return the error of a process that cannot join the others."""
    return TrainingError("world-unjoined", reason, where="torchrun", fix=fix)


def _join() -> ProcessGroup:
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return ProcessGroup()
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if missing:
        raise join_error(f"WORLD_SIZE is set, and {missing[0]} is not")
    try:
        rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        if not 0 <= rank < size or local < 0:
            raise join_error(f"there is no process {rank} of {size}")
        store, _, _ = next(dist.rendezvous("env://", timeout=JOIN_TIMEOUT))
    except (RuntimeError, ValueError) as error:
        raise join_error(str(error)) from error
    return ProcessGroup(rank, size, local, dist.PrefixStore("medtl", store))
