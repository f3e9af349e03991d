import numpy as np
import pytest

from medtl.errors import CODES, OutputError
from medtl.report.findings import check_finding


def test_sound_findings_pass(finding, card):
    check_finding(finding(), card())
    check_finding(finding(shape=(3, 8, 8), label=None), card())
    check_finding(finding(heatmap=None, target_class="", method="", spacing_mm=None), card())
    check_finding(finding(predicted=(), label=("normal", "opacity")), card(kind="multilabel"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image": np.zeros((2, 2, 2, 2), np.float32)}, "shape"),
        ({"image": np.zeros((0, 4), np.float32)}, "shape"),
        ({"image": np.full((20, 16), np.nan, np.float32)}, "not finite"),
        ({"window": (1.0, 1.0)}, "window"),
        ({"window": (0.0, np.nan)}, "window"),
        ({"heatmap": np.zeros((16, 20), np.float32)}, "heatmap has shape"),
        ({"heatmap": np.full((20, 16), np.nan, np.float32)}, "heatmap has values"),
        ({"spacing_mm": (1.0, 0.0)}, "not positive"),
        ({"spacing_mm": (1.0,)}, "1 values for 2 axes"),
        ({"probabilities": {"opacity": 0.8, "normal": 0.2}}, "classes of the model"),
        ({"probabilities": {"normal": np.nan, "opacity": 0.2}}, "not finite"),
        ({"probabilities": {"normal": 0.2, "opacity": 1.7}}, "outside"),
        ({"predicted": ("fracture",)}, "does not have"),
        ({"label": ("fracture",)}, "does not have"),
        ({"target_class": "fracture"}, "does not have"),
    ],
)
def test_finding_that_a_page_would_distort_is_named(finding, card, changes, reason):
    with pytest.raises(OutputError, match=reason) as caught:
        check_finding(finding("s7", **changes), card())
    assert caught.value.code == "finding-invalid" and caught.value.code in CODES
    assert caught.value.where == "s7"
