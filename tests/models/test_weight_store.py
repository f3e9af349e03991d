"""The weights folder: files fetched from loopback, imported, pinned and verified; none is run."""

import hashlib
import http.server
import io
import json
import os
import pickle
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from medtl.errors import WeightsError
from medtl.models import weight_store as weights_store
from medtl.models.backbone import Standardise, WeightsRequest
from medtl.models.backbones import BACKBONES, Backbone, BackboneEntry
from medtl.models.safe_unpickle import read_module_tensors
from medtl.models.weight_store import fetch_weights, find_stored, import_weights, url_of, verify_weights
from medtl.models.weights import KnownWeights, sha256_of

LICENCE = "MIT"


def make_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 64, 3), nn.BatchNorm2d(64))


def build_small(in_channels: int, request: WeightsRequest) -> Backbone:
    net = make_net()
    return Backbone(
        request.backbone,
        {"stem": net},
        spatial_dims=2,
        in_channels=in_channels,
        num_features=64,
        normalise=Standardise((0.5,), (0.5,), in_channels),
        weights=request.load_into(net, dict),
    )


def file_bytes(seed: int = 0) -> bytes:
    content = io.BytesIO()
    torch.save(make_net(seed).state_dict(), content)
    return content.getvalue()


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Callable[..., KnownWeights]:
    """Register a backbone `small` whose one known file has the given origin and stated SHA-256."""

    def register(origin: str = "", sha256: str = "", file: str = "small.pth") -> KnownWeights:
        known = KnownWeights("made", file, sha256, LICENCE, "made here", origin=origin)
        monkeypatch.setitem(
            BACKBONES, "small", BackboneEntry("small", "tiny", 2, (8, 8), (known,), build_small)
        )
        return known

    return register


class Host(http.server.BaseHTTPRequestHandler):
    """Serves `content` under any path but a few, and under /owner as the Hugging Face hub does."""

    content = b""
    cut_at: int | None = None  # of the first answer
    linked = ""
    requests: list[tuple[str, str | None]]

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.requests.append((self.path, self.headers.get("Range")))
        self.wfile.write(self.answer())

    def answer(self) -> bytes:
        """Send the head of an answer; return its body."""
        if self.path.startswith("/absent"):
            self.send_error(404)
            return b""
        asked = self.headers.get("Range", "")
        start = int(asked[6:].partition("-")[0]) if asked else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{self.linked or hashlib.md5(self.content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        body = self.content[start : self.cut_at]
        if self.command == "GET":
            type(self).cut_at = None
        return body

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Host]]:
    """Serve on loopback in the place of every host; nothing else can be reached through HOSTS."""
    served = type("Served", (Host,), {"content": file_bytes(), "requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), served)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    hosts = {"torchvision": address, "hub": address, "gone": f"{address}/absent"}
    monkeypatch.setattr(weights_store, "HOSTS", hosts)
    for name in ("http_proxy", "HTTP_PROXY", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    yield served
    server.shutdown()
    server.server_close()


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def record(path: Path) -> dict[str, str]:
    return json.loads(path.with_name(f"{path.name}.json").read_text())


# fetching


@pytest.mark.parametrize("origin", ["torchvision", "hub:owner/net/model.pth"])
def test_a_fetched_file_is_checked_pinned_and_loads(publish, host, own_home, origin) -> None:
    publish(origin, digest_of(host.content)[:8])
    path = fetch_weights("small")
    assert path == own_home / "weights/small.pth" and path.read_bytes() == host.content
    assert record(path)["sha256"] == digest_of(host.content)
    assert record(path)["origin"].endswith(".pth")
    assert BACKBONES["small"]("made").weights.sha256 == digest_of(host.content)
    assert sorted(file.name for file in path.parent.iterdir()) == ["small.pth", "small.pth.json"]


def test_what_is_here_is_not_fetched_again(publish, host) -> None:
    publish("torchvision", digest_of(host.content)[:8])
    assert fetch_weights("small") == fetch_weights("small")
    assert len(host.requests) == 1


def test_a_download_from_the_hub_that_broke_off_is_tried_again(publish, host) -> None:
    publish("hub:owner/net/model.pth", digest_of(host.content)[:8])
    host.cut_at = 1000
    assert fetch_weights("small").read_bytes() == host.content
    assert len(host.requests) == 2


def test_half_a_file_is_never_moved_into_place(publish, host, own_home) -> None:
    publish("torchvision", digest_of(host.content)[:8])
    host.cut_at = 1000
    with pytest.raises(WeightsError, match="broke off after 1000") as caught:
        fetch_weights("small")
    assert caught.value.code == "weights-download"
    assert list((own_home / "weights").iterdir()) == []
    assert fetch_weights("small").read_bytes() == host.content


def test_a_wrong_hash_is_never_moved_into_place(publish, host, own_home) -> None:
    publish("torchvision", "00000000")
    with pytest.raises(WeightsError, match="published is 00000000") as caught:
        fetch_weights("small")
    assert caught.value.code == "weights-hash"
    assert list((own_home / "weights").iterdir()) == []


def test_a_page_in_the_place_of_the_file_is_never_pinned(publish, host, own_home) -> None:
    """As a captive portal answers: status 200, and no weights."""
    publish("torchvision")
    host.content = b"<html>log in</html>"
    with pytest.raises(WeightsError) as caught:
        fetch_weights("small")
    assert caught.value.code == "weights-unsafe"
    assert list((own_home / "weights").iterdir()) == []


def test_the_hash_that_the_hub_states_is_checked(publish, host) -> None:
    publish("hub:owner/net/model.pth")
    host.linked = "0" * 64
    with pytest.raises(WeightsError, match="its host states 000000000000") as caught:
        fetch_weights("small")
    assert caught.value.code == "weights-hash"
    host.linked = digest_of(host.content)
    assert fetch_weights("small").read_bytes() == host.content
    assert host.requests[0][0].startswith("/owner/net/resolve/") and "model.pth" in host.requests[0][0]


def test_a_damaged_file_is_fetched_again_but_only_as_it_was_pinned(publish, host) -> None:
    publish("torchvision")
    path = fetch_weights("small")
    path.write_bytes(b"damaged")
    assert fetch_weights("small").read_bytes() == host.content
    path.write_bytes(b"damaged")
    host.content = file_bytes(seed=1)
    with pytest.raises(WeightsError, match="it was pinned as"):
        fetch_weights("small")


def test_a_server_that_refuses_is_one_line(publish, host) -> None:
    publish("gone")
    with pytest.raises(WeightsError, match="the server answers 404") as caught:
        fetch_weights("small")
    assert caught.value.code == "weights-download"


def test_a_redirect_from_https_to_http_is_refused() -> None:
    secure = urllib.request.Request("https://weights.example/a.pth")
    follow = weights_store._NoDowngrade().redirect_request
    assert follow(secure, None, 302, "Found", {}, "https://elsewhere.example/a.pth") is not None
    with pytest.raises(ConnectionError, match="from https"):
        follow(secure, None, 302, "Found", {}, "http://elsewhere.example/a.pth")


def test_offline_is_one_line_that_says_what_to_do(publish, monkeypatch) -> None:
    monkeypatch.setattr(weights_store, "HOSTS", {"torchvision": "http://127.0.0.1:9"})
    monkeypatch.delenv("http_proxy", raising=False)
    publish("torchvision")
    with pytest.raises(WeightsError, match="cannot be reached") as caught:
        fetch_weights("small")
    assert caught.value.code == "weights-download" and "import it" in caught.value.fix
    assert len(str(caught.value)) <= 200 and "\n" not in str(caught.value)


def test_what_nobody_hands_out_says_how_to_bring_it(publish) -> None:
    publish("")
    with pytest.raises(WeightsError, match="medtl weights import FILE --as small/made") as caught:
        fetch_weights("small")
    assert caught.value.code == "weights-download"


def test_every_published_address_is_https(monkeypatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    addresses = [url_of(known) for entry in BACKBONES.values() for known in entry.known_weights]
    found = [address for address in addresses if address]
    assert len(found) > 20 and all(address.startswith("https://") for address in found)


def test_a_mirror_of_the_hub_is_used(monkeypatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    known = BACKBONES["medicalnet_resnet10"].known_weights[1]
    assert url_of(known) == (
        "https://mirror.example/TencentMedicalNet/MedicalNet-Resnet10/resolve/main/resnet_10.pth"
    )


# names


@pytest.mark.parametrize("name", ["small", "small/made", "small.pth"])
def test_a_file_is_found_by_its_name_or_its_backbones(publish, name: str) -> None:
    known = publish()
    assert find_stored(name).known == known


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(WeightsError, match=r"did you mean resnet50-0676ba61\.pth") as caught:
        find_stored("resnet50-0676ba61.pt")
    assert caught.value.code == "weights-unknown"


def test_a_name_like_no_other_points_to_the_list() -> None:
    with pytest.raises(WeightsError, match="medtl weights list"):
        find_stored("%%%%%%%%")


# importing


def write(path: Path, seed: int = 0) -> Path:
    path.write_bytes(file_bytes(seed))
    return path


def test_an_imported_file_is_pinned_and_held_to_it(publish, tmp_path, own_home) -> None:
    publish()
    path = import_weights(write(tmp_path / "mine.pth"), "small")
    assert path == own_home / "weights/small.pth"
    assert record(path)["sha256"] == sha256_of(tmp_path / "mine.pth")
    BACKBONES["small"]("made")
    write(path, seed=1)
    with pytest.raises(WeightsError, match="when it was added") as caught:
        BACKBONES["small"]("made")
    assert caught.value.code == "weights-hash"


def test_importing_anew_pins_anew(publish, tmp_path) -> None:
    publish()
    import_weights(write(tmp_path / "small.pth"))
    path = import_weights(write(tmp_path / "small.pth", seed=1))
    assert BACKBONES["small"]("made").weights.sha256 == record(path)["sha256"]


def refused(file: Path, own_home: Path, name: str = "small", **options: bool) -> WeightsError:
    """Import what must be refused, and leave nothing behind."""
    with pytest.raises(WeightsError) as caught:
        import_weights(file, name, **options)
    folder = own_home / "weights"
    assert not folder.exists() or list(folder.iterdir()) == []
    assert len(str(caught.value)) <= 200 and "\n" not in str(caught.value)
    return caught.value


def test_a_file_of_a_wrong_hash_is_refused(publish, tmp_path, own_home) -> None:
    publish(sha256="00000000")
    assert refused(write(tmp_path / "small.pth"), own_home).code == "weights-hash"


def test_a_file_of_another_architecture_is_refused(publish, tmp_path, own_home) -> None:
    publish()
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    assert refused(tmp_path / "other.pth", own_home).code == "weights-mismatch"


@pytest.mark.parametrize("size", [0, 10, 4000])
def test_a_truncated_file_is_refused(publish, tmp_path, own_home, size: int) -> None:
    publish()
    (tmp_path / "cut.pth").write_bytes(file_bytes()[:size])
    assert refused(tmp_path / "cut.pth", own_home).code == "weights-unsafe"


def test_an_absent_file_is_refused(publish, tmp_path, own_home) -> None:
    publish()
    assert refused(tmp_path / "absent.pth", own_home).code == "weights-missing"
    assert refused(tmp_path, own_home).code == "weights-missing"


def test_safetensors_do_not_pass_for_a_pth(publish, tmp_path, own_home) -> None:
    publish()
    save_file(make_net().state_dict(), tmp_path / "small.safetensors")
    assert "published as .pth" in refused(tmp_path / "small.safetensors", own_home).reason


# whole modules


class Canary:
    """An object whose unpickling would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return (os.mkdir, (self.path,))


def write_module(path: Path, *, legacy: bool = False, canary: Path | None = None) -> nn.Module:
    module = make_net()
    module[0].register_buffer("kept", torch.arange(3.0))
    module[0].register_buffer("passing", torch.zeros(1), persistent=False)
    if canary:
        module.evil = Canary(canary)
    torch.save(module, path, _use_new_zipfile_serialization=not legacy)
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("legacy", [False, True])
def test_the_tensors_of_a_module_are_its_state_dict(tmp_path, legacy: bool) -> None:
    state = write_module(tmp_path / "module.pt", legacy=legacy).state_dict()
    found = read_module_tensors(tmp_path / "module.pt")
    assert list(found) == list(state)
    assert all(torch.equal(found[key], state[key]) for key in state)


def test_a_module_is_refused_without_the_flag_and_never_run(publish, tmp_path, own_home) -> None:
    publish()
    write_module(tmp_path / "module.pt", canary=tmp_path / "touched")
    error = refused(tmp_path / "module.pt", own_home)
    assert error.code == "weights-unsafe" and "--unsafe-module" in error.fix
    assert not (tmp_path / "touched").exists()


def test_a_module_is_converted_with_the_flag_and_never_run(publish, tmp_path, monkeypatch) -> None:
    """The child is told nothing of the environment; what the module would run is not run even there."""
    publish(file="small.pt")
    torch.save(with_canary := make_net(), tmp_path / "clean.pt")
    with_canary.evil = Canary(tmp_path / "touched")
    torch.save(with_canary, tmp_path / "module.pt")
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    seen: list[dict[str, str]] = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: seen.append(k["env"]) or run(*a, **k))
    path = import_weights(tmp_path / "module.pt", "small", unsafe_module=True)
    assert path.name == "small.pt.safetensors" and not (tmp_path / "touched").exists()
    assert seen and "SECRET_TOKEN" not in seen[0] and "HOME" not in seen[0]
    state = make_net().state_dict()
    assert all(torch.equal(value, state[key]) for key, value in load_file(path).items())
    assert record(path)["converted_from"] == sha256_of(tmp_path / "module.pt")
    assert BACKBONES["small"]("made").weights.sha256 == record(path)["sha256"] == sha256_of(path)
    assert [check.problem for check in verify_weights() if check.path == path] == [""]


def test_a_module_of_another_architecture_is_refused_once_converted(publish, tmp_path, own_home) -> None:
    publish()
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    assert refused(tmp_path / "module.pt", own_home, unsafe_module=True).code == "weights-mismatch"


def test_what_is_no_module_is_refused(publish, tmp_path, own_home) -> None:
    publish()
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Canary(tmp_path / "touched")))
    assert refused(tmp_path / "evil.pt", own_home, unsafe_module=True).code == "weights-unsafe"
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    assert "TorchScript" in refused(tmp_path / "script.pt", own_home, unsafe_module=True).reason
    assert not (tmp_path / "touched").exists()


# verifying


def test_what_changed_or_is_gone_is_named(publish, tmp_path, own_home) -> None:
    publish()
    path = import_weights(write(tmp_path / "small.pth"))
    assert [check.problem for check in verify_weights() if check.path == path] == [""]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert "when it was added" in next(v.problem for v in verify_weights() if v.path == path)
    path.unlink()
    assert next(v.problem for v in verify_weights() if v.path == path) == "is recorded here, and missing"


def test_a_file_that_nothing_pins_is_said_to_be_so(publish, own_home) -> None:
    publish()
    (own_home / "weights").mkdir()
    path = write(own_home / "weights/small.pth")
    verdict = next(v for v in verify_weights() if v.path == path)
    assert verdict.problem == "" and not verdict.pinned


def test_the_published_hash_pins_a_file_without_a_record(publish, own_home) -> None:
    known = publish()
    (own_home / "weights").mkdir()
    path = write(own_home / "weights/small.pth")
    entry = BACKBONES["small"]
    BACKBONES["small"] = replace(entry, known_weights=(replace(known, sha256=sha256_of(path)[:8]),))
    assert next(v for v in verify_weights() if v.path == path).pinned
