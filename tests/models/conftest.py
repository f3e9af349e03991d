"""Backbones are trained in some of these tests: with the fits that the tests of training build."""

from tests.training.conftest import make_fit

__all__ = ["make_fit"]
