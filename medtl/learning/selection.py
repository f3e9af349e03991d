"""Which epoch is the best so far, and when a stage no longer gets anywhere."""

import math

from medtl.learning.checkpoint import Position
from medtl.learning.fit_config import Select


def is_better(position: Position, before: Position) -> bool:
    """Return whether the epoch that led from `before` to `position` is the best so far."""
    return position.best != before.best


def after_epoch(position: Position, loss: float, score: float, select: Select, min_delta: float) -> Position:
    """Return the position after an epoch of that validation loss and AUROC, NaN where it is undefined.

    The best epoch is better by however little; patience waits for one that is by more than min_delta.
    """
    reached = _rank(loss, score, select)
    best, mark = position.best, position.mark
    improved = best is None or reached > best
    counts = improved and (mark is None or not min_delta or reached[0] > mark[0] + min_delta)
    return position.model_copy(
        update={
            "epoch": position.epoch + 1,
            "done": 0,
            "loss_sum": 0.0,
            "seconds": 0.0,
            "best": reached if improved else best,
            "mark": reached if counts else mark,
            "waited": 0 if counts else position.waited + 1,
        }
    )


def _rank(loss: float, score: float, select: Select) -> tuple[float, float]:
    defined = -1.0 if math.isnan(score) else score
    return (defined, -loss) if select == "auroc" else (-loss, defined)
