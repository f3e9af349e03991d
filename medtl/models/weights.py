"""Known pretrained weights: where each file is, whether it is the published one, and its state dict.

Nothing is downloaded here. A file that is absent is named, with the place to put it and its licence.
"""

import hashlib
import importlib.util
import logging
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from medtl.core.files import medtl_home, read_json
from medtl.errors import WeightsError

log = logging.getLogger(__name__)

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

# Remedies.
AGAIN = "get the file again"
PLAIN = "save it as safetensors or as torch.save(model.state_dict())"
TENSORS = "medtl weights import --unsafe-module takes a known module's tensors alone"


@dataclass(frozen=True)
class KnownWeights:
    """One published weights file.

    sha256: leading hex digits of the published SHA-256, empty where its publisher states none. package: the
    Python package that carries the file, if any, with the file's place inside it. origin: who hands the file
    out: "torchvision", "hub:OWNER/NAME/FILE" (Hugging Face), another of weights_store.HOSTS, or nobody: "".
    """

    name: str
    file: str
    sha256: str
    licence: str
    source: str
    package: str = ""
    package_path: str = ""
    origin: str = ""


@dataclass(frozen=True)
class LoadedWeights:
    """What a backbone was loaded from, for provenance. `path` is the file's name alone."""

    name: str
    path: str
    sha256: str
    licence: str
    source: str


@dataclass(frozen=True)
class WeightsRecord:
    """What was noted beside a file when it came into the weights folder: from then on it must stay so.

    converted_from: the SHA-256 of the whole module whose tensors these are, if they are.
    """

    sha256: str
    origin: str
    converted_from: str = ""


def weights_folder() -> Path:
    """Return the folder that holds weights files which the user put on this machine."""
    return medtl_home() / "weights"


def record_path(path: Path) -> Path:
    """Return where the record of a weights file lies: beside it."""
    return path.with_name(f"{path.name}.json")


def read_record(path: Path) -> WeightsRecord | None:
    """Return the record of a weights file, or None where it has none. Raises WeightsError weights-hash."""
    place = record_path(path)
    if not place.is_file():
        return None
    try:
        record = WeightsRecord(**read_json(place))
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError("weights-hash", "the record is damaged", where=place, fix=AGAIN) from error
    return record


def converted_path(known: KnownWeights) -> Path:
    """Return where the tensors lie that were taken out of a whole module."""
    return weights_folder() / f"{known.file}.safetensors"


def locate(known: KnownWeights) -> Path | None:
    """Return where the file is on this machine, unread: see own_places and cached_places; None if absent."""
    return next((path for path in (*own_places(known), *cached_places(known)) if path.is_file()), None)


def own_places(known: KnownWeights) -> list[Path]:
    """Return where the file may be: in its package, or in the weights folder, converted or not."""
    places = [weights_folder() / known.file]
    if record_path(converted_path(known)).is_file():
        places.insert(0, converted_path(known))
    spec = importlib.util.find_spec(known.package) if known.package else None
    if spec and spec.submodule_search_locations:
        places.insert(0, Path(spec.submodule_search_locations[0]) / known.package_path)
    return places


def cached_places(known: KnownWeights) -> list[Path]:
    """Return where torchvision or the Hugging Face hub would have kept the file."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if known.origin == "torchvision":
        torch_home = Path(os.environ.get("TORCH_HOME") or cache / "torch")
        return [torch_home / "hub" / "checkpoints" / known.file]
    if known.origin.startswith("hub:"):
        owner, name, file = known.origin.removeprefix("hub:").split("/", 2)
        hub_home = Path(os.environ.get("HF_HOME") or cache / "huggingface")
        hub = Path(os.environ.get("HF_HUB_CACHE") or hub_home / "hub")
        return sorted(hub.glob(f"models--{owner}--{name}/snapshots/*/{file}"))
    return []


def load_known(known: KnownWeights, backbone: str) -> tuple[StateDict, LoadedWeights]:
    """Return the state dict of a known file, its SHA-256 checked at every load.

    Raises WeightsError weights-missing, weights-hash, weights-unsafe.
    """
    found = find_verified(known)
    if found is None:
        raise missing(known, backbone)
    path, digest = found
    return read_state_dict(path), LoadedWeights(known.name, path.name, digest, known.licence, known.source)


def find_verified(known: KnownWeights) -> tuple[Path, str] | None:
    """Return the file and its SHA-256, or None where it is absent.

    A file of medtl's own that is not the right one is refused: WeightsError weights-hash. A cache of another
    program is passed over where its file is not the published one, or where nothing says what was published.
    """
    for path in own_places(known):
        if path.is_file():
            return path, check_digest(known, path)
    for path in cached_places(known):
        if path.is_file():
            digest = sha256_of(path)
            if digest.startswith(_published_in_cache(known, path)):
                return path, digest
            log.warning("%s is not the published file: passed over", path)
    return None


def _published_in_cache(known: KnownWeights, path: Path) -> str:
    """Return the digits that the SHA-256 of a cached file starts with; the hub names its blobs by it."""
    blob = path.resolve().name
    named = blob if re.fullmatch("[0-9a-f]{64}", blob) else ""
    return known.sha256 or named or "unknown"


def check_digest(known: KnownWeights, path: Path) -> str:
    """Return the SHA-256 of a file, which must be the published and the recorded one.

    Raises WeightsError weights-hash.
    """
    digest = sha256_of(path)
    if path != converted_path(known) and not digest.startswith(known.sha256):
        reason = f"SHA-256 is {digest[:12]}, published is {known.sha256[:12]}"
        raise WeightsError("weights-hash", reason, where=path, fix=AGAIN)
    check_record(path, digest)
    return digest


def check_record(path: Path, digest: str) -> None:
    """Refuse a file that is not what it was when it was recorded. Raises WeightsError weights-hash."""
    record = read_record(path)
    if record and record.sha256 != digest:
        reason = f"SHA-256 is {digest[:12]}, was {record.sha256[:12]} when it came here"
        raise WeightsError("weights-hash", reason, where=path, fix=AGAIN)


def missing(known: KnownWeights, backbone: str) -> WeightsError:
    """Return the error that says which file is needed, its licence, and how to get it."""
    ways = [f"put it into {weights_folder()}"]
    if known.origin:
        ways.append(f"medtl weights fetch {backbone}")
    if known.package:
        ways.insert(0, "install medtl[offline]")
    reason = f"needs {known.file} ({known.licence})"
    return WeightsError("weights-missing", reason, where=backbone, fix=" or ".join(ways))


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
    except UNREADABLE as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named:
            raise WeightsError(
                "weights-unsafe", f"holds code: {named[1]}", where=path, fix=TENSORS
            ) from error
        reason = "not a plain state dict, or damaged"
        raise WeightsError("weights-unsafe", reason, where=path, fix=PLAIN) from error
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
    """Return the SHA-256 of a file as hex digits. Raises WeightsError weights-unsafe."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(
            "weights-unsafe", "cannot be read", where=path, fix="check its permissions"
        ) from error
