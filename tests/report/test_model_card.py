"""The model card as Markdown: every part in it, and nothing in it that acts."""

from collections.abc import Callable

import pytest

from medtl.report.model_card import card_text, plain


def test_every_part_of_the_card_is_there(card: Callable) -> None:
    text = card_text(card(), "Research use only.", ["padded to 32 x 32"])
    for part in ("# Chest radiographs", "**Research use only.**", "0.93 (95% interval 0.88 to 0.97)"):
        assert part in text
    for part in (
        "| Training studies | 120 |",
        "| Licence | Apache-2.0 |",
        "1. padded to",
        "- Trained on adults",
    ):
        assert part in text


def test_a_card_without_numbers_says_so(card: Callable) -> None:
    assert "None recorded." in card_text(card(metrics={}), "", [])


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "[a](javascript:1)", "a | b", "`x`\n# y"])
def test_names_stay_text(text: str, card: Callable) -> None:
    written = card_text(card(title=text, sections={text: {text: text}}), "", [])
    assert "<script" not in written and "[a](" not in written
    rows = [line for line in written.splitlines() if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") == 3 for line in rows)
    assert "\n" not in plain(text)
