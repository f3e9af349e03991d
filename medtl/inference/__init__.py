"""CHECKPOINT + SAMPLES -> FINDINGS: scores, evaluation with intervals, and maps of what influenced a score.

`score_images(checkpoint, images)` is imported when it is first asked for.
"""

from typing import Any

__all__ = ["score_images"]


def __getattr__(name: str) -> Any:
    if name == "score_images":
        from medtl.inference.predictor import score_images

        return score_images
    raise AttributeError(name)
