import math

import pytest

from medtl.report.formatting import (
    duration_text,
    interval_text,
    metric_name,
    number_text,
    probability_text,
    set_text,
)


def test_interval_is_in_words():
    assert interval_text((0.931, 0.884, 0.967)) == "0.93 (95% interval 0.88 to 0.97)"
    assert interval_text((0.931, 0.884, 0.967), 0.9) == "0.93 (90% interval 0.88 to 0.97)"


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf])
def test_what_is_not_a_number_is_undefined(nothing):
    assert number_text(nothing) == "undefined"
    assert interval_text((nothing, 0.1, 0.2)) == "undefined"
    assert interval_text((0.5, nothing, 0.9)) == "0.50 (interval undefined)"


def test_probability_is_never_rounded_to_certainty():
    assert [probability_text(value) for value in (0.0, 0.004, 0.006, 0.5, 0.994, 0.996, 1.0)] == [
        "< 0.01",
        "< 0.01",
        "0.01",
        "0.50",
        "0.99",
        "> 0.99",
        "> 0.99",
    ]


def test_durations_read_like_durations():
    seconds = (0.26, 41.2, 59.7, 130, 4210, math.nan)
    assert [duration_text(value) for value in seconds] == [
        "0.3 s",
        "41 s",
        "1 min 0 s",
        "2 min 10 s",
        "1 h 10 min",
        "undefined",
    ]


def test_unknown_metric_keeps_a_readable_name():
    assert metric_name("top_2_accuracy").name == "top 2 accuracy"


@pytest.mark.parametrize(
    ("held", "kind", "words"),
    [
        (None, "binary", ""),
        (("normal",), "binary", "normal"),
        (("a", "b", "c"), "multiclass", "a or b or c"),
        (("mass", "fluid?"), "multilabel", "mass, perhaps fluid"),
        ((), "multilabel", "none of the findings"),
    ],
)
def test_prediction_set_is_in_words(held, kind, words):
    assert set_text(held, kind) == words
