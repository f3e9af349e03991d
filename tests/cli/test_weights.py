"""medtl weights: list, fetch, import, verify, as users call them."""

import json
from pathlib import Path

import pytest
import torch
import torchvision

from medtl.models import weight_store as weights_store
from tests.cli import jobs


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A file in the published format of TorchXRayVision's ResNet-50, whose publisher states no hash."""
    torch.manual_seed(0)
    net = torchvision.models.resnet50(num_classes=18)
    net.conv1 = torch.nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    torch.save(net.state_dict(), tmp_path / "state.pt")
    return tmp_path / "state.pt"


def test_the_list_names_each_file_once_with_licence_and_source() -> None:
    rows = json.loads(jobs.medtl("weights", "list", "--json").stdout)
    files = [row["file"] for row in rows]
    assert len(files) == len(set(files)) > 20
    assert all(row["licence"] and row["source"] and row["backbones"] for row in rows)
    medicalnet = next(row for row in rows if row["file"] == "resnet_10.pth")
    assert {"medicalnet_resnet10", "medicalnet_resnet10_os32"} <= set(medicalnet["backbones"])
    assert medicalnet["present"] is False and medicalnet["path"] is None
    table = jobs.medtl("weights", "list").stdout
    assert all(f"{file}  " in table for file in files)


def test_import_then_list_then_verify(published: Path, own_home: Path) -> None:
    result = jobs.medtl("weights", "import", published, "--as", "torchxrayvision_resnet50")
    assert result.exit_code == 0, result.output
    path = Path(result.stdout.strip())
    assert path.parent == own_home / "weights" and path.is_file()
    rows = json.loads(jobs.medtl("weights", "list", "--json").stdout)
    row = next(row for row in rows if row["file"] == path.name)
    assert row["present"] and row["path"] == str(path) and row["bytes"] == path.stat().st_size
    assert len(row["pinned"]) == 64
    whole = jobs.medtl("weights", "verify")
    assert whole.exit_code == 0 and f"{path.name}: unchanged\n" in whole.stdout
    with path.open("r+b") as file:
        file.seek(5000)
        file.write(b"changed")
    changed = jobs.medtl("weights", "verify")
    assert jobs.fault(changed) == "weights-hash" and path.name in changed.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("import", "{file}"), "weights-unknown"),
        (("import", "{file}", "--as", "torchxrayvision_resnet51"), "weights-unknown"),
        (("import", "{file}", "--as", "resnet50"), "weights-hash"),
        (("import", "{file}", "--as", "radimagenet_resnet50"), "weights-mismatch"),
        (("import", "{file}", "--as", "torchxrayvision_densenet121"), "weights-mismatch"),
        (("import", "{file}", "--as", "torchxrayvision_resnet50", "--unsafe-module"), "weights-unsafe"),
        (("import", "absent.pth"), "weights-missing"),
        (("fetch", "resnet51"), "weights-unknown"),
        (("fetch", "radimagenet_resnet50"), "weights-download"),
    ],
)
def test_each_fault_is_one_line(arguments: tuple[str, ...], code: str, published: Path) -> None:
    result = jobs.medtl("weights", *(argument.format(file=published) for argument in arguments))
    assert jobs.fault(result) == code


def test_fetch_without_a_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_store, "HOSTS", dict.fromkeys(weights_store.HOSTS, "http://127.0.0.1:9"))
    for name in ("http_proxy", "HTTP_PROXY", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    result = jobs.medtl("weights", "fetch", "medicalnet_resnet10/medicalnet-8")
    assert jobs.fault(result) == "weights-download"
    assert "MIT" in result.stderr


def test_a_place_that_cannot_be_written_is_one_line(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MEDTL_HOME", str(tmp_path / "file"))
    result = jobs.medtl("weights", "import", published, "--as", "torchxrayvision_resnet50")
    assert jobs.fault(result) == "output-unwritable"


def test_verify_says_when_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_store, "stored_files", list)
    result = jobs.medtl("weights", "verify")
    assert result.exit_code == 0 and result.stdout == "no weights files on this machine\n"
