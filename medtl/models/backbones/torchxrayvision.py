"""TorchXRayVision's networks (Cohen 2022): 2D backbones trained on chest radiographs at one channel.

The ResNet-50 is published as a state dict. The DenseNet-121s are whole pickled modules, which are refused;
`medtl weights import FILE --unsafe-module` saves only their tensors.
"""

from dataclasses import dataclass, replace
from functools import partial

from medtl.errors import WeightsError
from medtl.models.backbone import Backbone, BackboneEntry, Standardise, WeightsRequest
from medtl.models.weights import KnownWeights, LoadedWeights, StateDict

# The networks were trained on (2 x / max - 1) * 1024.
MEAN, STD = (0.5,), (1 / 2048,)

# Findings that each published network predicts; outputs with an empty name were never trained.
OUTPUTS = 18
HEADS = ("fc.weight", "classifier.weight")
# A buffer of the whole modules that is no part of the network.
OPERATING_POINTS = "op_threshs"

LICENCE = "Apache-2.0 for the code; the data sets have terms of their own"

# What each published DenseNet-121 was trained on -> the first words of its file's name.
DENSENET121_FILES = {
    "": "nih-pc-chex-mimic_ch-google-openi-kaggle-densenet121",
    "-nih": "nih-densenet121",
    "-pc": "pc-densenet121",
    "-chex": "chex-densenet121",
    "-mimic_ch": "mimic_ch-densenet121",
    "-mimic_nb": "mimic_nb-densenet121",
    "-kaggle": "kaggle-densenet121",
}


@dataclass(frozen=True)
class PublishedNetwork(WeightsRequest):
    """A request that takes the network alone, and refuses a head of other findings."""

    def read(self) -> tuple[StateDict, LoadedWeights] | None:
        """Return the state dict without operating points. Raises WeightsError weights-mismatch."""
        read = super().read()
        if read is None:
            return None
        state, loaded = read
        for head in HEADS:
            outputs = len(state[head]) if head in state and state[head].ndim else OUTPUTS
            if outputs != OUTPUTS:
                reason = f"predicts {outputs} findings, the published network {OUTPUTS}"
                fix = f"give weights of {self.backbone}"
                raise WeightsError("weights-mismatch", reason, where=loaded.path, fix=fix)
        return {key: value for key, value in state.items() if key != OPERATING_POINTS}, loaded


def build_torchxrayvision(planar: BackboneEntry, in_channels: int, request: WeightsRequest) -> Backbone:
    """Build the planar backbone with TorchXRayVision's weights and input range."""
    published = PublishedNetwork(request.backbone, request.weights, request.known)
    backbone = planar.build(in_channels, published)
    backbone.normalise = Standardise(MEAN, STD, in_channels)
    return backbone


def torchxrayvision_resnet50(planar: BackboneEntry) -> BackboneEntry:
    """Return the entry of the ResNet-50, over a planar ResNet-50."""
    file = "pc-nih-rsna-siim-vin-resnet50-test512-e400-state.pt"
    source = "TorchXRayVision, resnet50-res512-all"
    known = KnownWeights("torchxrayvision", file, "", LICENCE, source, origin="torchxrayvision")
    return _entry(planar, (512, 512), (known,))


def torchxrayvision_densenet121(planar: BackboneEntry) -> BackboneEntry:
    """Return the entry of the DenseNet-121s, over a planar one; users supply and convert their files."""
    return _entry(
        planar,
        (224, 224),
        tuple(
            KnownWeights(
                f"torchxrayvision{suffix}",
                f"{words}-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt",
                "",
                LICENCE,
                f"TorchXRayVision, densenet121-res224{suffix or '-all'}: a whole module, to be converted",
            )
            for suffix, words in DENSENET121_FILES.items()
        ),
    )


def _entry(
    planar: BackboneEntry, input_size: tuple[int, int], known: tuple[KnownWeights, ...]
) -> BackboneEntry:
    return replace(
        planar,
        name=f"torchxrayvision_{planar.name}",
        family=f"{planar.family}, TorchXRayVision",
        input_size=input_size,
        known_weights=known,
        build=partial(build_torchxrayvision, planar),
    )
