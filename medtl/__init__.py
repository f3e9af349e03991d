"""medtl: medical transfer learning that people can trust.

Data flows down this map; imports run up it and never down.

    imaging      FILES -> PREPARED SAMPLES: formats, series, labels, splits, preprocessing
    learning     PREPARED SAMPLES -> CHECKPOINT: backbones, stages of unfreezing, features, fit
    prediction   CHECKPOINT + SAMPLES -> FINDINGS: scoring, evaluation, saliency
    reporting    FINDINGS -> PAGES, AND OBJECTS FOR THE PACS
    config       a recipe: the sections that lie beside the code they configure
    runs, demo   the job behind each command, and the tour of them all
    cli          FRONT DOOR: one file a command
"""

import os

__version__ = "0.1.0"

# Dependencies read these when they are imported. ONNX Runtime otherwise makes a device id and a queue of
# events for its maker in the user's cache. What the user has set stays.
for _name, _value in {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}.items():
    os.environ.setdefault(_name, _value)
