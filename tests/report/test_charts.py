import base64
import math
from xml.etree import ElementTree

import matplotlib

from medtl.report.charts import (
    DARK,
    LIGHT,
    Chart,
    decision_chart,
    freezing_chart,
    history_chart,
    reliability_chart,
    roc_chart,
)
from medtl.report.findings import StageRow

HISTORY = [
    {"stage": "head", "train_loss": 0.9, "val_loss": 0.8},
    {"stage": "head", "train_loss": 0.6, "val_loss": None},
    {"stage": "all", "train_loss": 0.4, "val_loss": math.nan},
]
LOSSES = {"train_loss": "training", "val_loss": "validation"}


def texts(chart: Chart | None) -> list[str]:
    assert chart is not None
    root = ElementTree.fromstring(base64.b64decode(chart.light.partition(",")[2], validate=True))
    return [node.text or "" for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_history_names_curves_and_stages():
    assert {"training", "validation", "head", "all", "epoch", "loss"} <= set(
        texts(history_chart(HISTORY, LOSSES, "loss"))
    )


def test_history_without_numbers_gives_no_chart():
    assert history_chart([], LOSSES, "loss") is None
    assert history_chart([{"stage": "head", "val_loss": None}], LOSSES, "loss") is None


def test_column_without_numbers_is_left_out():
    shown = texts(history_chart([{"train_loss": 0.5, "val_loss": math.nan}], LOSSES, "loss"))
    assert "validation" not in shown


def test_undefined_class_has_no_roc_curve():
    curve = {"fpr": [0, 0.2, 1], "tpr": [0, 0.7, 1]}
    undefined = {"fpr": [0, 1], "tpr": [math.nan, math.nan]}
    shown = texts(
        roc_chart({"glioma": curve, "none": curve, "rare": undefined, "absent": {"fpr": [], "tpr": []}})
    )
    assert {"glioma", "none"} <= set(shown) and not {"rare", "absent"} & set(shown)
    assert roc_chart({"rare": undefined}) is None


def test_class_names_are_never_read_as_mathematics_nor_hidden():
    curve = {"fpr": [0, 1], "tpr": [0, 1]}
    names = {"$\\frac{1}{0}$", "_hidden", "a < b & c"}
    assert names <= set(texts(roc_chart(dict.fromkeys(names, curve))))


def test_empty_bins_are_not_drawn():
    bins = [
        {"mean_probability": 0.1, "observed": 0.2, "count": 10},
        {"mean_probability": None, "observed": None, "count": 0},
    ]
    assert "observed frequency" in texts(reliability_chart(bins))
    assert reliability_chart(bins[1:]) is None


def test_same_numbers_give_the_same_bytes_and_leave_settings_alone():
    before = dict(matplotlib.rcParams)
    assert history_chart(HISTORY, LOSSES, "loss") == history_chart(HISTORY, LOSSES, "loss")
    assert dict(matplotlib.rcParams) == before


def test_dark_chart_has_the_inks_of_the_dark_theme():
    chart = history_chart(HISTORY, LOSSES, "loss")
    assert chart is not None
    light, dark = (base64.b64decode(uri.partition(",")[2]).decode() for uri in (chart.light, chart.dark))
    assert LIGHT.ink in light and LIGHT.ink not in dark and DARK.ink in dark


def test_frozen_groups_are_drawn_from_the_image_to_the_head():
    stages = (StageRow("head", "head", 2, 1.0, True), StageRow("top 1", "more", 3, 1.0, False, unfrozen=1))
    chart = freezing_chart(("stem", "$blocks$"), stages)
    assert {"stem", "$blocks$", "head", "top 1", "epoch"} <= set(texts(chart))
    filled = base64.b64decode(chart.light.partition(",")[2]).decode().count(LIGHT.series[0].lower())
    assert filled == 3  # the head twice, the top group once
    assert freezing_chart((), stages) is None and freezing_chart(("stem",), ()) is None


def test_net_benefit_of_one_class_is_beside_treating_all_and_of_several_by_name():
    curve = {"thresholds": [0.1, 0.5], "model": [0.3, 0.2], "low": [0.2, None], "high": [0.4, None]}
    curve["treat_all"] = [0.3, -0.2]
    assert {"model", "treat all"} <= set(texts(decision_chart({"lesion": curve})))
    shown = set(texts(decision_chart({"glioma": curve, "none": curve})))
    assert {"glioma", "none"} <= shown and "treat all" not in shown
    assert decision_chart({}) is None
