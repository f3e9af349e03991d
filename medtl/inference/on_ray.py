"""Score batches on the machines of a Ray cluster, whose workers read the files from a shared path.

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

# A batch is retried so often after its worker died.
RETRIES = 3
CONNECT_SECONDS = 5.0


class Job(NamedTuple):
    """What a worker needs besides a batch. facts: everything that a row depends on, as of the driver."""

    score: Callable[[Any], Any]
    ensemble: Ensemble
    root: Path
    facts: Mapping[str, Any]


def work_on_ray(job: Job, batches: Sequence[Batch], most: int | None) -> Generator[Any, None, None]:
    """Yield the job's result for each batch, in order, from the cluster that RAY_ADDRESS names.

    most: workers, None for one a processor of the cluster. Raises CheckpointError extra-missing, and every
    error of the job; TrainingError cluster-missing, cluster-differs, worker-lost.
    """
    if not batches:
        return
    with _connected() as ray:
        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(_score_remotely)
        # Ray does not resolve a reference in a list, so that a worker fetches the job once.
        stored = [ray.put((job, str(medtl_home().absolute())))]
        under_way = most or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        try:
            for result in in_order(lambda batch: remote.remote(stored, batch).future(), batches, under_way):
                if isinstance(result, MedtlError):
                    raise result
                yield result
        except ray.exceptions.RayError as error:
            log.info("%s", error)
            kind = type(getattr(error, "cause", None) or error).__name__
            reason = f"a batch failed on {RETRIES + 1} workers or could not start ({kind})"
            fix = "check that workers have medtl and enough memory, then run the same command to resume"
            raise TrainingError("worker-lost", reason, fix=fix) from error


@contextmanager
def _connected() -> Iterator[Any]:
    """Yield ray, connected to a cluster; an existing connection stays open."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as missing:
        reason, fix = f"needs {missing.name}", "pip install 'medtl[ray]'"
        raise CheckpointError("extra-missing", reason, where="--cluster ray", fix=fix) from missing
    if ray.is_initialized():
        yield ray
        return
    before, address = signal.getsignal(signal.SIGTERM), os.environ.get("RAY_ADDRESS") or "auto"
    try:
        # Ray would try for minutes if nothing listens, and then end the process.
        host, colon, port = address.rpartition("/")[2].rpartition(":")
        if colon:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        reason, fix = "no Ray cluster answers", "start one (ray start --head), or name it in RAY_ADDRESS"
        raise TrainingError("cluster-missing", reason, where=address, fix=fix) from error
    signal.signal(signal.SIGTERM, before)  # Ray's own would end the process before rows are saved
    try:
        yield ray
    finally:
        ray.shutdown()


_jobs: dict[str, Job] = {}


def _score_remotely(stored: Sequence[Any], batch: Any) -> Any:
    """Score a batch in a worker; an error that has a code is returned, since Ray would wrap it."""
    import ray

    key = stored[0].hex()
    try:
        if key not in _jobs:
            job, os.environ["MEDTL_HOME"] = ray.get(stored[0])
            _check_worker(job)
            _jobs.clear()
            _jobs[key] = job
        with one_thread():
            return _jobs[key].score(batch)
    except MedtlError as error:
        return error


def _check_worker(job: Job) -> None:
    """Raise TrainingError cluster-differs if a row of this machine could differ from the driver's."""
    graphs = [how.graph for how in job.ensemble.forwards if how.graph]
    unseen = [path for path in (job.root, *(graph.path for graph in graphs)) if not path.exists()]
    ensemble = job.ensemble
    if graphs:
        runtime = import_onnx("--engine onnx").__version__
        ensemble = ensemble.with_graphs([replace(graph, runtime=runtime) for graph in graphs])
    here = ensemble.facts
    differing = [key for key, value in job.facts.items() if here[key] != value]
    if unseen:
        reason, fix = f"does not see {unseen[0]}", "mount it there at the same path"
    elif differing:
        reason, fix = f"differs in {', '.join(differing)}", "install the same on all machines"
    else:
        return
    raise TrainingError("cluster-differs", reason, where=f"worker on {platform.node()}", fix=fix)
