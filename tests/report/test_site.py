import gc
import json
import logging
import math
import re
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medtl.errors import OutputError
from medtl.report.findings import MapCheck, ModelCard, Refusal, StageRow
from medtl.report.site import WrittenReport, page_name, write_report
from tests.report.pages import Page, check_page, read_pages

REFUSAL = Refusal("s9", "file-empty", "the file has no bytes", "export it again")
PAYLOADS = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "' autofocus onfocus=alert(1) x='",
    "</style></script></title><svg/onload=alert(1)>",
    "<!-- neighbours -->",
    "{{ 7 * 7 }}{% raw %}",
    "</td></tr></table><a href=javascript:alert(1)>x</a>",
)


def listed(index: Page) -> list[str]:
    """Return the ids of the studies in the order of the list."""
    return [row["data-value"] for row in index.attributes if row.get("class") == "study"]


def test_each_page_is_self_contained_cautioned_and_allowed_by_its_policy(tmp_path, finding, card, history):
    findings = [finding("a"), finding("b", shape=(3, 8, 9)), finding("c", heatmap=None, spacing_mm=None)]
    write_report(tmp_path, findings, [REFUSAL], card(history=history))
    pages = read_pages(tmp_path)
    assert set(pages) == {"index.html", "model.html", "studies/a.html", "studies/b.html", "studies/c.html"}
    for name, page in pages.items():
        check_page(page, tmp_path / name)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_markup_in_any_string_stays_text(tmp_path, finding, card, history, payload):
    def write(folder: Path, evil: str) -> list:
        names = (f"normal{evil}", f"opacity{evil}")
        study = finding(
            f"id{evil}",
            method=f"CAM{evil}",
            target_class=names[1],
            probabilities=dict(zip(names, (0.2, 0.8), strict=True)),
            predicted=(names[1],),
            label=(names[0],),
            facts={f"Modality{evil}": f"CR{evil}"},
            notes=(f"note{evil}",),
        )
        texts = card(
            title=f"title{evil}",
            classes=names,
            sections={f"Data{evil}": {f"label{evil}": f"text{evil}"}},
            metrics={"auroc": (0.9, 0.8, 1.0), f"metric{evil}": (0.5, 0.4, 0.6)},
            stages=(StageRow(f"head{evil}", f"head{evil}", 1, 1.0, True),),
            limits=(f"limit{evil}",),
            history=[row | {"stage": f"{row['stage']}{evil}"} for row in history],
            citation=f"cite{evil}",
        )
        refusal = Refusal(f"r{evil}", f"code{evil}", f"reason{evil}", f"fix{evil}")
        write_report(folder, [study], [refusal], texts)
        return list(read_pages(folder).values())

    plain, marked = write(tmp_path / "plain", ""), write(tmp_path / "marked", payload)
    assert [page.tags for page in marked] == [page.tags for page in plain]
    assert all(payload in page.words for page in marked)


@pytest.mark.parametrize(
    "sample_id", ["../../out", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "a\0b", "ä", "x" * 200, "\udcff"]
)
def test_no_sample_id_leaves_the_folder(tmp_path, finding, card, sample_id):
    write_report(tmp_path / "out", [finding(sample_id)], [], card())
    files = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    studies = [name for name in files if name.startswith("out/studies/")]
    pictures = [name for name in files if name.startswith("out/images/")]
    assert sorted(files) == sorted(["out/index.html", "out/model.html", *studies, *pictures])
    assert len(studies) == 1 and len(pictures) == 2
    check_page(read_pages(tmp_path / "out")["index.html"], tmp_path / "out/index.html")


def test_ids_that_differ_in_case_only_get_two_files(tmp_path, finding, card):
    assert page_name("a") == "a.html" and page_name("A") not in ("A.html", "a.html")
    write_report(tmp_path, [finding("a"), finding("A")], [], card())
    names = [path.name.casefold() for path in (tmp_path / "studies").iterdir()]
    assert len(names) == len(set(names)) == 2


def test_findings_are_consumed_once_and_not_kept(tmp_path, finding, card):
    alive: list[weakref.ref] = []

    def stream():
        for place in range(4):
            gc.collect()
            # The one before may still be bound to the loop's variable, and no other.
            assert sum(reference() is not None for reference in alive) <= 1
            study = finding(f"s{place}")
            alive.append(weakref.ref(study))
            yield study
            del study

    write_report(tmp_path, stream(), [], card())
    assert len(alive) == 4 and len(list((tmp_path / "studies").iterdir())) == 4


def test_undefined_metrics_say_so(tmp_path, finding, card):
    nothing = (math.nan, math.nan, math.nan)
    write_report(tmp_path, [finding()], [], card(metrics={"auroc": nothing, "accuracy": (0.8, None, None)}))
    for name, page in read_pages(tmp_path).items():
        assert "undefined" in page.words, name
        assert not re.search(r"\b(nan|None)\b", page.words), name
    assert "0.80 (interval undefined)" in read_pages(tmp_path)["index.html"].words.replace("\n", "")


def test_key_number_stands_in_words(tmp_path, finding, card):
    write_report(tmp_path, [finding()], [REFUSAL], card())
    words = read_pages(tmp_path)["index.html"].words
    assert "0.93 (95% interval 0.88 to 0.97)" in words
    assert "1 scored" in words and "1 refused" in words
    assert all(text in words for text in (REFUSAL.code, REFUSAL.reason, REFUSAL.fix))


def test_worst_comes_first_and_pages_follow_that_order(tmp_path, finding, card):
    def scored(sample_id: str, positive: float, **changes):
        values = {"normal": 1 - positive, "opacity": positive}
        return finding(sample_id, probabilities=values, **{"label": ("opacity",), **changes})

    studies = [
        scored("sure", 0.97),
        scored("close", 0.55),
        scored("undecided", 0.6, prediction_set=("normal", "opacity")),
        scored("odd", 0.9, warning="it is nearly constant"),
        scored("screened", 0.9, ood="far from the training images", prediction_set=("normal", "opacity")),
        scored("wrong", 0.6, label=("normal",)),
        scored("wrong-and-sure", 0.99, label=("normal",)),
    ]
    write_report(tmp_path, studies, [], card())
    pages = read_pages(tmp_path)
    order = ["wrong-and-sure", "wrong", "screened", "odd", "undecided", "close", "sure"]
    assert listed(pages["index.html"]) == order
    for place in (1, 3):
        links = pages[f"studies/{order[place]}.html"].values("a", "href")
        assert {f"../studies/{order[place + step]}.html" for step in (-1, 1)} <= set(links)
    assert "Study 2 of 7" in pages["studies/wrong.html"].words
    reasons = pages["index.html"].values("tr", "data-reasons")
    assert reasons[:3] == ["differs", "differs", "ood undecided"] and reasons[-1] == "none"


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_several_classes_are_listed_and_can_be_filtered(tmp_path, finding, card, kind):
    classes = ("none", "glioma", "pituitary")
    study = finding(
        target_class="glioma",
        probabilities=dict(zip(classes, (0.2, 0.7, 0.6), strict=True)),
        predicted=("glioma", "pituitary") if kind == "multilabel" else ("glioma",),
        label=("pituitary", "glioma") if kind == "multilabel" else ("glioma",),
    )
    write_report(tmp_path, [study], [], card(kind=kind, classes=classes))
    row = next(found for found in read_pages(tmp_path)["index.html"].attributes if "data-classes" in found)
    assert row["data-classes"].split() == (["1", "2"] if kind == "multilabel" else ["1"])
    assert row["data-label"] == "agrees"
    assert float(row["data-margin"]) == pytest.approx(0.2 if kind == "multilabel" else 0.1)


def test_volume_starts_at_the_peak_of_its_map(tmp_path, finding, card):
    heatmap = np.zeros((9, 8, 8), np.float32)
    heatmap[6, 4, 4] = 1.0
    write_report(tmp_path, [finding("v", shape=(9, 8, 8), heatmap=heatmap)], [], card())
    page = read_pages(tmp_path)["studies/v.html"]
    assert json.loads(page.blocks["data"])["start"] == [6, 4, 4]
    assert page.values("div", "data-axis") == ["0", "1", "2"]


def test_study_says_what_its_map_means(tmp_path, finding, card):
    write_report(tmp_path, [finding("with"), finding("without", heatmap=None)], [], card())
    pages = read_pages(tmp_path)
    assert "not where disease is" in pages["studies/with.html"].words
    assert "There is no saliency map" in pages["studies/without.html"].words
    assert "heat" not in pages["studies/without.html"].values("canvas", "class")


def test_unshowable_and_repeated_findings_are_listed_not_shown(tmp_path, finding, card, caplog):
    broken = finding("broken", heatmap=np.full((20, 16), np.nan, np.float32))
    with caplog.at_level(logging.WARNING):
        written = write_report(
            tmp_path, [finding("a"), broken, finding("a", predicted=("normal",))], [REFUSAL], card()
        )
    assert (written.studies, written.refused) == (1, 3)
    words = read_pages(tmp_path)["index.html"].words
    assert "finding-invalid" in words and "finding-repeated" in words and "3 refused" in words
    assert [path.name for path in (tmp_path / "studies").iterdir()] == ["a.html"]
    assert len(caplog.records) == 2


def test_refusals_met_on_the_way_are_listed(tmp_path, finding, card):
    refusals: list[Refusal] = []

    def stream():
        yield finding("a")
        refusals.append(REFUSAL)

    write_report(tmp_path, stream(), refusals, card())
    words = read_pages(tmp_path)["index.html"].words
    assert REFUSAL.reason in words and "1 refused" in words


def test_study_with_none_of_several_findings_says_so(tmp_path, finding, card):
    write_report(tmp_path, [finding("a", predicted=(), label=())], [], card(kind="multilabel"))
    pages = read_pages(tmp_path)
    assert "none of the classes" in pages["studies/a.html"].words
    assert [row["data-label"] for row in pages["index.html"].attributes if "data-label" in row] == ["agrees"]


def test_report_without_studies_is_still_a_report(tmp_path, card):
    bare = ModelCard("Bare", "binary", ("a", "b"), {}, {})
    assert write_report(tmp_path, [], [], bare) == WrittenReport(tmp_path / "index.html", 0, 0)
    for name, page in read_pages(tmp_path).items():
        check_page(page, tmp_path / name)


def test_same_findings_give_the_same_bytes(tmp_path, finding, card, history):
    for run in ("one", "two"):
        write_report(
            tmp_path / run, [finding("a"), finding("b", shape=(3, 6, 6))], [REFUSAL], card(history=history)
        )
    one, two = (
        {name: page.text for name, page in read_pages(tmp_path / run).items()} for run in ("one", "two")
    )
    assert one == two


def test_nothing_but_pages_and_their_pictures_is_left_behind(tmp_path, finding, card):
    dark = finding("a", image=np.zeros((20, 16), np.float32))
    write_report(tmp_path, [dark, finding("b")], [], card())
    assert len(list((tmp_path / "images").iterdir())) == 4
    (tmp_path / "images/mine.jpg").write_text("mine")
    write_report(tmp_path, [finding("b")], [], card())
    shown = {Path(src).name for page in read_pages(tmp_path).values() for src in page.values("img", "src")}
    left = {path.name for path in (tmp_path / "images").iterdir()}
    assert len(left) == 3 and left - shown == {"mine.jpg"}
    assert all(path.suffix in (".html", ".jpg") for path in tmp_path.rglob("*") if path.is_file())


def test_prediction_set_is_told_in_words(tmp_path, finding, card):
    both = finding("both", prediction_set=("normal", "opacity"))
    write_report(
        tmp_path, [both, finding("one", prediction_set=("opacity",)), finding("none")], [], card(coverage=0.9)
    )
    pages = read_pages(tmp_path)
    assert "Prediction set: normal or opacity." in pages["studies/both.html"].words
    assert "90% of new patients" in pages["studies/both.html"].words
    assert "Prediction set: opacity." in pages["studies/one.html"].words
    assert "Prediction set" not in pages["studies/none.html"].words


def test_threshold_that_decides_is_said(tmp_path, finding, card):
    write_report(tmp_path, [finding("a")], [], card(thresholds={"opacity": 0.65}))
    pages = read_pages(tmp_path)
    for name in ("index.html", "studies/a.html"):
        assert "Decision threshold for opacity: 0.65 (chosen on validation data)" in pages[name].words


def test_out_of_distribution_check_is_shown_where_there_is_a_verdict(tmp_path, finding, card):
    write_report(tmp_path, [finding("a")], [], card())
    assert "Out-of-distribution" not in read_pages(tmp_path)["index.html"].words
    write_report(tmp_path, [finding("a", ood="ok"), finding("b", ood="modality")], [], card())
    pages = read_pages(tmp_path)
    assert "Out-of-distribution" in pages["index.html"].words
    assert "Do not rely on the prediction" in pages["studies/b.html"].words
    assert "Do not rely on the prediction" not in pages["studies/a.html"].words


def test_each_page_says_what_its_maps_are_worth(tmp_path, finding, card):
    checks = {"Grad-CAM": MapCheck("failed", "Do not rely on its maps.", ("Deletion, failed.",), "On 3.")}
    studies = [finding("a"), finding("b", method="Occlusion"), finding("c", heatmap=None)]
    write_report(tmp_path, studies, [], card(), checks)
    words = {name: " ".join(page.words.split()) for name, page in read_pages(tmp_path).items()}
    for name in ("index", "studies/a"):
        assert "failed Grad-CAM. Do not rely on its maps." in words[f"{name}.html"]
    assert "not checked Occlusion." in words["studies/b.html"]
    assert "reliable" not in words["studies/c.html"]


def test_several_methods_stand_side_by_side(tmp_path, finding, card):
    one = finding("a")
    other = {"Occlusion": np.flip(one.maps["Grad-CAM"]).copy()}
    write_report(tmp_path, [replace(one, maps={**one.maps, **other})], [], card())
    page = read_pages(tmp_path)["studies/a.html"]
    assert "Methods side by side" in page.words and len(json.loads(page.blocks["data"])["maps"]) == 2
    assert len(set(page.values("img", "src"))) == 3  # two pictures and the colour bar
    assert page.values("img", "loading") == ["lazy", "lazy"]


def test_pages_with_identifiers_say_so(tmp_path, finding, card):
    named = finding("a", identifiers={"source": "ward/a.dcm", "name": "Doe^Jane"})
    write_report(tmp_path, [named], [], card())
    words = {name: page.words for name, page in read_pages(tmp_path).items()}
    assert "identifies the patient" in words["studies/a.html"] and "Doe^Jane" in words["studies/a.html"]
    assert "identify patients" in words["index.html"] and "ward/a.dcm" in words["index.html"]
    write_report(tmp_path, [finding("a")], [], card())
    assert not any("identifiers" in page.words for page in read_pages(tmp_path).values())


def test_pages_of_an_earlier_report_go_and_what_medtl_did_not_write_stays(tmp_path, finding, card):
    write_report(tmp_path, [finding("a"), finding("b"), finding("not/safe")], [], card())
    studies = tmp_path / "studies"
    (studies / "my notes.html").write_text("mine")
    (studies / "table.csv").write_text("mine")
    (studies / "folder.html").mkdir()
    write_report(tmp_path, [finding("b")], [], card())
    assert {path.name for path in studies.iterdir()} == {
        "b.html",
        "my notes.html",
        "table.csv",
        "folder.html",
    }
    write_report(tmp_path, [], [REFUSAL], card())
    assert not (studies / "b.html").exists()


def test_folder_that_cannot_be_written_is_named(tmp_path, finding, card):
    (tmp_path / "file").write_text("taken")
    with pytest.raises(OutputError) as caught:
        write_report(tmp_path / "file", [finding()], [], card())
    assert caught.value.code == "output-unwritable"


@pytest.mark.parametrize(("shape", "limit"), [((160, 160), 200_000), ((24, 160, 160), 2_500_000)])
def test_pages_stay_small_even_for_noise(tmp_path, finding, card, shape, limit):
    image = np.random.default_rng(0).random(shape, dtype=np.float32)
    heat = [np.sin(np.linspace(0, 3, side)) for side in shape]
    heatmap = np.prod(np.meshgrid(*heat, indexing="ij"), axis=0).astype(np.float32)
    write_report(tmp_path, [finding("a", shape=shape, image=image, heatmap=heatmap)], [], card())
    assert (tmp_path / "studies/a.html").stat().st_size < limit
