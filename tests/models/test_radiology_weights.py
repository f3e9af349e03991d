"""RadImageNet and TorchXRayVision: files in exactly the published formats load through the real path."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from medtl.errors import WeightsError
from medtl.models.backbones import BACKBONES

# Published name -> (torchvision's constructor, how many of its children the published Sequential holds).
RADIMAGENET = {
    "resnet50": (torchvision.models.resnet50, 9),
    "densenet121": (torchvision.models.densenet121, 1),
    "inception_v3": (lambda: torchvision.models.inception_v3(aux_logits=False, init_weights=False), 20),
}


class Published(nn.Module):
    """RadImageNet's own wrapper: torchvision's children in a Sequential named `backbone`."""

    def __init__(self, net: nn.Module, children: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*list(net.children())[:children])

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)


def with_statistics(net: nn.Module) -> nn.Module:
    """Give the batch norms of an untrained network statistics of their own, as training does."""
    for index, layer in enumerate(net.modules()):
        if isinstance(layer, nn.BatchNorm2d):
            generator = torch.Generator().manual_seed(index)
            layer.running_mean = torch.rand(layer.num_features, generator=generator) - 0.5
            layer.running_var = torch.rand(layer.num_features, generator=generator) + 0.5
    return net.eval()


def write_radimagenet(name: str, folder: Path) -> tuple[Path, nn.Module]:
    constructor, children = RADIMAGENET[name]
    torch.manual_seed(0)
    published = Published(with_statistics(constructor()), children)
    path = folder / "published.pt"
    torch.save(published.state_dict(), path)
    return path, published


@pytest.mark.parametrize("name", RADIMAGENET)
def test_a_published_radimagenet_file_computes_what_its_network_computes(name: str, tmp_path: Path) -> None:
    path, published = write_radimagenet(name, tmp_path)
    backbone = BACKBONES[f"radimagenet_{name}"](path, in_channels=3).eval()
    grey_levels = torch.randint(0, 256, (1, 3, 96, 96), generator=torch.Generator().manual_seed(1))
    steps = [step for step in published.backbone if not isinstance(step, nn.AdaptiveAvgPool2d | nn.Dropout)]
    if name == "densenet121":  # torchvision applies its last ReLU outside its children
        steps.append(nn.ReLU())
    with torch.no_grad():
        expected = nn.Sequential(*steps)((grey_levels - 127.5) * 2 / 255)
        found = backbone.features(grey_levels / 255)
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


def test_a_published_radimagenet_file_says_that_its_licence_is_unclear(own_home: Path) -> None:
    with pytest.raises(WeightsError, match="unclear") as caught:
        BACKBONES["radimagenet_resnet50"]("radimagenet")
    assert caught.value.code == "weights-missing"
    assert str(own_home / "weights") in caught.value.fix and "RadImageNet-ResNet50.pt" in str(caught.value)


def test_radimagenets_file_of_another_network_is_refused(tmp_path: Path) -> None:
    path, _ = write_radimagenet("densenet121", tmp_path)
    with pytest.raises(WeightsError, match="radimagenet_resnet50") as caught:
        BACKBONES["radimagenet_resnet50"](path)
    assert caught.value.code == "weights-mismatch"


def test_torchvisions_own_file_does_not_pass_for_radimagenets(tmp_path: Path) -> None:
    """It has the same shapes, and other input statistics."""
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "imagenet.pth")
    with pytest.raises(WeightsError, match=r"has conv1\.weight") as caught:
        BACKBONES["radimagenet_resnet50"](tmp_path / "imagenet.pth")
    assert caught.value.code == "weights-mismatch"


def test_a_place_that_has_no_child_is_refused_by_its_name(tmp_path: Path) -> None:
    path, published = write_radimagenet("resnet50", tmp_path)
    torch.save({**published.state_dict(), "backbone.11.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"backbone\.11\.weight"):
        BACKBONES["radimagenet_resnet50"](path)


def xray_resnet50(outputs: int = 18) -> nn.Module:
    torch.manual_seed(0)
    net = torchvision.models.resnet50(num_classes=outputs)
    net.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return with_statistics(net)


def until_pooling(net: nn.Module) -> nn.Module:
    return nn.Sequential(*list(net.children())[:8])


def test_torchxrayvisions_resnet_computes_what_its_network_computes(tmp_path: Path) -> None:
    net = xray_resnet50()
    torch.save(net.state_dict(), tmp_path / "state.pt")
    backbone = BACKBONES["torchxrayvision_resnet50"](tmp_path / "state.pt").eval()
    x = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = until_pooling(net)((2 * x - 1) * 1024)
        assert torch.allclose(backbone.features(x), expected, atol=1e-4 * float(expected.abs().max()))
    assert BACKBONES["torchxrayvision_resnet50"].input_size == (512, 512)


def test_torchxrayvisions_resnet_takes_three_equal_channels_as_one(tmp_path: Path) -> None:
    torch.save(xray_resnet50().state_dict(), tmp_path / "state.pt")
    one, three = (BACKBONES["torchxrayvision_resnet50"](tmp_path / "state.pt", in_channels=n) for n in (1, 3))
    x = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        expected = one.eval().features(x)
        found = three.eval().features(x.expand(-1, 3, -1, -1))
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


def test_a_head_of_other_findings_is_refused(tmp_path: Path) -> None:
    torch.save(xray_resnet50(outputs=14).state_dict(), tmp_path / "state.pt")
    with pytest.raises(WeightsError, match="predicts 14 findings, the published network 18") as caught:
        BACKBONES["torchxrayvision_resnet50"](tmp_path / "state.pt")
    assert caught.value.code == "weights-mismatch"


def test_torchxrayvisions_whole_module_is_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.save(torchvision.models.densenet121(num_classes=18), tmp_path / "module.pt")
    with pytest.raises(WeightsError, match="holds code: ") as caught:
        BACKBONES["torchxrayvision_densenet121"](tmp_path / "module.pt")
    assert caught.value.code == "weights-unsafe"
    assert "medtl weights import --unsafe-module" in caught.value.fix
