"""Compare a run's heatmaps with masks of what should have been looked at."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from numpy.typing import NDArray

from medtl.imaging.manifest import Sample
from medtl.imaging.preprocessing import prepare_image
from medtl.imaging.series import read_series
from medtl.prediction.explanation import explain
from medtl.prediction.faithfulness import Localisation, localise
from medtl.prediction.scoring import predict
from medtl.runs.common import load_finished


def localise_run(
    run: Path,
    samples: Sequence[Sample],
    mask_of: Callable[[Sample], NDArray | None],
    method: str = "grad-cam",
) -> list[Localisation]:
    """Compare heatmaps with masks on the same grids: one row for each sample that has a mask and a map."""
    checkpoint = load_finished(run)
    rows = []
    for sample in samples:
        mask = mask_of(sample)
        if mask is None or not mask.any():
            continue
        image = read_series(sample.series)
        prepared = prepare_image(image, checkpoint.preprocessing)
        probabilities = predict(checkpoint, torch.from_numpy(prepared.pixels)[None])[0]
        heatmap = explain(checkpoint, image, prepared, tuple(probabilities), method).heatmap
        if heatmap.sum() > 0:
            rows.append(localise(heatmap, mask))
    return rows
