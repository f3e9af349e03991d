"""The weights folder: which published files are here, and how others come in and stay the same.

Files come in by `fetch_weights`, the one place where weights are downloaded, or by `import_weights`. Either
way their SHA-256 is checked, their tensors must fit the backbone, and a record beside the file pins it.
"""

import difflib
import http.client
import logging
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from huggingface_hub.constants import ENDPOINT

from medtl.core.files import make_folder, replacing, unwritable, write_json
from medtl.errors import WeightsError
from medtl.models.backbones import BACKBONES, BackboneEntry
from medtl.models.published import TORCHVISION_FOLDER
from medtl.models.weights import (
    AGAIN,
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

Progress = Callable[[int, int], None]  # (bytes here, bytes of the file; 0 where the server does not say)

# Where files are fetched from, by fetch_weights alone: what packages state. HF_ENDPOINT names a mirror.
HOSTS = {
    "torchvision": TORCHVISION_FOLDER,
    "hub": ENDPOINT,
    "torchxrayvision": "https://github.com/mlmed/torchxrayvision/releases/download/v1",
}

BLOCK = 1 << 20
SECONDS_TO_ANSWER = 30
SECONDS_TO_CONVERT = 600

CONVERTER = (sys.executable, "-P", "-m", "medtl.models.safe_unpickle")


@dataclass(frozen=True)
class StoredFile:
    """A published weights file and all backbones that load it."""

    known: KnownWeights
    backbones: tuple[BackboneEntry, ...]

    @property
    def check_with(self) -> BackboneEntry:
        """The backbone that tells whether a file's tensors are the right ones."""
        return self.backbones[0]


@dataclass(frozen=True)
class Verdict:
    """What became of one file: its problem, if any, and whether anything says what it must be."""

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
    return [_describe(stored) for stored in stored_files()]


def _describe(stored: StoredFile) -> dict[str, Any]:
    known, path = stored.known, locate(stored.known)
    record = read_record(path) if path else None
    return {
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


def find_stored(name: str) -> StoredFile:
    """Return the file of that name, or the first file of a backbone, or BACKBONE/WEIGHTS.

    Raises WeightsError weights-unknown, naming the nearest.
    """
    names = {alias: stored for stored in reversed(stored_files()) for alias in _aliases(stored)}
    if name in names:
        return names[name]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    fix = f"did you mean {near[0]}" if near else "medtl weights list names them all"
    raise WeightsError("weights-unknown", "no weights of that name", where=name, fix=fix)


def _aliases(stored: StoredFile) -> Iterator[str]:
    yield stored.known.file
    for entry in stored.backbones:
        mine = next(weights for weights in entry.known_weights if weights.file == stored.known.file)
        yield f"{entry.name}/{mine.name}"
        if mine is entry.known_weights[0]:
            yield entry.name


def import_weights(file: Path, name: str | None = None, *, unsafe_module: bool = False) -> Path:
    """Copy a file of the user's into the weights folder under its known name; return where it is now.

    name: what the file is, where its own name does not say. unsafe_module: take the tensors out of a whole
    pickled module, in a process of its own, and keep them alone. Raises WeightsError weights-unknown,
    -missing, -hash, -mismatch, -unsafe; OutputError.
    """
    if not file.is_file():
        raise WeightsError("weights-missing", "no such file", where=file, fix="give a weights file")
    stored = find_stored(name or file.name)
    if unsafe_module:
        return _import_module(file, stored)
    digest = check_fit(file, stored)
    target = weights_folder() / stored.known.file
    _refuse_format(file, target)
    with replacing(target) as copy:
        shutil.copyfile(file, copy)
        if sha256_of(copy) != digest:
            raise _changed(file)
    write_json(record_path(target), asdict(WeightsRecord(digest, f"imported from {file.name}")))
    return target


def _refuse_format(file: Path, target: Path) -> None:
    """A file is read by what its name ends in, so one must not become the other."""
    if (file.suffix == ".safetensors") != (target.suffix == ".safetensors"):
        reason = f"{target.name} is published as {target.suffix}, not as {file.suffix or 'a nameless format'}"
        raise WeightsError("weights-mismatch", reason, where=file, fix="use it by its path, or get that file")


def _import_module(file: Path, stored: StoredFile) -> Path:
    digest = _check_published(file, stored.known)
    target = converted_path(stored.known)
    make_folder(target.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=".converting-", dir=target.parent) as folder:
            tensors = Path(folder) / target.name
            convert_module(file, tensors)
            converted = check_fit(tensors, stored, published=False)
            tensors.chmod(0o644)
            tensors.replace(target)
    except OSError as error:
        raise unwritable(target, error) from error
    record = WeightsRecord(converted, f"tensors of {file.name}", converted_from=digest)
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
        reason = _last_line(done.stderr) if done.returncode else ""
    except subprocess.TimeoutExpired:
        reason = f"took more than {SECONDS_TO_CONVERT} s"
    if reason:
        raise WeightsError(
            "weights-unsafe", f"no tensors to take: {reason}", where=file, fix="give a whole torch module"
        )


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["its process was ended"])[-1]


def check_fit(file: Path, stored: StoredFile, *, published: bool = True) -> str:
    """Return the SHA-256 of a file that is the published one and whose tensors fit its backbone.

    Raises WeightsError weights-hash, -mismatch, -unsafe.
    """
    digest = _check_published(file, stored.known) if published else sha256_of(file)
    loaded = stored.check_with(weights=file).weights
    if loaded is None or loaded.sha256 != digest:
        raise _changed(file)
    return digest


def _check_published(file: Path, known: KnownWeights) -> str:
    digest = sha256_of(file)
    if not digest.startswith(known.sha256):
        reason = f"SHA-256 is {digest[:12]}, published is {known.sha256[:12]}"
        raise WeightsError("weights-hash", reason, where=file, fix=f"it is not {known.file}: {AGAIN}")
    return digest


def _changed(file: Path) -> WeightsError:
    return WeightsError("weights-hash", "changed while it was read", where=file, fix="try again")


def fetch_weights(name: str, progress: Progress | None = None) -> Path:
    """Download a published file into the weights folder, unless it is here; return where it is.

    What arrived of a download that broke off is kept, and gone on with. Raises WeightsError weights-unknown,
    -download, -hash, -mismatch, -unsafe; OutputError.
    """
    stored = find_stored(name)
    known, url = stored.known, url_of(stored.known)
    present = _find_whole(known)
    if present is not None:
        return present
    if url is None:
        raise _not_handed_out(stored)
    target = weights_folder() / known.file
    part = make_folder(weights_folder()) / f".part-{known.file}"
    try:
        stated = _download(url, part, progress)
        digest = _check_arrived(part, stored, stated)
        part.replace(target)
    except OSError as error:
        raise unwritable(target, error) from error
    _etag_path(part).unlink(missing_ok=True)
    write_json(record_path(target), asdict(WeightsRecord(digest, url)))
    return target


def _not_handed_out(stored: StoredFile) -> WeightsError:
    known, backbone = stored.known, stored.check_with.name
    way = f"medtl weights import FILE --as {backbone}/{known.name}"
    fix = "install medtl[offline]" if known.package else f"get it from there, then {way}"
    return WeightsError("weights-download", f"{known.file} has no download", where=known.source, fix=fix)


def _find_whole(known: KnownWeights) -> Path | None:
    """Return where the right file is; one that is damaged is as good as absent, since it is fetched anew."""
    try:
        found = find_verified(known)
    except WeightsError as error:
        log.warning("%s", error)
        return None
    return found[0] if found else None


def url_of(known: KnownWeights) -> str | None:
    """Return where a published file can be fetched from, or None where users must bring it."""
    kind, _, place = known.origin.partition(":")
    if not kind:
        return None
    if kind == "hub":
        owner, repository, file = place.split("/", 2)
        host = os.environ.get("HF_ENDPOINT") or HOSTS["hub"]
        return f"{host.rstrip('/')}/{owner}/{repository}/resolve/main/{file}"
    return f"{HOSTS[kind]}/{known.file}"


def _check_arrived(part: Path, stored: StoredFile, stated: str) -> str:
    """Return the SHA-256 of what arrived; throw it away where it is not what was published."""
    try:
        digest = check_fit(part, stored)
        _refuse_other(part, digest, stated, "its host states")
        record = read_record(weights_folder() / stored.known.file)
        _refuse_other(part, digest, record.sha256 if record else "", "it was pinned as")
    except WeightsError:
        part.unlink(missing_ok=True)
        _etag_path(part).unlink(missing_ok=True)
        raise
    return digest


def _refuse_other(part: Path, digest: str, expected: str, who: str) -> None:
    if expected and digest != expected:
        reason = f"SHA-256 is {digest[:12]}, {who} {expected[:12]}"
        raise WeightsError("weights-hash", reason, where=part, fix="import the file that you trust")


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but never to a plainer scheme; keep the SHA-256 that the hub states on its way."""

    def __init__(self) -> None:
        self.stated = ""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Return the request that follows, or raise URLError."""
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise urllib.error.URLError("a redirect leaves https")
        linked = headers.get("X-Linked-Etag", "").strip('"')
        self.stated = linked if re.fullmatch("[0-9a-f]{64}", linked) else self.stated
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(url: str, part: Path, progress: Progress | None) -> str:
    """Fetch `url` into `part`, or the rest of it; return the SHA-256 that the host states, or nothing.

    Raises WeightsError weights-download, with what arrived kept.
    """
    redirects = Redirects()
    opener = urllib.request.build_opener(redirects)
    request = urllib.request.Request(url, headers=_resume_headers(part))
    try:
        with opener.open(request, timeout=SECONDS_TO_ANSWER) as reply:
            _receive(reply, part, progress)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to send
            return redirects.stated
        raise _unfetched(url, f"the server answers {error.code}") from error
    except urllib.error.URLError as error:
        raise _unfetched(url, f"cannot be reached: {error.reason}") from error
    except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise _unfetched(url, f"broke off: {type(error).__name__}") from error
    return redirects.stated


def _resume_headers(part: Path) -> dict[str, str]:
    """Ask for the rest of a file that is still what it was when its first bytes came."""
    etag = _etag_path(part)
    if not part.is_file() or not etag.is_file():
        return {}
    return {"Range": f"bytes={part.stat().st_size}-", "If-Range": etag.read_text(encoding="ascii")}


def _receive(reply: Any, part: Path, progress: Progress | None) -> None:
    resumed = reply.status == 206
    have = part.stat().st_size if resumed else 0
    length = reply.headers.get("Content-Length")
    total = have + int(length) if length and length.isdigit() else 0
    if not resumed:
        _etag_path(part).write_text(_strong_etag(reply), encoding="ascii", errors="replace")
    with part.open("ab" if resumed else "wb") as file:
        while block := reply.read(BLOCK):
            file.write(block)
            have += len(block)
            if progress:
                progress(have, total)
    if have < total:
        raise _unfetched(reply.url, f"broke off at {have:,} of {total:,} bytes")


def _strong_etag(reply: Any) -> str:
    """Return the tag that holds a range to its file; a weak one cannot (RFC 9110, 13.1.5)."""
    etag = reply.headers.get("ETag", "")
    return "" if etag.startswith("W/") else etag


def _etag_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _unfetched(url: str, reason: str) -> WeightsError:
    fix = "fetch it again (what came is kept), or get it elsewhere and import it"
    return WeightsError("weights-download", reason, where=url.split("?")[0], fix=fix)


def verify_weights() -> list[Verdict]:
    """Hash every file of the weights folder, and those in packages, against what they must be."""
    places = [(path, stored.known) for stored in stored_files() for path in own_places(stored.known)]
    verdicts = [_verify(path, known) for path, known in places if path.is_file()]
    lost = [path for path in _recorded() if not path.is_file()]
    return verdicts + [Verdict(path, "is recorded here, and gone") for path in lost]


def _verify(path: Path, known: KnownWeights) -> Verdict:
    try:
        check_digest(known, path)
        return Verdict(path, pinned=bool(known.sha256 or read_record(path)))
    except WeightsError as error:
        return Verdict(path, error.reason)


def _recorded() -> list[Path]:
    """Return the files that have a record in the weights folder."""
    records = sorted(weights_folder().glob("*.json")) if weights_folder().is_dir() else []
    return [record.with_name(record.name.removesuffix(".json")) for record in records]
