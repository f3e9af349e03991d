"""The catalogue: every backbone is described, and the committed page is what medtl writes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from medtl.models.backbones import BACKBONES
from medtl.models.catalogue import backbones_page, describe_backbones, known_backbones, read_table

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"


@pytest.fixture(autouse=True)
def published_backbones(tiny_backbones):
    """Leave the tests' own networks out."""
    own = {name: BACKBONES.pop(name) for name in ("tiny", "tiny3d")}
    yield
    BACKBONES.update(own)


def test_the_committed_page_is_the_one_that_medtl_writes():
    assert PAGE.read_text() == backbones_page(), "run: medtl backbones --markdown > docs/backbones.md"


def test_the_committed_table_is_what_the_code_gives():
    rows = [entry.describe() for entry in BACKBONES.values()]
    assert read_table() == rows, "run: python -m benchmarks.backbones --table"


def test_a_listing_needs_neither_torch_nor_timm():
    """In a process that has loaded no registry, whose table says the same as the registry."""
    code = (
        "import json, sys; from medtl.models.catalogue import describe_backbones, known_backbones;"
        "rows = describe_backbones();"
        "known = {name: [known.spatial_dims, known.input_size, known.sizes.problem((7, 7))]"
        " for name, known in known_backbones().items()};"
        "print(json.dumps([rows, known, sorted({'torch', 'timm', 'torchvision'} & sys.modules.keys())]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rows, known, loaded = json.loads(done.stdout)
    assert loaded == [] and rows == describe_backbones()
    for name, entry in known_backbones().items():
        assert known[name] == [entry.spatial_dims, list(entry.input_size), entry.sizes.problem((7, 7))]


def test_a_recipe_of_known_names_is_read_without_torch():
    code = (
        "import sys; from medtl.config import load_config;"
        "load_config('xray', None); load_config('mri', None);"
        "print(sorted({'torch', 'timm', 'torchvision'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_facts_are_those_of_the_packages():
    rows = {row["name"]: row for row in describe_backbones()}
    resnet, vit = rows["resnet50"], rows["vit_tiny"]
    assert [w["top1"] for w in resnet["weights"]] == [76.13, 80.858]
    assert resnet["mean"] == [0.485, 0.456, 0.406] and vit["mean"] == [0.5, 0.5, 0.5]
    assert vit["side_multiple"] == 16 and rows["inception_v3"]["smallest_side"] == 75
    assert rows["efficientnet_lite0"]["saliency_group"] == "blocks4"
    for row in rows.values():
        assert row["saliency_group"] in row["layer_groups"] and row["features"] > 0
