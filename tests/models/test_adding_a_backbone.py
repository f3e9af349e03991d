"""A backbone is one file and one line: registered, it trains, scores, exports its facts and is listed."""

import json

import pytest
import torch
from torch import nn

from medtl.models.backbone import Backbone, BackboneEntry, Standardise, WeightsRequest
from medtl.models.backbones import BACKBONES
from medtl.training.checkpoint import load_finished
from tests.cli import jobs


def build_toy(in_channels: int, request: WeightsRequest) -> Backbone:
    """Build two groups: all that a backbone's file has to bring."""
    return Backbone(
        request.backbone,
        {
            "stem": nn.Sequential(nn.Conv2d(in_channels, 6, 3, stride=4), nn.ReLU()),
            "top": nn.Sequential(nn.Conv2d(6, 12, 3, stride=2), nn.BatchNorm2d(12), nn.ReLU()),
        },
        spatial_dims=2,
        in_channels=in_channels,
        num_features=12,
        normalise=Standardise((0.5,), (0.25,), in_channels),
        weights=None,
    )


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> BackboneEntry:
    """Register the toy by its one line."""
    entry = BackboneEntry("toy", "Toy", 2, (32, 32), (), build_toy)
    monkeypatch.setitem(BACKBONES, "toy", entry)
    return entry


def test_a_backbone_of_one_line_trains_scores_and_is_explained(toy, tmp_path):
    data = jobs.write_images(tmp_path / "data")
    run, out = tmp_path / "run", tmp_path / "scores"
    assert jobs.train(data, run, overrides=("backbone.name=toy",)).exit_code == 0
    checkpoint = load_finished(run)
    assert checkpoint.header.backbone == "toy"
    assert [stage.groups for stage in checkpoint.header.schedule] == [0, 2]
    assert jobs.medtl("score", run, data, "--out", out).exit_code == 0
    assert len(jobs.read_rows(out / "scores.csv")) == 24
    result = jobs.medtl("explain", run, data, "--out", tmp_path / "maps", "--method", "grad-cam")
    assert result.exit_code == 0, result.output


def test_a_backbone_of_one_line_is_listed_beside_those_of_the_table(toy):
    rows = {row["name"]: row for row in json.loads(jobs.medtl("backbones", "--json").stdout)}
    assert rows["toy"]["layer_groups"] == ["stem", "top"] and rows["toy"]["features"] == 12
    assert rows["toy"]["images_per_second"] is None and "resnet18" in rows


def test_its_chain_is_the_contract(toy):
    backbone = toy().eval()
    x = torch.rand(2, 1, 32, 32)
    for split in range(3):
        assert torch.equal(
            backbone.between(split, len(backbone.groups), backbone.between(0, split, x)), backbone(x)
        )
