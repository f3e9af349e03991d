"""A search on disk: one that cannot be resumed is refused in one line that says what to do."""

import re
import shutil
from pathlib import Path

import pytest

from medtl.config import load_config
from medtl.errors import TrainingError
from medtl.workflows.search import Search
from medtl.workflows.search_space import load_space

WITNESS = Path(__file__).parents[1] / "witness/v0.1.0"


def test_a_search_of_medtl_0_1_0_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(WITNESS / "search", tmp_path / "search"))
    config = load_config(None, WITNESS / "run/config.yaml", ["backbone.name=efficientnet_lite0"])
    search = Search(folder, config, load_space(None, config), "auroc", seed=0)
    with pytest.raises(
        TrainingError, match=r"was started by medtl 0\.1\.0: finish it with that version"
    ) as caught:
        search.record()
    assert caught.value.code == "study-changed" and "\n" not in str(caught.value)


def test_a_recipe_of_an_earlier_version_lacks_later_options_and_means_the_same(tmp_path: Path) -> None:
    config = load_config("xray", None, ["backbone.name=efficientnet_lite0"])
    search = Search(tmp_path, config, load_space(None, config), "auroc", seed=0)
    search.record()
    stored = tmp_path / "config.yaml"
    later = [line for line in stored.read_text().splitlines() if not re.match("  (fill_nan|encoding):", line)]
    stored.write_text("\n".join(later) + "\n")
    search.record()
    stored.write_text(stored.read_text().replace("dropout:", "dropout: 0.3 #"))
    with pytest.raises(TrainingError, match="the recipe differs"):
        search.record()
