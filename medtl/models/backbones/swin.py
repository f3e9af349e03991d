"""Swin transformer backbone (Liu 2021): windows of tokens, which stay on their grid from end to end."""

from typing import Any

from torch import Tensor, nn

from medtl.models.backbone import SizeRule
from medtl.models.published import torchvision_imagenet
from medtl.models.timm_network import TimmNetwork, rename_by_parts, timm_entry
from medtl.models.weights import StateDict

# torchvision counts patches, stage, merging, stage, ... as features 0 to 7.
TORCHVISION_NAMES = {
    "features.0.0.": "patch_embed.proj.",
    "features.0.2.": "patch_embed.norm.",
    **{f"features.{2 * stage + 1}.": f"layers.{stage}.blocks." for stage in range(4)},
    **{f"features.{2 * stage}.": f"layers.{stage}.downsample." for stage in (1, 2, 3)},
    ".mlp.0.": ".mlp.fc1.",
    ".mlp.3.": ".mlp.fc2.",
}


class Patches(nn.Module):
    """Embed patches: images (N, C, H, W) -> (N, F, h, w)."""

    def __init__(self, embed: nn.Module) -> None:
        super().__init__()
        self.embed = embed

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x).permute(0, 3, 1, 2)


class OnGrid(nn.Module):
    """Run a module that takes features last, (N, h, w, F), on a map (N, F, h, w)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def grid_stages(net: Any) -> dict[str, nn.Module]:
    """Return patches, four stages, and the final norm."""
    stages = {f"stage{number}": OnGrid(stage) for number, stage in enumerate(net.layers, 1)}
    return {"stem": Patches(net.patch_embed), **stages, "final": OnGrid(net.norm)}


def rename_torchvision(state: StateDict) -> StateDict:
    """Give torchvision's tensors timm's names; the index of relative positions is recomputed."""
    trained = {key: value for key, value in state.items() if not key.endswith("relative_position_index")}
    return rename_by_parts(trained, TORCHVISION_NAMES)


SWIN_TINY = timm_entry(
    "swin_tiny",
    "Swin",
    TimmNetwork(
        "swin_tiny_patch4_window7_224.ms_in1k",
        grid_stages,
        head=("head",),
        rename=rename_torchvision,
        # Windows and positions are relative, so other sizes than the pretraining's need nothing but masks
        # that are made for each input, and padding to whole windows.
        options={"strict_img_size": False},
    ),
    torchvision_imagenet("swin_t"),
    SizeRule(smallest=32, multiple=4),
)
ENTRIES = (SWIN_TINY,)
