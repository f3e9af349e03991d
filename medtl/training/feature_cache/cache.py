"""IMAGES -> ACTIVATIONS of the frozen prefix, computed once, saved in stores and read by training.

A frozen prefix is a pure function of the prepared image, so a stage that freezes it need not run it again. A
store is named by what its numbers depend on, to the last bit: the prefix's weights, the samples' pixels, the
view, the boundary, the batches of the pass and the arithmetic. Runs that differ in anything else share it.
"""

import hashlib
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl.core import __version__
from medtl.core.files import make_folder, medtl_home, read_json, write_json
from medtl.core.parallel import in_order
from medtl.core.staging import remove_folder
from medtl.data.prepared import PreparedDataset
from medtl.errors import OutputError
from medtl.imaging.augmentation import Augmentation
from medtl.models.backbone import Backbone
from medtl.models.classifier import Classifier, place_images
from medtl.models.costs import StepCost, step_costs
from medtl.models.folding import fold_groups
from medtl.training.feature_cache.plan import StepViews
from medtl.training.feature_cache.store import (
    FORMAT_VERSION,
    FeatureStore,
    OpenStore,
    StoreSpec,
    StoreWriter,
    begin,
    cache_errors,
    cache_full,
    make_room,
    open_store,
    publish,
    staging_folder,
)

log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
Slot = tuple[int, int]  # step, view

# Activations are trusted for as long as what computed them is the same.
VERSIONS = (__version__, *(version(name) for name in ("torch", "timm", "monai")))

# A pass takes batches of its own, whatever training takes: sums depend on it in the last bit.
MOST_IN_A_BATCH = 32
BATCH_BYTES = 256e6


@dataclass(frozen=True, eq=False)
class Views:
    """Views of some rows of a prepared dataset: view 0 is the image itself, view v > 0 the random view v.

    key: the seed and the augmentation in words, which distinguish random views.
    """

    dataset: PreparedDataset
    rows: NDArray[np.int64]
    augmentation: Augmentation
    seed: int
    key: str

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image, (1, C, *size)."""
        return (1, *self.dataset.pixels.shape[1:])

    def read(self, indices: Sequence[int] | NDArray[np.int64], view: int) -> Tensor:
        """Return view number `view` of the samples at `indices`: float32 (n, C, *size) in [0, 1]."""
        images = self.dataset.read(self.rows[np.asarray(indices)])
        if view == 0:
            return images
        ids = [self.dataset.content_hashes[row] for row in self.rows[np.asarray(indices)]]
        return torch.stack(
            [self.augmentation(image, self.seed, view, name) for image, name in zip(images, ids, strict=True)]
        )


@dataclass(frozen=True)
class Team:
    """The processes that compute a pass together: this one's number, how many, and how they wait for all."""

    rank: int
    size: int
    barrier: Callable[[], object]

    @property
    def leads(self) -> bool:
        """Whether this process decides, and publishes what all have written."""
        return self.rank == 0


class Job(NamedTuple):
    """One batch of a pass: the samples' view, and the steps whose stores lack it."""

    view: int
    batch: int
    rows: NDArray[np.int64]
    steps: tuple[int, ...]


class FeatureCache:
    """Feature stores on disk, and the network that fills them.

    budget_bytes bounds all stores below `root` together, those of other runs too.
    """

    def __init__(
        self,
        classifier: Classifier,
        autocast: Callable[[], AbstractContextManager],
        precision: str,
        root: Path | None = None,
        *,
        budget_bytes: float = float("inf"),
    ) -> None:
        self.classifier = classifier
        self.autocast = autocast
        self.precision = precision
        self.root = root or medtl_home() / "features"
        self.budget_bytes = budget_bytes

    def ensure(
        self,
        views: Views,
        requested: StepViews,
        progress: Progress | None = None,
        *,
        rank: int = 0,
        size: int = 1,
        barrier: Callable[[], object] = lambda: None,
    ) -> dict[int, FeatureStore]:
        """Return a store for each requested step (step -> number of views); one pass computes what is absent.

        A pass that was killed resumes where it was; one that runs elsewhere is waited for. rank, size and
        barrier: the processes that share the pass, and the file system; each calls this with the same views
        and gets the same bytes as one process would. Raises OutputError cache-full, in each of them, where
        the disk or the budget has no room; output-unwritable.
        """
        specs = self._specs(views, requested)
        team = Team(rank, size, barrier)
        with cache_errors(self.root), ExitStack() as claims:
            stores = self._open_or_claim(specs, claims, team)
            absent = {slot: spec for slot, spec in specs.items() if slot not in stores}
            if absent:
                self._compute(views, absent, progress, team)
                stores |= self._publish(absent, team)
        return {
            step: FeatureStore(tuple(stores[step, view] for view in range(requested[step])))
            for step in requested
        }

    def _specs(self, views: Views, requested: StepViews) -> dict[Slot, StoreSpec]:
        """Return a store's name, from all that its numbers depend on and nothing else, with its shape."""
        costs = step_costs(self.classifier, views.image_shape)
        batch_size = pass_batch_size(costs)
        backbone, device = self.classifier.backbone, next(self.classifier.parameters()).device
        if device.type == "cuda":  # what the last bit of a sum depends on
            arithmetic = f"{torch.cuda.get_device_name(device)} {torch.get_float32_matmul_precision()}"
        else:
            arithmetic = f"{torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()} threads"
        common = (FORMAT_VERSION, *VERSIONS, "folded", self.precision, arithmetic, batch_size)
        prefixes = _prefix_digests(backbone, max(requested))
        samples = hashlib.sha256(str(views.image_shape).encode())
        for row in views.rows:
            samples.update(views.dataset.content_hashes[row].encode() + b"\0")

        def spec(step: int, view: int) -> StoreSpec:
            prefix = prefixes[min(step, len(prefixes) - 1)]
            pooling = backbone.pooling if step > len(backbone.groups) else ""
            seen = f"{views.key} view {view}" if view else "plain"  # the same for every seed
            parts = (*common, prefix, step, pooling, samples.hexdigest(), seen)
            name = hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:24]
            return StoreSpec(name, (len(views), *costs[step - 1].output_shape), batch_size)

        return {(step, view): spec(step, view) for step, count in requested.items() for view in range(count)}

    def _open_or_claim(
        self, specs: Mapping[Slot, StoreSpec], claims: ExitStack, team: Team
    ) -> dict[Slot, OpenStore]:
        """Return the stores that are there. The first process claims the others, and all learn of it."""
        if team.size == 1:
            return self._lead(specs, claims)
        names = " ".join(sorted(spec.name for spec in specs.values()))
        note = self.root / f".team-{hashlib.sha256(names.encode()).hexdigest()[:24]}.json"
        stores: dict[Slot, OpenStore | None] = {}
        failure = None
        if team.leads:
            try:
                with cache_errors(self.root):
                    stores.update(self._lead(specs, claims))
            except OutputError as error:
                failure = error
            write_json(note, {"there": [list(slot) for slot in stores], "failed": failure is not None})
        team.barrier()  # the decision is there
        if not team.leads:
            decision = read_json(note)
            for step, view in decision["there"]:
                stores[step, view] = open_store(self.root, specs[step, view], check=False)
            if decision["failed"]:
                failure = cache_full(self.root, "the first process found no room")
        team.barrier()  # all have read it
        if team.leads:
            note.unlink()
        if failure:
            raise failure
        return _all_open(self.root, stores)

    def _lead(self, specs: Mapping[Slot, StoreSpec], claims: ExitStack) -> dict[Slot, OpenStore]:
        """Open what is there and claim the rest, in an order of names, lest two wait for each other."""
        make_folder(self.root)
        stores, absent = {}, []
        for slot, spec in sorted(specs.items(), key=lambda item: item[1].name):
            store = open_store(self.root, spec)
            if store is None:
                lock = staging_folder(self.root, spec).claim()
                store = open_store(self.root, spec)  # another process may have been faster
                if store is None:
                    claims.callback(lock.release)
                    absent.append(spec)
                    continue
                _give_up(self.root, [spec])
                lock.release()
            stores[slot] = store
        if absent:
            try:
                make_room(self.root, absent, self.budget_bytes)
                for spec in absent:
                    begin(self.root, spec)
            except (OSError, OutputError):
                _give_up(self.root, absent)
                raise
        return stores

    def _compute(
        self, views: Views, absent: Mapping[Slot, StoreSpec], progress: Progress | None, team: Team
    ) -> None:
        """Write this process's batches of the absent stores; raise a fault of the disk when all are here."""
        failure = None
        try:
            with ExitStack() as files:
                stagings = {slot: StoreWriter(self.root, spec, team.rank) for slot, spec in absent.items()}
                for staging in stagings.values():
                    files.callback(staging.close)
                self._run_jobs(views, stagings, progress, team)
        except OSError as error:
            failure = error
        team.barrier()
        if failure:
            if team.leads:
                _give_up(self.root, list(absent.values()))
            team.barrier()
            raise failure

    def _run_jobs(
        self, views: Views, stagings: Mapping[Slot, StoreWriter], progress: Progress | None, team: Team
    ) -> None:
        jobs = list(_jobs(stagings))
        total = len(views) * len({view for _, view in stagings})
        left = sum(len(job.rows) for job in jobs)
        own = jobs[team.rank :: team.size]
        deepest = max(step for step, _ in stagings)
        network = fold_groups(self.classifier, views.image_shape, deepest)
        with closing(self._read_ahead(views, own)) as batches:
            for number, (job, images) in enumerate(zip(own, batches, strict=True), start=1):
                for step, activation in self._boundaries(network, images, job.steps).items():
                    stagings[step, job.view].write(job.batch, activation)
                if progress:
                    done = sum(len(job.rows) for job in jobs[: number * team.size])
                    progress(total - left + done, total)

    def _read_ahead(self, views: Views, jobs: Sequence[Job]) -> Generator[Tensor]:
        """Yield each job's images; the next ones are read and augmented while the network runs.

        By a thread: it works while the network's operations have let go of the interpreter, and processes
        would have to be started for each pass (benchmarks/feature_cache.py).
        """
        on_gpu = next(self.classifier.parameters()).device.type == "cuda"

        def read(job: Job) -> Tensor:
            images = views.read(job.rows, job.view)
            return images.pin_memory() if on_gpu else images

        with ThreadPoolExecutor(1, "features") as pool:
            yield from in_order(lambda job: pool.submit(read, job), jobs, most=2)

    def _publish(self, absent: Mapping[Slot, StoreSpec], team: Team) -> dict[Slot, OpenStore]:
        """Move what is whole to its place; a store that a process could not write its part of is given up."""
        published = {}
        if team.leads:
            published = {slot: publish(self.root, spec) for slot, spec in absent.items()}
            _give_up(self.root, [absent[slot] for slot, store in published.items() if store is None])
        team.barrier()
        if not team.leads:
            published = {slot: open_store(self.root, spec, check=False) for slot, spec in absent.items()}
        return _all_open(self.root, published)

    @torch.inference_mode()
    def _boundaries(self, network: Classifier, images: Tensor, steps: Sequence[int]) -> dict[int, Tensor]:
        """Return the activations entering each step, in one chain."""
        found, at = {}, 0
        x = place_images(images, network)
        for step in steps:
            with self.autocast():
                x = network.run(x, at, step)
            found[step] = x.float().cpu().contiguous()
            at = step
        return found


def _prefix_digests(backbone: Backbone, deepest: int) -> list[str]:
    """Return the digest of the weights and input statistics below each step, up to the deepest."""
    statistics = {k: v for k, v in vars(backbone.normalise).items() if k[0] != "_" and k != "training"}
    running = hashlib.sha256(f"{backbone.name} {type(backbone.normalise).__name__} {statistics}".encode())
    digests = [running.hexdigest()]
    for name, group in list(backbone.groups.items())[:deepest]:
        for key, tensor in group.state_dict().items():
            plain = tensor.detach().cpu().contiguous()
            running.update(f"{name}.{key} {plain.dtype} {tuple(plain.shape)}".encode())
            running.update(plain.reshape(-1).view(torch.uint8).numpy())
        digests.append(running.hexdigest())
    return digests


def pass_batch_size(costs: Sequence[StepCost]) -> int:
    """Return how many images a pass takes at once: its largest tensor stays within BATCH_BYTES."""
    largest = max(cost.largest_bytes for cost in costs)
    size = MOST_IN_A_BATCH
    while size > 1 and size * largest > BATCH_BYTES:
        size //= 2
    return size


def _jobs(stagings: Mapping[Slot, StoreWriter]) -> Iterator[Job]:
    """Yield the batches that some store lacks, view by view: one chain fills the stores of all steps."""
    for view in sorted({view for _, view in stagings}):
        of_view = {step: staging for (step, seen), staging in sorted(stagings.items()) if seen == view}
        spec = next(iter(of_view.values())).spec
        for batch in range(spec.batches):
            steps = tuple(step for step, staging in of_view.items() if batch not in staging.done)
            if steps:
                yield Job(view, batch, spec.rows(batch), steps)


def _all_open(root: Path, stores: Mapping[Slot, OpenStore | None]) -> dict[Slot, OpenStore]:
    found = {slot: store for slot, store in stores.items() if store is not None}
    if len(found) < len(stores):
        raise cache_full(root, "a process that shares the pass could not write its part")
    return found


def _give_up(root: Path, specs: Sequence[StoreSpec]) -> None:
    """Remove the staging folders of stores that this process has claimed."""
    for spec in specs:
        remove_folder(staging_folder(root, spec).path)
