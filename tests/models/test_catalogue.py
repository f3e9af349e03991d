"""The catalogue: every backbone is described, and the committed page is what medtl writes."""

from pathlib import Path

import pytest

from medtl.models.backbones import BACKBONES
from medtl.models.catalogue import backbones_page, describe_backbones

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"


@pytest.fixture(autouse=True)
def published_backbones(tiny_backbones):
    """Leave the tests' own networks out."""
    own = {name: BACKBONES.pop(name) for name in ("tiny", "tiny3d")}
    yield
    BACKBONES.update(own)


def test_the_committed_page_is_the_one_that_medtl_writes():
    assert PAGE.read_text() == backbones_page(), "run: medtl backbones --markdown > docs/backbones.md"


def test_facts_are_those_of_the_packages():
    rows = {row["name"]: row for row in describe_backbones()}
    resnet, vit = rows["resnet50"], rows["vit_tiny"]
    assert [w["top1"] for w in resnet["weights"]] == [76.13, 80.858]
    assert resnet["mean"] == [0.485, 0.456, 0.406] and vit["mean"] == [0.5, 0.5, 0.5]
    assert vit["side_multiple"] == 16 and rows["inception_v3"]["smallest_side"] == 75
    assert rows["efficientnet_lite0"]["saliency_group"] == "blocks4"
    for row in rows.values():
        assert row["saliency_group"] in row["layer_groups"] and row["features"] > 0
