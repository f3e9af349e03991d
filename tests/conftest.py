"""Shared ways to build small data and small networks; no test touches the user's own medtl home."""

import gc
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from medtl.data.task import Task

# The folders of tests in which a network is built; the others import none.
BUILDS_NETWORKS = {"models", "training", "inference", "explain", "workflows", "cli", "core"}
SHARED_DATA = Path(__file__).parents[1] / ".." / "shared" / "data"

if hasattr(os, "register_at_fork"):
    # A forked process waits for ever where it is the one that collects an ONNX session of its parent.
    os.register_at_fork(after_in_child=gc.freeze)


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a medtl home and salt of its own, and a thread to each process that it starts."""
    home = tmp_path_factory.mktemp("medtl-home")
    monkeypatch.setenv("MEDTL_HOME", str(home))
    monkeypatch.setenv("MEDTL_SALT", "test")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return home


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Let the workers of pytest-xdist not fight for the processor."""
    import torch

    torch.set_num_threads(1)
    # Started only after torch's exporters are loaded, autograd would work in no process forked from this one.
    torch.ones(1, requires_grad=True).backward()


@pytest.fixture
def shared_data() -> Path:
    """Return the folder of real images, or skip where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("real images (../shared/data) are not on this machine")
    return SHARED_DATA


def build_tiny(spatial_dims: int, in_channels: int, request) -> object:
    """Build three groups of convolution, norm (batch, group, batch), dropout and ReLU, at stride 8."""
    from torch import nn

    from medtl.models.backbone import Backbone, Standardise

    conv, batch = (nn.Conv2d, nn.BatchNorm2d) if spatial_dims == 2 else (nn.Conv3d, nn.BatchNorm3d)

    def block(i: int, o: int, norm: nn.Module) -> nn.Module:
        return nn.Sequential(conv(i, o, 3, stride=2, padding=1), norm, nn.Dropout(0.1), nn.ReLU())

    return Backbone(
        request.backbone,
        {
            "stem": block(in_channels, 4, batch(4)),
            "middle": block(4, 8, nn.GroupNorm(2, 8)),
            "top": block(8, 8, batch(8)),
        },
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        num_features=8,
        normalise=Standardise((0.5,), (0.5,), in_channels),
        weights=None,
    )


@pytest.fixture(autouse=True)
def tiny_backbones(request: pytest.FixtureRequest) -> Iterator[None]:
    """Register `tiny` and `tiny3d` for the tests that build a network."""
    if request.path.relative_to(Path(__file__).parent).parts[0] not in BUILDS_NETWORKS:
        yield
        return
    from medtl.models.backbones import BACKBONES, BackboneEntry

    for name, dims in (("tiny", 2), ("tiny3d", 3)):
        BACKBONES[name] = BackboneEntry(name, "tiny", dims, (32,) * dims, (), partial(build_tiny, dims))
    yield
    for name in ("tiny", "tiny3d"):
        BACKBONES.pop(name)


@pytest.fixture
def binary_task() -> Task:
    """A task of two classes."""
    return Task("binary", ("normal", "lesion"))


@pytest.fixture
def make_classifier() -> Callable:
    """Return a builder of a seeded tiny classifier."""
    import torch

    from medtl.models.backbones import BACKBONES
    from medtl.models.classifier import Classifier

    def build(task: Task | None = None, backbone: str = "tiny", dropout: float = 0.2) -> Classifier:
        torch.manual_seed(0)
        return Classifier(BACKBONES[backbone](), task or Task("binary", ("normal", "lesion")), dropout)

    return build


@pytest.fixture
def make_prepared(tmp_path: Path) -> Callable:
    """Return a builder of a prepared dataset whose positive images have a bright square."""
    from medtl.data.prepared import PreparedDataset

    def build(
        count: int = 24, size: tuple[int, ...] = (32, 32), seed: int = 0
    ) -> tuple[PreparedDataset, np.ndarray]:
        generator = np.random.default_rng(seed)
        targets = np.arange(count) % 2
        pixels = generator.integers(0, 30000, size=(count, 1, *size), dtype=np.uint16)
        bright = (slice(None), *[slice(extent // 4, extent // 2) for extent in size])
        for row in np.flatnonzero(targets):
            pixels[row][bright] += 30000
        ids = tuple(f"s{row:03d}" for row in range(count))
        hashes = tuple(f"{seed}-{row}" for row in range(count))
        return PreparedDataset(tmp_path, pixels, ids, hashes, ()), targets.astype(np.int64)

    return build
