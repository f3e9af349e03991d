"""The ImageNet files that torchvision and timm publish, described by what the two packages state of them."""

from functools import cache
from typing import Any

import timm
import torchvision
from torchvision.models import get_model_weights, list_models

from medtl.models.weights import KnownWeights

# Where torchvision hands its files out.
TORCHVISION_FOLDER = get_model_weights("resnet18").DEFAULT.url.rsplit("/", 1)[0]
# Names of torchvision's releases of one architecture -> ours. Others carry other input statistics or terms.
RELEASES = {"IMAGENET1K_V1": "imagenet", "IMAGENET1K_V2": "imagenet-v2"}


def torchvision_imagenet(model: str) -> tuple[KnownWeights, ...]:
    """Describe torchvision's ImageNet files of a model; their names end in 8 digits of their SHA-256."""
    known = []
    for release in get_model_weights(model):
        if release.name in RELEASES:
            file = release.url.rsplit("/", 1)[1]
            digest = file.removesuffix(".pth").rsplit("-", 1)[1]
            name, source = RELEASES[release.name], "ImageNet-1k, torchvision"
            known.append(KnownWeights(name, file, digest, "BSD-3-Clause", source, origin="torchvision"))
    return tuple(known)


def timm_imagenet(timm_name: str) -> KnownWeights:
    """Describe timm's file of a tagged model; timm states no SHA-256.

    On the Hugging Face hub each model is a repository with a file model.safetensors; here that file is called
    by the repository: timm--xception41.tf_in1k.safetensors.
    """
    config: Any = timm.get_pretrained_cfg(timm_name)
    if config.hf_hub_id is None:  # published as a file before the hub was
        return KnownWeights(
            "imagenet", config.url.rsplit("/", 1)[1], "", config.license, f"timm, {timm_name}"
        )
    file = config.hf_hub_id.replace("/", "--") + ".safetensors"
    origin = f"hub:{config.hf_hub_id}/model.safetensors"
    return KnownWeights("imagenet", file, "", config.license, config.hf_hub_id, origin=origin)


@cache
def imagenet_top1() -> dict[str, float]:
    """Return the top-1 accuracy on ImageNet-1k in percent that torchvision states, by the file's name."""
    releases = [release for model in list_models(torchvision.models) for release in get_model_weights(model)]
    return {
        release.url.rsplit("/", 1)[1]: release.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        for release in releases
    }
