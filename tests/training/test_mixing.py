"""Batches are mixed with themselves by a drawn share, linearly or by boxes."""

import numpy as np
import pytest
import torch

from medtl.training.step import mix


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("shape", [(6, 5), (6, 3, 8, 8), (6, 2, 4, 8, 8)], ids=["pooled", "map", "volume"])
def test_mixup_is_linear_between_a_sample_and_its_partner(shape):
    x = torch.rand(shape)
    mixed = mix(x, 0.4, 0.0, generator())
    assert 0 < mixed.share < 1
    assert torch.allclose(mixed.x, mixed.share * x + (1 - mixed.share) * x[mixed.partners], atol=1e-6)
    assert sorted(mixed.partners.tolist()) == list(range(6))


@pytest.mark.parametrize(
    "shape", [(6, 3, 20, 30), (6, 1, 10, 16, 12), (6, 4, 24)], ids=["2D", "3D", "slices"]
)
def test_cutmix_pastes_one_box_whose_volume_is_what_the_share_lacks(shape):
    """Sample i is i everywhere, so that each pixel tells where it comes from."""
    x = torch.arange(6.0).view(6, *[1] * (len(shape) - 1)).expand(shape)
    shares = []
    for seed in range(20):
        mixed = mix(x, 0.0, 1.0, generator(seed))
        own = (mixed.x == x) | (mixed.partners == torch.arange(6)).view(6, *[1] * (len(shape) - 1))
        other = x[mixed.partners]
        assert ((mixed.x == x) | (mixed.x == other)).all()
        for sample in np.flatnonzero((mixed.partners != torch.arange(6)).numpy()):
            assert own[sample].float().mean().item() == pytest.approx(mixed.share, abs=1e-6)
            pasted = (~own[sample, 0]).nonzero()
            if len(pasted):
                sides = pasted.max(dim=0).values - pasted.min(dim=0).values + 1
                assert sides.prod() == len(pasted), "a box has no holes"
        shares.append(mixed.share)
    assert min(shares) < 0.5 < max(shares)


def test_an_axis_of_one_slice_is_cut_as_well_as_any():
    mixed = mix(torch.rand(4, 2, 1, 16, 16), 0.0, 1.0, generator(3))
    assert 0 <= mixed.share <= 1 and mixed.x.isfinite().all()


def test_cutmix_of_pooled_features_is_linear():
    x = torch.rand(6, 5)
    mixed = mix(x, 0.0, 1.0, generator())
    assert torch.allclose(mixed.x, mixed.share * x + (1 - mixed.share) * x[mixed.partners], atol=1e-6)


def test_where_both_are_on_each_comes_in_turn():
    x = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 16, 16)
    whole = [
        set(mix(x, 1.0, 1.0, generator(seed)).x.unique().tolist()) <= set(range(6)) for seed in range(40)
    ]
    assert 10 < sum(whole) < 30, "boxes keep whole numbers, mixup does not"


def test_the_input_is_not_altered_and_the_same_seed_mixes_alike():
    x = torch.rand(6, 3, 8, 8)
    before = x.clone()
    first, second = mix(x, 0.3, 0.7, generator(5)), mix(x, 0.3, 0.7, generator(5))
    assert torch.equal(x, before) and torch.equal(first.x, second.x) and first.share == second.share
    assert not torch.equal(first.x, mix(x, 0.3, 0.7, generator(6)).x)


def test_the_share_follows_the_beta_distribution():
    """Beta(a, a) has the variance 1 / (4 (2 a + 1))."""
    x = torch.rand(2, 1)
    for a in (0.2, 1.0, 5.0):
        shares = [mix(x, a, 0.0, generator(seed)).share for seed in range(2000)]
        assert np.mean(shares) == pytest.approx(0.5, abs=0.04)
        assert np.var(shares) == pytest.approx(1 / (4 * (2 * a + 1)), rel=0.12)
