"""Thresholds are the best that the scores allow."""

import numpy as np
import pytest
from hypothesis import given, settings

from medtl.evaluation.thresholds import choose_threshold

from .test_metrics import weighted_samples


@settings(max_examples=100, deadline=None)
@given(weighted_samples)
def test_youden_threshold_is_best_of_all_thresholds(rows: list[tuple[int, bool, int]]) -> None:
    score, flag, _ = (np.array(column) for column in zip(*rows, strict=True))
    chosen = choose_threshold(score / 6, flag)

    def youden(threshold: float) -> float:
        answers = score / 6 >= threshold
        return answers[flag].mean() - answers[~flag].mean()

    assert youden(chosen) == pytest.approx(max(youden(threshold) for threshold in np.linspace(0, 1.1, 200)))


def test_youden_threshold_lies_between_scores_and_misses_the_fewest() -> None:
    assert choose_threshold([0.1, 0.2, 0.6, 0.9], [0, 0, 1, 1]) == pytest.approx(0.4)
    assert choose_threshold([0.2, 0.4, 0.6, 0.8], [0, 1, 0, 1]) == pytest.approx(0.3)
    assert np.isnan(choose_threshold([0.2, 0.4], [1, 1]))
    assert choose_threshold([0.1, 0.7, 0.9], [0, np.nan, 1]) == pytest.approx(0.5)
