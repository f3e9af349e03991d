"""KNOWN WEIGHTS -> FILES: where each published file is on this machine, and whether it is the published one.

Nothing is downloaded or opened as a network here, and nothing needs torch.
"""

import hashlib
import importlib.util
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from medtl.core.files import medtl_home, read_json
from medtl.errors import WeightsError

log = logging.getLogger(__name__)

# A remedy.
AGAIN = "get the file again"


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
class WeightsRecord:
    """What was recorded beside a file when it entered the weights folder: it must not change after that.

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
    """Return where torchvision or the Hugging Face hub would have saved the file."""
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


def find_verified(known: KnownWeights) -> tuple[Path, str] | None:
    """Return the file and its SHA-256, or None where it is absent.

    A file of medtl's own that is not the right one is refused: WeightsError weights-hash. A file in the
    cache of another program is ignored if it is not the published one, or if nothing says what that is.
    """
    for path in own_places(known):
        if path.is_file():
            return path, check_digest(known, path)
    for path in cached_places(known):
        if path.is_file():
            digest, blob = sha256_of(path), path.resolve().name  # the hub names its blobs by their SHA-256
            named = blob if re.fullmatch("[0-9a-f]{64}", blob) else ""
            if digest.startswith(known.sha256 or named or "unknown"):
                return path, digest
            log.warning("%s is not the published file: ignored", path)
    return None


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
        reason = f"SHA-256 is {digest[:12]}, was {record.sha256[:12]} when it was added"
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


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hex digits. Raises WeightsError weights-unsafe."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(
            "weights-unsafe", "cannot be read", where=path, fix="check its permissions"
        ) from error
