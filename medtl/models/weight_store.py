"""PUBLISHED FILES -> WEIGHTS FOLDER: which are here, how others are fetched or imported, and stay the same.

Files come in by `fetch_weights`, the one place where weights are downloaded, or by `import_weights`. Either
way their SHA-256 is checked, their tensors must fit the backbone, and a record beside the file pins it.
"""

import difflib
import logging
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.request import HTTPRedirectHandler, Request, build_opener

from huggingface_hub import get_hf_file_metadata, hf_hub_download
from huggingface_hub.constants import ENDPOINT
from tqdm import tqdm

from medtl.core.files import make_folder, unwritable, write_json
from medtl.errors import WeightsError
from medtl.models.backbones import BACKBONES, BackboneEntry
from medtl.models.published import TORCHVISION_FOLDER
from medtl.models.weight_files import (
    KnownWeights,
    WeightsRecord,
    check_digest,
    converted_path,
    find_verified,
    locate,
    own_places,
    read_record,
    record_path,
    sha256_of,
    weights_folder,
)

log = logging.getLogger(__name__)

SECONDS_TO_ANSWER = 30

# Where files are fetched from, by fetch_weights alone: what packages state. HF_ENDPOINT names a mirror.
HOSTS = {
    "torchvision": TORCHVISION_FOLDER,
    "hub": ENDPOINT,
    "torchxrayvision": "https://github.com/mlmed/torchxrayvision/releases/download/v1",
}

SECONDS_TO_CONVERT = 600

CONVERTER = (sys.executable, "-P", "-m", "medtl.models.safe_unpickle")


@dataclass(frozen=True)
class StoredFile:
    """A published weights file and all backbones that load it."""

    known: KnownWeights
    backbones: tuple[BackboneEntry, ...]

    @property
    def check_with(self) -> BackboneEntry:
        """The backbone that a file's tensors must fit."""
        return self.backbones[0]


@dataclass(frozen=True)
class FileCheck:
    """The check of one file: its problem, if any, and whether anything says what it must be."""

    path: Path
    problem: str = ""
    pinned: bool = True


def stored_files() -> list[StoredFile]:
    """Return every published weights file once, in the order of the backbones."""
    users: dict[str, list[BackboneEntry]] = {}
    known: dict[str, KnownWeights] = {}
    for entry in BACKBONES.values():
        for weights in entry.known_weights:
            known.setdefault(weights.file, weights)
            users.setdefault(weights.file, []).append(entry)
    return [StoredFile(weights, tuple(users[file])) for file, weights in known.items()]


def describe_weights() -> list[dict[str, Any]]:
    """Return what there is to know of each published file, as plain data; nothing is hashed."""
    rows = []
    for stored in stored_files():
        known, path = stored.known, locate(stored.known)
        record = read_record(path) if path else None
        rows.append(
            {
                "file": known.file,
                "weights": known.name,
                "backbones": [entry.name for entry in stored.backbones],
                "licence": known.licence,
                "source": known.source,
                "url": url_of(known),
                "package": known.package,
                "sha256": known.sha256,
                "pinned": record.sha256 if record else "",
                "present": path is not None,
                "path": str(path) if path else None,
                "bytes": path.stat().st_size if path else None,
            }
        )
    return rows


def find_stored(name: str) -> StoredFile:
    """Return the file of that name, or the first file of a backbone, or BACKBONE/WEIGHTS.

    Raises WeightsError weights-unknown, naming the nearest.
    """
    files = {stored.known.file: stored for stored in stored_files()}
    names = dict(files)
    for entry in BACKBONES.values():
        for known in reversed(entry.known_weights):  # the first one has the backbone's own name
            names[f"{entry.name}/{known.name}"] = names[entry.name] = files[known.file]
    if name in names:
        return names[name]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    fix = f"did you mean {near[0]}" if near else "medtl weights list names them all"
    raise WeightsError("weights-unknown", "no weights of that name", where=name, fix=fix)


def import_weights(file: Path, name: str | None = None, *, unsafe_module: bool = False) -> Path:
    """Copy a file of the user's into the weights folder under its known name; return where it is now.

    name: what the file is, where its own name does not say. unsafe_module: take the tensors out of a whole
    pickled module, in a process of its own, and save only them. Raises WeightsError weights-unknown,
    -missing, -hash, -mismatch, -unsafe; OutputError.
    """
    if not file.is_file():
        raise WeightsError("weights-missing", "no such file", where=file, fix="give a weights file")
    stored = find_stored(name or file.name)
    digest = check_digest(stored.known, file)
    if unsafe_module:
        return _import_module(file, digest, stored)
    stored.check_with(weights=file)
    target = weights_folder() / stored.known.file
    # A file is read by what its name ends in, so one format must not become the other.
    if (file.suffix == ".safetensors") != (target.suffix == ".safetensors"):
        reason = f"{target.name} is published as {target.suffix}, not as {file.suffix or 'a nameless format'}"
        raise WeightsError("weights-mismatch", reason, where=file, fix="use it by its path, or get that file")
    with _incoming(target) as folder:
        copy = shutil.copyfile(file, folder / target.name)
        if sha256_of(copy) != digest:
            raise WeightsError("weights-hash", "changed while it was read", where=file, fix="try again")
        return _add(copy, target, WeightsRecord(digest, f"imported from {file.name}"))


def _import_module(file: Path, digest: str, stored: StoredFile) -> Path:
    target = converted_path(stored.known)
    with _incoming(target) as folder:
        tensors = folder / target.name
        convert_module(file, tensors)
        stored.check_with(weights=tensors)
        origin = f"tensors of {file.name}"
        return _add(tensors, target, WeightsRecord(sha256_of(tensors), origin, converted_from=digest))


@contextmanager
def _incoming(target: Path) -> Iterator[Path]:
    """Give a folder beside `target` in which a file waits until it is checked. Raises OutputError."""
    make_folder(target.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=".incoming-", dir=target.parent) as folder:
            yield Path(folder)
    except OSError as error:
        raise unwritable(target, error) from error


def _add(file: Path, target: Path, record: WeightsRecord) -> Path:
    """Move a file that was checked to its place, and pin it there."""
    file.chmod(0o644)
    file.replace(target)
    write_json(record_path(target), asdict(record))
    return target


def convert_module(file: Path, target: Path) -> None:
    """Write a pickled module's tensors as safetensors, in a process of its own that runs none of its code.

    Raises WeightsError weights-unsafe.
    """
    command = [*CONVERTER, str(file.absolute()), str(target.absolute())]
    environment = {"PATH": os.defpath, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    try:
        done = subprocess.run(
            command,
            env=environment,
            cwd=target.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS_TO_CONVERT,
            check=False,
        )
        failed, said = done.returncode != 0, done.stderr.strip() or "its process was ended"
    except subprocess.TimeoutExpired:
        failed, said = True, f"took more than {SECONDS_TO_CONVERT} s"
    if failed:
        reason = f"no tensors to take: {said.splitlines()[-1]}"
        raise WeightsError("weights-unsafe", reason, where=file, fix="give a whole torch module")


def fetch_weights(name: str) -> Path:
    """Download a published file into the weights folder, unless it is here; return where it is.

    From the Hugging Face hub by huggingface_hub. A download that broke off starts over. Raises WeightsError
    weights-unknown, -download, -hash, -mismatch, -unsafe; OutputError.
    """
    stored = find_stored(name)
    known, url, target = stored.known, url_of(stored.known), weights_folder() / stored.known.file
    try:
        found = find_verified(known)
        if found:
            return found[0]
    except WeightsError as error:  # a damaged file is downloaded again
        log.warning("%s", error)
    if url is None:
        way = f"get it from there, then medtl weights import FILE --as {stored.check_with.name}/{known.name}"
        fix = "install medtl[offline]" if known.package else way
        raise WeightsError("weights-download", f"{known.file} has no download", where=known.source, fix=fix)
    with _incoming(target) as folder:
        file, stated = _download(known, url, folder)
        digest = check_digest(known, file)
        stored.check_with(weights=file)
        _refuse_other(file, digest, stated, "its host states")
        record = read_record(target)
        _refuse_other(file, digest, record.sha256 if record else "", "it was pinned as")
        return _add(file, target, WeightsRecord(digest, url))


def url_of(known: KnownWeights) -> str | None:
    """Return where a published file can be fetched from, or None where users must supply it."""
    kind, _, place = known.origin.partition(":")
    if not kind:
        return None
    if kind == "hub":
        owner, repository, file = place.split("/", 2)
        return f"{_hub()}/{owner}/{repository}/resolve/main/{file}"
    return f"{HOSTS[kind]}/{known.file}"


def _hub() -> str:
    return (os.environ.get("HF_ENDPOINT") or HOSTS["hub"]).rstrip("/")


def _download(known: KnownWeights, url: str, folder: Path) -> tuple[Path, str]:
    """Download a file into `folder`; return where it is, and the SHA-256 that its host states, or nothing.

    Raises WeightsError weights-download; OSError where the file cannot be written.
    """
    try:
        if known.origin.startswith("hub:"):
            owner, repository, name = known.origin.removeprefix("hub:").split("/", 2)
            stated = get_hf_file_metadata(url, token=False).etag or ""
            file = hf_hub_download(
                f"{owner}/{repository}", name, endpoint=_hub(), local_dir=folder, token=False
            )
            return Path(file), stated if re.fullmatch("[0-9a-f]{64}", stated) else ""
        _download_url(url, folder / known.file)
        return folder / known.file, ""
    except Exception as error:  # each of the two libraries has its own
        network = isinstance(error, ConnectionError | TimeoutError | ssl.SSLError)
        if isinstance(error, OSError) and error.errno is not None and not network:
            raise  # of the disk
        status = getattr(error, "code", None) or getattr(
            getattr(error, "response", None), "status_code", None
        )
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        reason = f"the server answers {status}" if status else f"cannot be reached: {problem}"
        fix = "fetch it again, or get it elsewhere and import it"
        raise WeightsError("weights-download", reason, where=url.split("?")[0], fix=fix) from error


class _NoDowngrade(HTTPRedirectHandler):
    """Refuses a redirect from https to http; torch.hub follows it, and waits for ever on a silent server."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Follow what is no weaker than the request."""
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise ConnectionError("it redirects from https to another protocol")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download_url(url: str, file: Path) -> None:
    with build_opener(_NoDowngrade).open(url, timeout=SECONDS_TO_ANSWER) as answer, file.open("wb") as out:
        total = int(answer.headers.get("Content-Length") or 0)
        with tqdm.wrapattr(answer, "read", total=total, disable=not sys.stderr.isatty()) as stream:
            shutil.copyfileobj(stream, out)
        if total and out.tell() != total:
            raise ConnectionError(f"the connection broke off after {out.tell()} of {total} bytes")


def _refuse_other(file: Path, digest: str, expected: str, who: str) -> None:
    if expected and digest != expected:
        reason = f"SHA-256 is {digest[:12]}, {who} {expected[:12]}"
        raise WeightsError("weights-hash", reason, where=file, fix="import the file that you trust")


def verify_weights() -> list[FileCheck]:
    """Hash every file of the weights folder, and those in packages, against what they must be."""
    checks = []
    for known in (stored.known for stored in stored_files()):
        for path in filter(Path.is_file, own_places(known)):
            try:
                check_digest(known, path)
                checks.append(FileCheck(path, pinned=bool(known.sha256 or read_record(path))))
            except WeightsError as error:
                checks.append(FileCheck(path, error.reason))
    recorded = [record.with_suffix("") for record in sorted(weights_folder().glob("*.json"))]
    return checks + [
        FileCheck(path, "is recorded here, and missing") for path in recorded if not path.is_file()
    ]
