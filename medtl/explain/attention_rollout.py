"""Attention rollout (Abnar and Zuidema 2020): where a vision transformer's attention comes from."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medtl.errors import ConfigError
from medtl.explain.common import enlarge, evaluating, finish
from medtl.models.backbones.vit import TokenBlock, line_up
from medtl.models.classifier import Classifier, SliceAttentionHead, place_images
from medtl.models.slices import PerSlice


def attention_rollout(classifier: Classifier, image: Tensor, target: int) -> NDArray[np.float32]:
    """Return how much of each patch reaches the pooled features, on the image's grid (*size), 1 at most.

    The minimum is subtracted, since residual connections let some of every patch through. The map follows
    attention, not the score: it is the same for every class, and `target` is not used. It starts from what
    the head pools, the mean of the patches, not from the class token. Each slice of a slice encoder is rolled
    out by itself and weighed as the head weighs it. Raises ConfigError saliency-method for networks
    without attention over all patches: windows, as in Swin, do not chain into one matrix.
    """
    if not has_global_attention(classifier):
        reason = f"{classifier.backbone.name} has no attention over all of its patches"
        raise ConfigError("saliency-method", reason, where="attention-rollout", fix="choose another method")
    with torch.inference_mode(), evaluating(classifier):
        features, rollout = _roll_out(classifier, place_images(image, classifier))
        reached = rollout[:, 1:, 1:].mean(dim=1)  # (slices, patches)
        weighed = reached * _slice_weights(classifier, features)
        grid = weighed.view(1, 1, *features.shape[2:])
        return finish(enlarge(grid - grid.min(), image.shape[2:]))


def has_global_attention(classifier: Classifier) -> bool:
    """Say whether the network has blocks in which every token attends to every other."""
    return any(isinstance(_planar(group), TokenBlock) for group in classifier.backbone.groups.values())


def attention_of(block: Any, tokens: Tensor) -> Tensor:
    """Return the attention (N, heads, to, from) of a timm block on its input tokens (N, T, F).

    timm's fused attention does not return it, so it is computed again from the block's own weights.
    """
    attn = block.attn
    query, key, _ = attn.qkv(block.norm1(tokens)).unflatten(2, (3, attn.num_heads, -1)).unbind(2)
    query, key = attn.q_norm(query.transpose(1, 2)), attn.k_norm(key.transpose(1, 2))
    scores: Tensor = (query * attn.scale) @ key.transpose(2, 3)
    return scores.softmax(dim=3)


def _roll_out(classifier: Classifier, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the feature map of images x, and the product (slices, to, from) of all blocks' attention.

    The mean over heads, half of it the residual connection's identity (the paper's equation 1).
    """
    x, rollout = classifier.backbone.normalise(x), None
    for group in classifier.backbone.groups.values():
        block = _planar(group)
        if isinstance(block, TokenBlock):
            # A slice encoder's input is (1, F, slices, *grid): attention is within each slice.
            slices = x.transpose(1, 2).flatten(0, 1) if isinstance(group, PerSlice) else x
            attention = attention_of(block.block, line_up(slices)).mean(dim=1)
            mixed = (attention + torch.eye(attention.shape[1]).to(attention)) / 2
            rollout = mixed if rollout is None else mixed @ rollout
        x = group(x)
    assert rollout is not None
    return x, rollout


def _planar(group: nn.Module) -> nn.Module:
    return group.module if isinstance(group, PerSlice) else group


def _slice_weights(classifier: Classifier, features: Tensor) -> Tensor | float:
    """Return how the head weighs the slices of a feature map, (slices, 1): half by attention, half alike."""
    if not isinstance(classifier.head, SliceAttentionHead):
        return 1.0
    attention = classifier.head.attention(classifier.pool(features))  # (1, 1, D)
    return (attention + 1 / attention.shape[2])[0].T
