"""Known pretrained weights: where each file is, whether it is the published one, and its state dict.

Nothing is downloaded here. A file that is absent is named, with the place to put it and its licence.
"""

import hashlib
import importlib.util
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from medtl.errors import WeightsError
from medtl.imaging.locations import medtl_home

StateDict = dict[str, torch.Tensor]

# What readers raise on files that are cut, odd or hostile.
UNREADABLE = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OSError,
)


@dataclass(frozen=True)
class KnownWeights:
    """One published weights file.

    sha256: leading hex digits of the published SHA-256, empty where its publisher states none. package: the
    Python package that carries the file, if any, with the file's place inside it.
    """

    name: str
    file: str
    sha256: str
    licence: str
    source: str
    package: str = ""
    package_path: str = ""


@dataclass(frozen=True)
class LoadedWeights:
    """What a backbone was loaded from, for provenance. `path` is the file's name alone."""

    name: str
    path: str
    sha256: str
    licence: str
    source: str


def weights_folder() -> Path:
    """Return the folder that holds weights files which the user put on this machine."""
    return medtl_home() / "weights"


def locate(known: KnownWeights) -> Path | None:
    """Return where the file is on this machine: in its package or in the weights folder; None if absent."""
    candidates = [weights_folder() / known.file]
    spec = importlib.util.find_spec(known.package) if known.package else None
    if spec and spec.submodule_search_locations:
        candidates.insert(0, Path(spec.submodule_search_locations[0]) / known.package_path)
    return next((path for path in candidates if path.is_file()), None)


def load_known(known: KnownWeights, backbone: str) -> tuple[StateDict, LoadedWeights]:
    """Return the state dict of a known file, its SHA-256 checked at every load.

    Raises WeightsError weights-missing, weights-hash, weights-unsafe.
    """
    path = locate(known)
    if path is None:
        place = weights_folder() / known.file
        how = f"install medtl[offline] or put it at {place}" if known.package else f"put it at {place}"
        raise WeightsError(
            "weights-missing", f"needs {known.file} ({known.licence})", where=backbone, fix=f"{how}"
        )
    digest = sha256_of(path)
    if not digest.startswith(known.sha256):
        reason = f"SHA-256 is {digest[:12]}, published is {known.sha256[:12]}"
        raise WeightsError("weights-hash", reason, where=path, fix="get the file again")
    return read_state_dict(path), LoadedWeights(known.name, path.name, digest, known.licence, known.source)


def load_path(path: Path) -> tuple[StateDict, LoadedWeights]:
    """Return the state dict of a file of the user's. Raises WeightsError weights-missing, weights-unsafe."""
    if not path.is_file():
        raise WeightsError("weights-missing", "no such file", where=path, fix="give a file or a known name")
    loaded = LoadedWeights("file", path.name, sha256_of(path), "unknown: the user's own file", "file")
    return read_state_dict(path), loaded


def read_state_dict(path: Path) -> StateDict:
    """Read tensors and nothing else from a .safetensors or .pth file; no code in it is ever run."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = "not a plain state dict, or damaged"
        fix = "save it as safetensors or as torch.save(model.state_dict())"
        raise WeightsError("weights-unsafe", reason, where=path, fix=fix) from error
    return _unwrap(content, path)


def _unwrap(content: object, path: Path) -> StateDict:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise WeightsError("weights-unsafe", "holds something else than named tensors", where=path)
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def load_strictly(module: torch.nn.Module, state: StateDict, loaded: LoadedWeights, backbone: str) -> None:
    """Load every tensor of `module`, and no other. Raises WeightsError weights-mismatch naming the first."""
    expected = module.state_dict()
    counters = {key for key in expected if key.endswith("num_batches_tracked")}
    missing = sorted(expected.keys() - state.keys() - counters)
    unexpected = sorted(state.keys() - expected.keys())
    misshapen = sorted(k for k in expected.keys() & state.keys() if expected[k].shape != state[k].shape)
    for kind, keys in (
        ("lacks", missing),
        ("has an unknown", unexpected),
        ("has another shape of", misshapen),
    ):
        if keys:
            reason = f"{kind} {keys[0]} and {len(keys) - 1} more" if len(keys) > 1 else f"{kind} {keys[0]}"
            raise WeightsError(
                "weights-mismatch", reason, where=loaded.path, fix=f"give weights of {backbone}"
            )
    module.load_state_dict(state, strict=False)


def sum_input_kernels(state: StateDict, key: str, in_channels: int) -> StateDict:
    """Return a copy whose first convolution `key` (O, 3, *k) takes `in_channels` channels.

    One channel: the kernels are summed, so that grey input gives what it gave as three equal channels. More:
    the three kernels are repeated and scaled by 3 / in_channels, which keeps the activations' size.
    """
    kernel = state[key]
    published = kernel.shape[1]
    if in_channels == published:
        return dict(state)
    if in_channels == 1:
        adapted = kernel.sum(dim=1, keepdim=True)
    else:
        repeats = -(-in_channels // published)
        tiled = kernel.repeat(1, repeats, *[1] * (kernel.ndim - 2))
        adapted = tiled[:, :in_channels] * (published / in_channels)
    return {**state, key: adapted}


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hex digits."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(
            "weights-unsafe", "cannot be read", where=path, fix="check its permissions"
        ) from error
