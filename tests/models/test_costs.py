"""The cost of each step of the chain: counted without computing, and equal to what a real pass does."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from medtl.data.task import Task
from medtl.models.backbones import BACKBONES
from medtl.models.classifier import Classifier
from medtl.models.costs import step_costs

NETWORKS = {
    "tiny": (1, 1, 32, 32),
    "tiny3d": (1, 1, 16, 16, 16),
    "mobilenet_v3_small": (1, 1, 64, 64),
    "vit_tiny": (1, 1, 224, 224),
    "slices_mobilenet_v3_small": (1, 1, 3, 64, 64),
    "inflated_resnet18": (1, 1, 9, 32, 32),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    classifier = Classifier(BACKBONES[request.param](), Task("binary", ("normal", "lesion")))
    return classifier, torch.rand(NETWORKS[request.param])


def test_shapes_and_multiply_adds_are_those_of_a_real_pass_in_2d_3d_slices_and_transformers(network):
    classifier, image = network
    costs = step_costs(classifier, image.shape)
    assert [cost.name for cost in costs] == [*classifier.backbone.layer_groups, "pooling", "head"]
    x = image
    # The processor's own attention kernel is not among those that torch counts.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for step, cost in enumerate(costs):
            classifier.eval()
            with FlopCounterMode(display=False) as counter:
                last = step == classifier.head_step
                x = classifier.head(x) if last else classifier.run(x, step, step + 1)
            assert cost.output_shape == tuple(x.shape[1:]), cost.name
            assert cost.output_bytes == 4 * x.numel()
            assert cost.multiply_adds == counter.get_total_flops() // 2, cost.name


def test_counting_leaves_the_classifier_as_it_is_and_needs_a_shape_alone(network):
    classifier, image = network
    classifier.train()
    before = {name: (tensor.data_ptr(), tensor.device) for name, tensor in classifier.state_dict().items()}
    assert step_costs(classifier, list(image.shape)) == step_costs(classifier, tuple(image.shape))
    after = {name: (tensor.data_ptr(), tensor.device) for name, tensor in classifier.state_dict().items()}
    assert before == after and classifier.training


def test_a_convolution_costs_what_arithmetic_says(make_classifier):
    stem = step_costs(make_classifier(), (1, 1, 32, 32))[0]
    assert stem.multiply_adds == 4 * 1 * 3 * 3 * 16 * 16
    assert stem.output_shape == (4, 16, 16)
    assert stem.largest_bytes == 4 * 32 * 32, "the image, or its four maps of half the side"
