from pathlib import Path

import numpy as np
import pytest

from medtl.report.run_page import WrongAnswer, write_run_page
from tests.report.pages import check_page, read_pages
from tests.report.test_evaluation_page import make_evaluation

WRONG = WrongAnswer("s1", "opacity", "normal", 0.98, np.eye(20, dtype=np.float32), (1.0, 1.0))


def write(out: Path, card, history, wrong=(WRONG,)):
    whole = card(history=history, groups=("stem", "blocks"))
    path = write_run_page(out, whole, make_evaluation(), 83.0, wrong)
    page = read_pages(out)["index.html"]
    check_page(page, path)
    return page


def test_run_page_tells_training_validation_and_mistakes(tmp_path, card, history):
    words = " ".join(write(tmp_path, card, history).words.split())
    assert "3 epochs in 2 stages, 1 min 23 s" in words
    for part in (
        "Frozen and trained layer groups",
        "Loss by epoch",
        "Confusion matrix",
        "Curves",
        "How to cite",
    ):
        assert part in words, part
    assert "s1 predicted opacity (0.98) labelled normal" in words


def test_mistakes_have_their_pictures_and_old_ones_go(tmp_path, card, history):
    page = write(tmp_path, card, history)
    (picture,) = (tmp_path / "images").iterdir()
    assert f"images/{picture.name}" in page.values("img", "src")
    unseen = WrongAnswer("s2", "opacity", "normal", 0.9)
    page = write(tmp_path, card, history, (unseen,))
    assert not any((tmp_path / "images").iterdir())
    assert "Add --data to show the images" in page.words


@pytest.mark.parametrize(
    ("wrong", "words"), [((), "classified correctly"), (None, "no saved validation predictions")]
)
def test_no_mistakes_and_unknown_mistakes_are_told_apart(tmp_path, card, history, wrong, words):
    assert words in write(tmp_path, card, history, wrong).words


def test_bare_run_is_still_a_page(tmp_path, card):
    write_run_page(tmp_path, card(stages=(), metrics={}), {}, None, None)
    page = read_pages(tmp_path)["index.html"]
    check_page(page, tmp_path / "index.html")
    assert "No training history" in page.words and "None" not in page.words


def test_markup_in_names_stays_text(tmp_path, card, history):
    def tags(folder: str, evil: str) -> list:
        wrong = WrongAnswer(f"id{evil}", f"a{evil}", f"b{evil}", 0.9)
        return write(tmp_path / folder, card, history, (wrong,)).tags

    assert tags("marked", "</script><script>alert(1)</script>") == tags("plain", "")
