"""A strategy against imbalance is one class and one line: a recipe can name it and train with it."""

import pytest
import yaml
from torch import Tensor

from medtl.training.imbalance import IMBALANCE, ImbalanceStrategy
from tests.cli import jobs


class Halved(ImbalanceStrategy):
    """Cross-entropy of which each class counts half: all that a strategy's class has to bring."""

    seen = 0

    def __init__(self, task, targets, *, gamma: float = 1.0) -> None:
        super().__init__(task, targets)
        self.class_weights = self.class_weights / (2 * gamma)

    def loss_parts(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        type(self).seen += 1
        return super().loss_parts(logits, targets, smoothing)


@pytest.fixture(autouse=True)
def halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the toy by its one line."""
    monkeypatch.setitem(IMBALANCE, "halved", Halved)
    monkeypatch.setattr(Halved, "seen", 0)


@pytest.mark.parametrize("named", ["halved", "{name: halved, gamma: 2.0}"])
def test_a_strategy_of_one_line_trains(tmp_path, named):
    data = jobs.write_images(tmp_path / "data")
    result = jobs.train(data, tmp_path / "run", overrides=(f"fit.imbalance={named}",))
    assert result.exit_code == 0, result.output
    assert Halved.seen > 0
    recipe = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert recipe["fit"]["imbalance"] == yaml.safe_load(named)


def test_an_option_that_it_does_not_have_is_refused(tmp_path):
    data = jobs.write_images(tmp_path / "data")
    result = jobs.train(data, tmp_path / "run", overrides=("fit.imbalance={name: halved, tau: 1.0}",))
    assert jobs.fault(result) == "config-value"


def test_the_names_that_need_no_torch_are_strategies():
    from medtl.training.config import STRATEGIES, known_strategies

    assert set(STRATEGIES) == IMBALANCE.keys() - {"halved"}
    assert known_strategies("focal") == list(STRATEGIES) and "halved" in known_strategies("halved")
