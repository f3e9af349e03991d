"""Judge batches on the machines of a Ray cluster, whose workers read the files themselves from a shared path.

Ensemble, put into the cluster once -> tasks, a batch each -> rows, in order. Ray gives the batch of a worker
that died to another one.
"""

import logging
import os
import platform
import signal
import socket
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from medtl.core.files import medtl_home
from medtl.core.parallel import in_order
from medtl.errors import CheckpointError, MedtlError, TrainingError
from medtl.inference.ensemble import Ensemble
from medtl.inference.export import import_onnx
from medtl.inference.predictor import one_thread

log = logging.getLogger(__name__)

Batch = TypeVar("Batch")

# A batch that ended so many workers more than one is not given to another.
TRIES_AGAIN = 3
KNOCK_SECONDS = 5.0


class Job(NamedTuple):
    """What a worker needs beside a batch. facts: all that a row depends on, as it is where the journal is."""

    judge: Callable[[Any], Any]
    ensemble: Ensemble
    root: Path
    facts: Mapping[str, Any]


def work_on_ray(job: Job, batches: Sequence[Batch], most: int | None) -> Generator[Any, None, None]:
    """Yield what the job's judge says of each batch, in order, from the cluster that RAY_ADDRESS names.

    most: workers, None for one a processor of the cluster. Raises CheckpointError extra-missing, and what the
    judge raises; TrainingError cluster-missing, cluster-differs, worker-lost.
    """
    if not batches:
        return
    with _connected() as ray:
        remote = ray.remote(num_cpus=1, max_retries=TRIES_AGAIN)(_predict_there)
        # Ray leaves what is in a list to the worker, which takes it once.
        kept = [ray.put((job, str(medtl_home().absolute())))]
        under_way = most or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        try:
            for found in in_order(lambda batch: remote.remote(kept, batch).future(), batches, under_way):
                if isinstance(found, MedtlError):
                    raise found
                yield found
        except ray.exceptions.RayError as error:
            log.info("%s", error)
            kind = type(getattr(error, "cause", None) or error).__name__
            reason = f"a batch failed on {TRIES_AGAIN + 1} workers or could not begin ({kind})"
            fix = "medtl must be there, and memory; start again: it goes on where it was"
            raise TrainingError("worker-lost", reason, fix=fix) from error


@contextmanager
def _connected() -> Iterator[Any]:
    """Yield ray, connected to a cluster; a connection that was there already stays."""
    ray = _import_ray()
    if ray.is_initialized():
        yield ray
        return
    before, address = signal.getsignal(signal.SIGTERM), os.environ.get("RAY_ADDRESS") or "auto"
    try:
        _knock(address)
        ray.init(address, log_to_driver=False, logging_level="error")
    except (OSError, RuntimeError, ValueError) as error:
        reason, fix = "no Ray cluster answers", "start one (ray start --head), or name it in RAY_ADDRESS"
        raise TrainingError("cluster-missing", reason, where=address, fix=fix) from error
    signal.signal(signal.SIGTERM, before)  # Ray's ends the process, rows or no rows
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where nobody listens: Ray tries for minutes, and then ends the process."""
    host, colon, port = address.rpartition("/")[2].rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_SECONDS).close()


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as missing:
        reason, fix = f"needs {missing.name}", "pip install 'medtl[ray]'"
        raise CheckpointError("extra-missing", reason, where="--cluster ray", fix=fix) from missing
    return ray


_jobs: dict[str, Job] = {}


def _predict_there(kept: Sequence[Any], batch: Any) -> Any:
    """Judge a batch in a worker; an error that has a code is returned, since Ray would wrap it."""
    import ray

    try:
        if kept[0].hex() not in _jobs:
            job, os.environ["MEDTL_HOME"] = ray.get(kept[0])
            _check_worker(job)
            _jobs.clear()
            _jobs[kept[0].hex()] = job
        with one_thread():
            return _jobs[kept[0].hex()].judge(batch)
    except MedtlError as error:
        return error


def _check_worker(job: Job) -> None:
    """Raise TrainingError cluster-differs where a row made here could be another one than the driver's."""
    graphs = [how.graph for how in job.ensemble.forwards if how.graph]
    unseen = [path for path in (job.root, *(graph.path for graph in graphs)) if not path.exists()]
    here = facts_here(job.ensemble)
    differing = [key for key, value in job.facts.items() if here[key] != value]
    if unseen:
        reason, fix = f"does not see {unseen[0]}", "mount it there at the same path"
    elif differing:
        reason, fix = f"differs in {', '.join(differing)}", "give all machines the same"
    else:
        return
    raise TrainingError("cluster-differs", reason, where=f"worker on {platform.node()}", fix=fix)


def facts_here(ensemble: Ensemble) -> dict[str, Any]:
    """Return all that a row depends on but its image, with the versions of this machine."""
    graphs = [how.graph for how in ensemble.forwards]
    if not any(graphs):
        return ensemble.facts
    runtime = import_onnx("--engine onnx").__version__
    return ensemble.with_graphs([graph and replace(graph, runtime=runtime) for graph in graphs]).facts
