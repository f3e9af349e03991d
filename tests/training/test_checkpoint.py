"""A checkpoint is whole or absent, and damage is named."""

import json

import pytest
import torch

from medtl.errors import CheckpointError, TrainingError
from medtl.training.checkpoint import (
    CheckpointHeader,
    describe_classifier,
    load_checkpoint,
    load_optimizer,
    model_tensors,
    optimizer_tensors,
    read_header,
    save_checkpoint,
)
from medtl.training.run_folder import RunFolder


def save(classifier, folder):
    header = CheckpointHeader(
        **describe_classifier(classifier, 0.2), preprocessing={"size": (32, 32)}, augmentation={}, schedule=()
    )
    save_checkpoint(folder, header, {"model": model_tensors(classifier)})


def test_a_checkpoint_scores_by_itself(make_classifier, tmp_path):
    classifier = make_classifier().eval()
    save(classifier, tmp_path / "checkpoints" / "best")
    loaded = load_checkpoint(tmp_path)
    x = torch.rand(2, 1, 32, 32)
    assert torch.equal(loaded.classifier(x), classifier(x))
    assert loaded.task == classifier.task


def test_saving_again_leaves_one_tensor_file(make_classifier, tmp_path):
    classifier = make_classifier()
    save(classifier, tmp_path)
    with torch.no_grad():
        classifier.head.linear.bias.add_(1)
    save(classifier, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert torch.equal(load_checkpoint(tmp_path).classifier.head.linear.bias, classifier.head.linear.bias)


def test_a_save_that_fails_leaves_the_former_checkpoint(make_classifier, tmp_path, monkeypatch):
    classifier = make_classifier()
    save(classifier, tmp_path)
    former = read_header(tmp_path).tensors["model"].sha256
    with torch.no_grad():
        classifier.head.linear.bias.add_(1)
    monkeypatch.setattr(
        "medtl.training.checkpoint.write_text", lambda *_: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        save(classifier, tmp_path)
    assert load_checkpoint(tmp_path).sha256 == former


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "header", "keys"])
def test_damage_is_one_line(make_classifier, tmp_path, damage):
    save(make_classifier(), tmp_path)
    (tensors,) = tmp_path.glob("*.safetensors")
    content = bytearray(tensors.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        tensors.write_bytes(content)
    elif damage == "cut":
        tensors.write_bytes(content[: len(content) // 2])
    elif damage == "delete":
        tensors.unlink()
    elif damage == "header":
        (tmp_path / "checkpoint.json").write_text("{not json")
    else:
        (tmp_path / "checkpoint.json").write_text(json.dumps({"format": 1, "surprise": True}))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path)
    assert caught.value.code == "checkpoint-damaged"
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 200


def test_a_tensor_name_cannot_lead_out_of_the_folder(make_classifier, tmp_path):
    save(make_classifier(), tmp_path / "a")
    header = json.loads((tmp_path / "a" / "checkpoint.json").read_text())
    file = header["tensors"]["model"]["file"]
    (tmp_path / "a" / file).rename(tmp_path / file)
    header["tensors"]["model"]["file"] = f"../{file}"
    (tmp_path / "a" / "checkpoint.json").write_text(json.dumps(header))
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "a")


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path)
    assert caught.value.code == "run-missing"


def test_optimizer_state_survives(make_classifier):
    classifier = make_classifier()
    optimizers = [torch.optim.AdamW(classifier.parameters(), lr=1e-3) for _ in range(2)]
    classifier(torch.rand(4, 1, 32, 32)).sum().backward()
    optimizers[0].step()
    load_optimizer(optimizers[1], optimizer_tensors(optimizers[0]))
    first, second = (optimizer.state_dict()["state"] for optimizer in optimizers)
    assert all(torch.equal(first[i][key], second[i][key]) for i in first for key in first[i])


def test_moments_are_laid_out_as_their_parameters(make_classifier):
    """Otherwise the optimizer's fast path is lost for the rest of a resumed run."""
    classifier = make_classifier().to(memory_format=torch.channels_last)
    optimizers = [torch.optim.AdamW(classifier.parameters(), lr=1e-3) for _ in range(2)]
    classifier(torch.rand(4, 1, 32, 32)).sum().backward()
    optimizers[0].step()
    load_optimizer(optimizers[1], optimizer_tensors(optimizers[0]))
    weight = classifier.backbone.groups["middle"][0].weight
    assert optimizers[1].state[weight]["exp_avg"].stride() == weight.stride()
    assert weight.stride() != weight.contiguous().stride()


def test_a_second_process_is_kept_out(tmp_path):
    run = RunFolder(tmp_path / "run")
    with run.locked(), pytest.raises(TrainingError) as caught, run.locked():
        pass
    assert caught.value.code == "run-locked"
    with run.locked():
        pass
