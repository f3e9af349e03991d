"""PREPARED SAMPLES -> CHECKPOINT: backbones, stages of unfreezing, the loop over them, and what it leaves.

`load_checkpoint(RUN)` is imported when it is first asked for, so that importing medtl.training stays light.
"""

from typing import Any

__all__ = ["load_checkpoint"]


def __getattr__(name: str) -> Any:
    if name == "load_checkpoint":
        from medtl.training.checkpoint import load_checkpoint

        return load_checkpoint
    raise AttributeError(name)
