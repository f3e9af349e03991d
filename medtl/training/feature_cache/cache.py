"""IMAGES -> ACTIVATIONS of the frozen prefix, computed once, saved in stores and read by training.

A frozen prefix is a pure function of the prepared image, so a stage that freezes it need not run it again. A
store is named by what its numbers depend on, to the last bit: the prefix's weights, the samples' pixels, the
view, the boundary, the batches of the pass and the arithmetic. Runs that differ in anything else share it.
"""

import hashlib
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl.core import __version__
from medtl.core.files import make_folder, medtl_home
from medtl.core.parallel import in_order
from medtl.core.staging import Lock, StagingFolder, remove_folder
from medtl.data.prepared import PreparedDataset
from medtl.errors import OutputError
from medtl.imaging.augmentation import Augmentation
from medtl.models.backbone import Backbone
from medtl.models.classifier import Classifier, place_images
from medtl.models.costs import StepCost, step_costs
from medtl.models.folding import fold_groups
from medtl.training.distributed import ProcessGroup
from medtl.training.feature_cache.plan import StepViews
from medtl.training.feature_cache.store import (
    FORMAT_VERSION,
    HEADER,
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


class Job(NamedTuple):
    """One batch of a pass: the samples' view, and the steps whose stores lack it."""

    view: int
    batch: int
    rows: NDArray[np.int64]
    steps: tuple[int, ...]


def features_folder() -> Path:
    """Return where the stores of all runs lie."""
    return medtl_home() / "features"


@dataclass(eq=False)
class FeatureCache:
    """Feature stores on disk, and the network that fills them.

    budget_bytes bounds all stores below `root` together, those of other runs too. process_group: the
    processes that share a pass, and the file system; the one that leads claims and publishes for all.
    """

    classifier: Classifier
    autocast: Callable[[], AbstractContextManager]
    precision: str
    root: Path = field(default_factory=features_folder)
    budget_bytes: float = float("inf")
    process_group: ProcessGroup = field(default_factory=ProcessGroup)

    def ensure(
        self,
        views: Views,
        requested: StepViews,
        progress: Progress | None = None,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> dict[int, FeatureStore]:
        """Return a store for each requested step (step -> number of views); one pass computes what is absent.

        A pass that was killed resumes where it was; one that runs elsewhere is waited for. Each process calls
        this with the same views and gets the same bytes as one process would; while it waits for the others
        it calls `meanwhile`. Raises OutputError cache-full, in each of them, where the disk or the budget has
        no room; output-unwritable.
        """
        specs = self._specs(views, requested)
        stores: dict[Slot, OpenStore] = {}
        with cache_errors(self.root), _claims() as claims:
            with self._together(meanwhile):
                if self.process_group.leads:
                    stores = self._open_or_claim(specs, claims)
            absent = {
                slot: spec for slot, spec in specs.items() if not (self.root / spec.name / HEADER).is_file()
            }
            if absent:
                with self._together(meanwhile):
                    self._compute(views, absent, progress)
                with self._together(meanwhile):
                    if self.process_group.leads:
                        for spec in absent.values():
                            publish(self.root, spec)
            with self._together(meanwhile):  # what is claimed or open in the first process stays meanwhile
                stores |= {slot: _opened(self.root, specs[slot]) for slot in specs.keys() - stores}
        return {
            step: FeatureStore(tuple(stores[step, view] for view in range(count)))
            for step, count in requested.items()
        }

    @contextmanager
    def _together(self, meanwhile: Callable[[], object]) -> Iterator[None]:
        """Do what is in the block in all processes; where the disk fails one of them, it fails all."""
        fault = None
        try:
            yield
        except (OSError, OutputError) as error:
            fault = error
        if self.process_group.barrier(meanwhile, failed=fault is not None):
            raise fault or cache_full(self.root, "another process of the run found no room")

    def _specs(self, views: Views, requested: StepViews) -> dict[Slot, StoreSpec]:
        """Return a store's name, from all that its numbers depend on and nothing else, with its shape."""
        costs = step_costs(self.classifier, views.image_shape)
        batch_size = pass_batch_size(costs)
        backbone, device = self.classifier.backbone, next(self.classifier.parameters()).device
        common = (FORMAT_VERSION, *VERSIONS, "folded", self.precision, _arithmetic(device), batch_size)
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
        self, specs: Mapping[Slot, StoreSpec], claims: dict[StagingFolder, Lock]
    ) -> dict[Slot, OpenStore]:
        """Open what is there and claim the rest, in an order of names, lest two wait for each other."""
        make_folder(self.root)
        stores, absent = {}, []
        for slot, spec in sorted(specs.items(), key=lambda item: item[1].name):
            staging = staging_folder(self.root, spec)
            claims[staging] = staging.claim()
            store = open_store(self.root, spec)
            if store is None:
                absent.append(spec)
            else:
                stores[slot] = store
                remove_folder(staging.path)
                claims.pop(staging).release()
        if absent:
            make_room(self.root, absent, self.budget_bytes)
            for spec in absent:
                begin(self.root, spec)
        return stores

    def _compute(self, views: Views, absent: Mapping[Slot, StoreSpec], progress: Progress | None) -> None:
        """Write this process's batches of the absent stores."""
        group = self.process_group
        with ExitStack() as files:
            writers = {
                slot: files.enter_context(closing(StoreWriter(self.root, spec, group.rank)))
                for slot, spec in absent.items()
            }
            jobs = list(_jobs(writers))
            total = len(views) * len({view for _, view in writers})
            left = sum(len(job.rows) for job in jobs)
            own = jobs[group.rank :: group.size]
            network = fold_groups(self.classifier, views.image_shape, max(step for step, _ in writers))
            batches = files.enter_context(closing(self._read_ahead(views, own)))
            for number, (job, images) in enumerate(zip(own, batches, strict=True), start=1):
                for step, activation in self._boundaries(network, images, job.steps).items():
                    writers[step, job.view].write(job.batch, activation)
                if progress:
                    done = sum(len(job.rows) for job in jobs[: number * group.size])
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


def _arithmetic(device: torch.device) -> str:
    """Return what the last bit of a sum depends on."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} {torch.get_float32_matmul_precision()}"
    return f"{torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()} threads"


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


def _jobs(writers: Mapping[Slot, StoreWriter]) -> Iterator[Job]:
    """Yield the batches that some store lacks, view by view: one chain fills the stores of all steps."""
    for view in sorted({view for _, view in writers}):
        of_view = {step: writer for (step, seen), writer in sorted(writers.items()) if seen == view}
        spec = next(iter(of_view.values())).spec
        for batch in range(spec.batches):
            steps = tuple(step for step, writer in of_view.items() if batch not in writer.done)
            if steps:
                yield Job(view, batch, spec.rows(batch), steps)


def _opened(root: Path, spec: StoreSpec) -> OpenStore:
    store = open_store(root, spec, check=False)
    if store is None:
        raise cache_full(root, "a store of another process cannot be read")
    return store


@contextmanager
def _claims() -> Iterator[dict[StagingFolder, Lock]]:
    """Hold staging folders; a fault of the disk removes them, a stop leaves them to a resumed run."""
    claims: dict[StagingFolder, Lock] = {}
    try:
        yield claims
    except (OSError, OutputError):
        for staging in claims:
            remove_folder(staging.path)
        raise
    finally:
        for lock in claims.values():
            lock.release()
