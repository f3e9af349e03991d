"""Vision transformer backbones (Dosovitskiy 2020) with patches of 16 pixels.

Between groups the patches' tokens lie on their grid, and above them is one row that repeats the class token:
(N, F, 1 + h, w). So an activation has its grid for any shape of the image, in the feature cache as
well. The last group drops that row. Its map is the first one that Grad-CAM may weigh, and all it needs: the
head pools this map, so the gradient there is the head's own weight.
"""

from functools import partial
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torchvision.models import ViT_B_16_Weights

from medtl.models.backbone import BackboneEntry, SizeRule, Standardise
from medtl.models.published import torchvision_imagenet
from medtl.models.timm_network import TimmNetwork, rename_by_parts, timm_entry
from medtl.models.weights import KnownWeights

PATCH = 16

TORCHVISION_NAMES = {
    "class_token": "cls_token",
    "conv_proj.": "patch_embed.proj.",
    "encoder.pos_embedding": "pos_embed",
    "encoder.layers.encoder_layer_": "blocks.",
    "encoder.ln.": "norm.",
    ".ln_1.": ".norm1.",
    ".ln_2.": ".norm2.",
    ".self_attention.in_proj_weight": ".attn.qkv.weight",
    ".self_attention.in_proj_bias": ".attn.qkv.bias",
    ".self_attention.out_proj.": ".attn.proj.",
    ".mlp.linear_1.": ".mlp.fc1.",
    ".mlp.linear_2.": ".mlp.fc2.",
    ".mlp.0.": ".mlp.fc1.",
    ".mlp.3.": ".mlp.fc2.",
    "heads.head.": "head.",
}


class Embed(nn.Module):
    """Images -> patches' tokens with their positions, below the class token's row: (N, F, 1 + h, w)."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.patch_embed = net.patch_embed
        self.cls_token, self.pos_embed = net.cls_token, net.pos_embed
        self.pretrained_grid = net.patch_embed.grid_size

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x)  # (N, h, w, F)
        grid = patches.shape[1:3]
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), patches.flatten(1, 2)], dim=1)
        # Positions were trained on one grid: they are interpolated for other image sizes.
        positions = resample_abs_pos_embed(self.pos_embed, list(grid), list(self.pretrained_grid))
        return lay_out(tokens + positions, grid[1])


class TokenBlock(nn.Module):
    """Run a transformer block, which takes (N, tokens, F), on tokens that are laid out."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return lay_out(self.block(line_up(x)), x.shape[3])


class PatchNorm(nn.Module):
    """Normalise the patches' tokens, and drop the class token's row: the feature map (N, F, h, w)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x[:, :, 1:].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def lay_out(tokens: Tensor, width: int) -> Tensor:
    """Lay tokens (N, 1 + h * width, F) out as (N, F, 1 + h, width); the first one fills the first row."""
    row = tokens[:, :1].expand(-1, width, -1)
    return torch.cat([row, tokens[:, 1:]], dim=1).unflatten(1, (-1, width)).permute(0, 3, 1, 2)


def line_up(x: Tensor) -> Tensor:
    """Undo lay_out: (N, F, 1 + h, width) -> (N, 1 + h * width, F)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)[:, x.shape[3] - 1 :]


def token_blocks(net: Any) -> dict[str, nn.Module]:
    """Return the embedding, every block, and the final norm."""
    blocks = {f"block{number}": TokenBlock(block) for number, block in enumerate(net.blocks, 1)}
    return {"stem": Embed(net), **blocks, "final": PatchNorm(net.norm)}


def vit(
    name: str, timm_name: str, known: tuple[KnownWeights, ...] | None = None, **fields: Any
) -> BackboneEntry:
    """Return a ViT that takes any image of whole patches."""
    network = TimmNetwork(timm_name, token_blocks, options={"dynamic_img_size": True}, **fields)
    return timm_entry(name, "ViT", network, known, SizeRule(smallest=2 * PATCH, multiple=PATCH))


VIT_TINY = vit("vit_tiny", "vit_tiny_patch16_224.augreg_in21k_ft_in1k")
VIT_SMALL = vit("vit_small", "vit_small_patch16_224.augreg_in21k_ft_in1k")
VIT_BASE = vit("vit_base", "vit_base_patch16_224.augreg2_in21k_ft_in1k")

# torchvision trained the base network on images of other mean and std than timm's files, hence its own line.
PRESET: Any = ViT_B_16_Weights.IMAGENET1K_V1.transforms()
VIT_B_16 = vit(
    "vit_b_16",
    "vit_base_patch16_224",
    torchvision_imagenet("vit_b_16"),
    rename=partial(rename_by_parts, parts=TORCHVISION_NAMES),
    normalise=partial(Standardise, tuple(PRESET.mean), tuple(PRESET.std)),
)
ENTRIES = (VIT_TINY, VIT_SMALL, VIT_BASE, VIT_B_16)
