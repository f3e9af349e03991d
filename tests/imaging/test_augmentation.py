"""Random views: repeatable from their seed, in range, and none where none is asked for."""

import pytest
import torch

from medtl.imaging.augmentation import Augmentation, AugmentationConfig

NONE = AugmentationConfig(rotate_degrees=0, scale=0, translate=0, gamma=0)


@pytest.mark.parametrize("size", [(32, 32), (6, 32, 32)])
def test_a_view_is_repeatable_whatever_was_asked_before(size):
    augmentation = Augmentation(AugmentationConfig(flip=True, noise=0.02), size)
    pixels = torch.rand(1, *size)
    first = augmentation(pixels, 0, 3, "s1")
    augmentation(pixels, 0, 4, "s2")
    assert torch.equal(augmentation(pixels, 0, 3, "s1"), first)
    assert not torch.equal(augmentation(pixels, 0, 4, "s1"), first)
    assert type(first) is torch.Tensor  # a MetaTensor would slow down each operation on it
    assert first.shape == pixels.shape and first.min() >= 0 and first.max() <= 1


def test_no_augmentation_is_the_image_itself():
    pixels = torch.rand(1, 32, 32)
    assert torch.equal(Augmentation(NONE, (32, 32))(pixels, 0, 1), pixels)


def test_flip_mirrors_left_and_right_only():
    pixels = torch.rand(1, 8, 8)
    augmentation = Augmentation(NONE.model_copy(update={"flip": True}), (8, 8))
    views = [augmentation(pixels, 0, number) for number in range(20)]
    mirrored = sum(torch.equal(view, pixels.flip(-1)) for view in views)
    assert mirrored + sum(torch.equal(view, pixels) for view in views) == 20 and 1 <= mirrored <= 19


def test_slices_of_a_volume_keep_their_place():
    volume = torch.zeros(1, 5, 32, 32)
    volume[0, 2] = 1
    view = Augmentation(AugmentationConfig(), (5, 32, 32))(volume, 0, 1)
    assert view[0, [0, 1, 3, 4]].abs().max() < 1e-4 and view[0, 2].mean() > 0.5
