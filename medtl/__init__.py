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

__version__ = "0.1.0"
