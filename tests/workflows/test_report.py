"""Which validation samples were answered wrongly, and how sure the model was of it."""

import numpy as np
import pytest

from medtl.data.task import Task
from medtl.evaluation.predictions import Predictions
from medtl.workflows.report import find_wrong


def predictions(probabilities: list[list[float]], targets: list) -> Predictions:
    """Return predictions of validation samples s0, s1 and so on."""
    names = tuple(f"s{row}" for row in range(len(targets)))
    return Predictions(names, names, ("val",) * len(names), np.array(targets), np.array(probabilities))


def test_surest_mistakes_come_first() -> None:
    task = Task("multiclass", ("a", "b", "c"))
    rows = [[0.5, 0.4, 0.1], [0.9, 0.05, 0.05], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]]
    wrong = find_wrong(predictions(rows, [1, 2, 1, 0]), task, ())
    assert [(case.sample_id, case.predicted, case.label) for case in wrong] == [
        ("s1", "a", "c"),
        ("s3", "c", "a"),
        ("s0", "a", "b"),
    ]
    assert [case.probability for case in wrong] == [0.9, 0.8, 0.5]


def test_threshold_decides_what_was_said() -> None:
    task = Task("binary", ("no", "yes"))
    found = predictions([[0.6, 0.4], [0.4, 0.6]], [1, 1])
    assert [case.sample_id for case in find_wrong(found, task, (0.5,))] == ["s0"]
    assert [case.sample_id for case in find_wrong(found, task, (0.7,))] == ["s0", "s1"]
    assert not find_wrong(found, task, (0.3,))


def test_worst_finding_stands_for_a_sample_and_unlabelled_ones_count_for_nothing() -> None:
    task = Task("multilabel", ("mass", "fluid"))
    rows = [[0.9, 0.8], [0.1, 0.9], [0.9, 0.9]]
    found = predictions(rows, [[0.0, 0.0], [1.0, np.nan], [np.nan, 1.0]])
    wrong = find_wrong(found, task, (0.5, 0.5))
    assert [(case.sample_id, case.predicted, case.label) for case in wrong] == [
        ("s0", "mass", "no mass"),
        ("s1", "no mass", "mass"),
    ]
    assert [case.probability for case in wrong] == pytest.approx([0.9, 0.9])
