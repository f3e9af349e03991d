"""WEIGHTS FILE -> STATE DICT: read without running any code in it, and loaded strictly."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from medtl.errors import WeightsError
from medtl.models.weight_files import KnownWeights, check_record, find_verified, missing, sha256_of

StateDict = dict[str, torch.Tensor]

# Remedies.
PLAIN = "save it as safetensors or as torch.save(model.state_dict())"
TENSORS = "medtl weights import --unsafe-module takes a known module's tensors alone"


@dataclass(frozen=True)
class LoadedWeights:
    """What a backbone was loaded from, for provenance. `path` is the file's name alone."""

    name: str
    path: str
    sha256: str
    licence: str
    source: str


def load_known(known: KnownWeights, backbone: str) -> tuple[StateDict, LoadedWeights]:
    """Return the state dict of a known file, its SHA-256 checked at every load.

    Raises WeightsError weights-missing, weights-hash, weights-unsafe.
    """
    found = find_verified(known)
    if found is None:
        raise missing(known, backbone)
    path, digest = found
    return read_state_dict(path), LoadedWeights(known.name, path.name, digest, known.licence, known.source)


def load_path(path: Path) -> tuple[StateDict, LoadedWeights]:
    """Return the state dict of a file of the user's.

    Raises WeightsError weights-missing, weights-unsafe, and weights-hash where it has a record and changed.
    """
    if not path.is_file():
        raise WeightsError("weights-missing", "no such file", where=path, fix="give a file or a known name")
    digest = sha256_of(path)
    check_record(path, digest)
    loaded = LoadedWeights("file", path.name, digest, "unknown: the user's own file", "file")
    return read_state_dict(path), loaded


def read_state_dict(path: Path) -> StateDict:
    """Read tensors and nothing else from a .safetensors or .pth file; no code in it is ever run."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever readers raise on files that are cut, odd or hostile
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named:
            raise WeightsError(
                "weights-unsafe", f"holds code: {named[1]}", where=path, fix=TENSORS
            ) from error
        reason = "not a plain state dict, or damaged"
        raise WeightsError("weights-unsafe", reason, where=path, fix=PLAIN) from error
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
