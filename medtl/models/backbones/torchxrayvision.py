"""TorchXRayVision's networks (Cohen 2022): 2D backbones trained on chest radiographs at one channel.

The ResNet-50 is published as a state dict. The DenseNet-121s are whole pickled modules, which are refused;
`medtl weights import FILE --unsafe-module` saves only their tensors.
"""

from medtl.models.backbone import BackboneEntry
from medtl.models.derived import retrained
from medtl.models.weights import KnownWeights, StateDict

# The networks were trained on (2 x / max - 1) * 1024.
STATISTICS = (0.5,), (1 / 2048,)

# Findings that each published network predicts; outputs with an empty name were never trained.
OUTPUTS = 18
HEADS = ("fc.weight", "classifier.weight")
# A buffer of the whole modules that is no part of the network.
OPERATING_POINTS = "op_threshs"

LICENCE = "Apache-2.0 for the code; the data sets have terms of their own"

PUBLISHER = "TorchXRayVision"

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


def without_head(state: StateDict) -> StateDict:
    """Return the tensors without operating points. Raises ValueError where the head has other findings."""
    for head in HEADS:
        outputs = len(state[head]) if head in state and state[head].ndim else OUTPUTS
        if outputs != OUTPUTS:
            raise ValueError(f"predicts {outputs} findings, the published network {OUTPUTS}")
    return {key: value for key, value in state.items() if key != OPERATING_POINTS}


def torchxrayvision_resnet50(planar: BackboneEntry) -> BackboneEntry:
    """Return the entry of the ResNet-50, over a planar ResNet-50."""
    file = "pc-nih-rsna-siim-vin-resnet50-test512-e400-state.pt"
    source = "TorchXRayVision, resnet50-res512-all"
    known = KnownWeights("torchxrayvision", file, "", LICENCE, source, origin="torchxrayvision")
    return retrained(planar, PUBLISHER, (known,), without_head, STATISTICS, input_size=(512, 512))


def torchxrayvision_densenet121(planar: BackboneEntry) -> BackboneEntry:
    """Return the entry of the DenseNet-121s, over a planar one; users supply and convert their files."""
    known = tuple(
        KnownWeights(
            f"torchxrayvision{suffix}",
            f"{words}-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt",
            "",
            LICENCE,
            f"TorchXRayVision, densenet121-res224{suffix or '-all'}: a whole module, to be converted",
        )
        for suffix, words in DENSENET121_FILES.items()
    )
    return retrained(planar, PUBLISHER, known, without_head, STATISTICS, input_size=(224, 224))
