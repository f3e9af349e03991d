"""A graph gives what the classifier gives, at every place of a batch, and is written once."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medtl.errors import CheckpointError, OutputError
from medtl.inference import onnx_graph as graphs
from medtl.inference.export import example_images, import_onnx
from medtl.inference.onnx_graph import Pooled, keep_graph
from medtl.models.folding import fold_groups
from tests.inference.test_export import make_checkpoint

pytest.importorskip("onnxruntime", reason="needs the extra `export`")


@pytest.mark.parametrize("name", ["tiny3d", "mobilenet_v3_small", "slices_mobilenet_v3_small"])
def test_logits_and_features_are_the_classifiers_at_every_place_of_a_batch(name: str) -> None:
    checkpoint = make_checkpoint(name)
    graph, apart = keep_graph(checkpoint)
    assert 0 <= apart <= 1e-4
    images = example_images(checkpoint, 4)
    logits, features = graph.run(images)
    with torch.no_grad():
        expected = Pooled(checkpoint.classifier)(torch.from_numpy(images))
    assert logits == pytest.approx(expected[0].numpy(), abs=1e-4)
    assert features == pytest.approx(expected[1].numpy(), abs=1e-4)
    for turned in range(4):
        again = graph.run(np.roll(images, turned, axis=0))
        for before, after in zip((logits, features), again, strict=True):
            assert np.array_equal(np.roll(after, -turned, axis=0), before)


def test_a_folded_classifier_has_a_graph() -> None:
    checkpoint = make_checkpoint("tiny")
    folded = fold_groups(checkpoint.classifier, (1, *example_images(checkpoint, 1).shape[1:]))
    assert keep_graph(replace(checkpoint, classifier=folded))[1] <= 1e-4


def test_a_graph_is_written_once_and_again_where_it_was_altered(own_home: Path) -> None:
    checkpoint = make_checkpoint()
    first, _ = keep_graph(checkpoint)
    written = first.path.stat().st_mtime_ns
    assert first.path.parent == own_home / "graphs"
    assert keep_graph(checkpoint)[0] == first and first.path.stat().st_mtime_ns == written
    whole = first.path.read_bytes()
    for damaged in (b"", whole[:500] + bytes([whole[500] ^ 1]) + whole[501:]):
        first.path.write_bytes(damaged)
        graphs._session.cache_clear()
        assert keep_graph(checkpoint)[0] == first
        assert first.path.read_bytes() == whole


def test_other_weights_have_another_graph() -> None:
    first, second = make_checkpoint(), make_checkpoint()
    second.header.tensors["model"] = second.header.tensors["model"].model_copy(update={"sha256": "cd" * 32})
    assert keep_graph(first)[0].name != keep_graph(second)[0].name


def test_a_graph_that_differs_is_refused_by_name() -> None:
    checkpoint = make_checkpoint()
    keep_graph(checkpoint)
    with torch.no_grad():
        checkpoint.classifier.head.linear.bias.add_(0.01)  # type: ignore[union-attr]
    with pytest.raises(CheckpointError) as caught:
        keep_graph(checkpoint)
    assert caught.value.code == "export-differs" and "--engine torch" in caught.value.fix


def test_weights_that_are_no_numbers_are_refused() -> None:
    checkpoint = make_checkpoint()
    with torch.no_grad():
        checkpoint.classifier.head.linear.bias.fill_(float("nan"))  # type: ignore[union-attr]
    with pytest.raises(CheckpointError) as caught:
        keep_graph(checkpoint)
    assert caught.value.code == "export-differs"


def test_a_home_that_cannot_be_written_is_named(own_home: Path) -> None:
    (own_home / "graphs").write_text("a file")
    with pytest.raises(OutputError) as caught:
        keep_graph(make_checkpoint())
    assert caught.value.code == "output-unwritable"


def test_onnx_runtime_is_told_not_to_call_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    import_onnx("here")
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
