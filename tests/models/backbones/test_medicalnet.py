"""MedicalNet's ResNets compute what their authors' definition computes on the published tensors.

`reference` is that definition, written from the facts of the publication with functional calls on tensors by
their published names; it shares no code with the backbones.
"""

from pathlib import Path

import pytest
import torch
from monai.networks.nets import resnet10 as monai_resnet10
from torch import Tensor
from torch.nn import functional as F

from medtl.errors import WeightsError
from medtl.models.backbones import BACKBONES
from medtl.models.backbones.medicalnet import NETWORKS, trained_network

DEPTHS = (10, 18, 34, 50, 101, 152, 200)
# (stride, dilation) of the four stages.
STAGES = ((1, 1), (2, 1), (1, 2), (1, 4))


def publish(depth: int, folder: Path, seed: int = 0) -> dict[str, Tensor]:
    """Write a file in the published format with random tensors, statistics included; return the tensors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in trained_network(depth, 1).state_dict().items()}
    state = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        elif len(shape) == 5:
            state[key] = torch.randn(shape, generator=generator) * (2 / shape[1:].numel()) ** 0.5
        else:
            state[key] = 0.5 + torch.rand(shape, generator=generator)
    published = {"state_dict": {f"module.{key}": value for key, value in state.items()}}
    torch.save(published, folder / f"resnet_{depth}.pth")
    return state


def norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"])


def shortcut(state: dict[str, Tensor], name: str, x: Tensor, out: Tensor, stride: int) -> Tensor:
    if f"{name}.downsample.0.weight" in state:  # type B
        return norm(
            state,
            f"{name}.downsample.1",
            F.conv3d(x, state[f"{name}.downsample.0.weight"], stride=stride),
        )
    if x.shape == out.shape:
        return x
    pooled = F.avg_pool3d(x, kernel_size=1, stride=stride)  # type A
    zeros = torch.zeros(len(x), out.shape[1] - x.shape[1], *pooled.shape[2:])
    return torch.cat([pooled, zeros], dim=1)


def block(state: dict[str, Tensor], name: str, x: Tensor, stride: int, dilation: int) -> Tensor:
    spread = {"padding": dilation, "dilation": dilation}
    first, second = state[f"{name}.conv1.weight"], state[f"{name}.conv2.weight"]
    if f"{name}.conv3.weight" in state:
        out = F.relu(norm(state, f"{name}.bn1", F.conv3d(x, first)))
        out = F.relu(norm(state, f"{name}.bn2", F.conv3d(out, second, stride=stride, **spread)))
        out = norm(state, f"{name}.bn3", F.conv3d(out, state[f"{name}.conv3.weight"]))
    else:
        out = F.relu(norm(state, f"{name}.bn1", F.conv3d(x, first, stride=stride, **spread)))
        out = norm(state, f"{name}.bn2", F.conv3d(out, second, **spread))
    return F.relu(out + shortcut(state, name, x, out, stride))


def reference(state: dict[str, Tensor], depth: int, x: Tensor) -> Tensor:
    """Return the feature map of z-scored volumes (N, 1, D, H, W) by the authors' definition."""
    x = F.relu(norm(state, "bn1", F.conv3d(x, state["conv1.weight"], stride=2, padding=3)))
    x = F.max_pool3d(x, kernel_size=3, stride=2, padding=1)
    for stage, (stride, dilation) in enumerate(STAGES, 1):
        for index in range(NETWORKS[depth][1][stage - 1]):
            x = block(state, f"layer{stage}.{index}", x, stride if index == 0 else 1, dilation)
    return x


def z_scored(volume: Tensor) -> Tensor:
    """Standardise by the voxels above zero, and keep the others at zero."""
    inside = volume[volume > 0]
    return torch.where(volume > 0, (volume - inside.mean()) / inside.std(correction=0), 0.0)


def volume(*size: int) -> Tensor:
    x = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(1))
    return torch.where(x > 0.2, x, 0.0)


@pytest.mark.parametrize("depth", [10, 18, 50])
def test_it_computes_what_the_authors_definition_computes(depth: int, tmp_path: Path) -> None:
    state = publish(depth, tmp_path)
    backbone = BACKBONES[f"medicalnet_resnet{depth}"](tmp_path / f"resnet_{depth}.pth").eval()
    x = volume(12, 34, 40)
    with torch.no_grad():
        expected = reference(state, depth, z_scored(x))
        found = backbone.features(x)
    assert found.shape == (1, 2048 if depth == 50 else 512, 2, 5, 5)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("depth", DEPTHS)
def test_names_and_shapes_are_the_published_ones(depth: int) -> None:
    """Bottlenecks from 50 layers on; no tensor in the shortcuts of 18 and 34 layers."""
    with torch.device("meta"):
        state = trained_network(depth, 1).state_dict()
    assert state["conv1.weight"].shape == (64, 1, 7, 7, 7)
    assert ("layer1.0.conv3.weight" in state) == (depth >= 50)
    assert any("downsample" in key for key in state) == (depth not in (18, 34))
    assert ("layer1.0.downsample.0.weight" in state) == (depth >= 50)
    assert not any("downsample.0.bias" in key for key in state)
    convolutions = sum(value.ndim == 5 and "downsample" not in key for key, value in state.items())
    assert convolutions == depth - 1, "the depth counts the head that the published files lack"


@pytest.mark.parametrize("depth", [10, 18])
@pytest.mark.parametrize("stride", [16, 32])
def test_a_coarser_output_is_the_published_one_at_fewer_places(
    depth: int, stride: int, tmp_path: Path
) -> None:
    publish(depth, tmp_path)
    file, step = tmp_path / f"resnet_{depth}.pth", stride // 8
    x = volume(18, 38, 34)
    with torch.no_grad():
        fine = BACKBONES[f"medicalnet_resnet{depth}"](file).eval().features(x)
        coarse = BACKBONES[f"medicalnet_resnet{depth}_os{stride}"](file).eval().features(x)
    assert coarse.shape[2:] == tuple(-(-extent // stride) for extent in x.shape[2:])
    assert torch.allclose(
        coarse, fine[..., ::step, ::step, ::step], rtol=1e-5, atol=1e-5 * float(fine.abs().max())
    )


def test_gradient_passes_the_shortcut_without_weights() -> None:
    """In the authors' definition it does not; fine-tuning needs it."""
    stage = trained_network(18, 1).layer2[0].eval()
    for parameter in stage.parameters():
        torch.nn.init.zeros_(parameter)  # nothing comes through the convolutions
    x = torch.rand(1, 64, 4, 4, 4, requires_grad=True)
    stage(x).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad[..., ::2, ::2, ::2], torch.ones(1, 64, 2, 2, 2))


def test_monai_takes_the_same_file_and_is_another_network(tmp_path: Path) -> None:
    """Why medtl alters MONAI's network: it strides otherwise, and its stages are not dilated."""
    state = publish(10, tmp_path)
    other = monai_resnet10(spatial_dims=3, n_input_channels=1, feed_forward=False, bias_downsample=False)
    missing, unexpected = other.load_state_dict(state, strict=True)
    assert not missing and not unexpected
    x = z_scored(volume(16, 64, 64))
    with torch.no_grad():
        theirs = other.eval()(x).flatten()
        ours = reference(state, 10, x).mean((2, 3, 4)).flatten()
    assert theirs.shape == ours.shape
    assert float((theirs - ours).norm() / ours.norm()) > 0.05


def test_a_file_of_another_depth_is_refused(tmp_path: Path) -> None:
    publish(10, tmp_path)
    with pytest.raises(WeightsError, match="medicalnet_resnet18") as caught:
        BACKBONES["medicalnet_resnet18"](tmp_path / "resnet_10.pth")
    assert caught.value.code == "weights-mismatch"


def test_a_file_with_a_head_is_refused_by_the_name_of_the_tensor(tmp_path: Path) -> None:
    state = publish(10, tmp_path)
    torch.save({**state, "conv_seg.0.weight": torch.zeros(1)}, tmp_path / "with_head.pth")
    with pytest.raises(WeightsError, match=r"conv_seg\.0\.weight"):
        BACKBONES["medicalnet_resnet10"](tmp_path / "with_head.pth")
