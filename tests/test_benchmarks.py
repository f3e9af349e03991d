"""The peers of benchmarks.transfer do what they say: they train, take their steps, and are judged alike."""

import csv
import json
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from sklearn.metrics import roc_auc_score

from benchmarks import metric_references, transfer
from benchmarks.peers import PEERS
from benchmarks.peers.bare_loop import TakingTurns, batches_of, measure
from benchmarks.peers.common import (
    Clock,
    Images,
    load_images,
    macro_auroc,
    make_classifier,
    rate_factor,
    to_score,
    top_groups,
)
from benchmarks.peers.images import choose, prepare
from benchmarks.peers.job import Job, Phase, read_job
from medtl.training import schedule as stages

CLASSES = ("disc", "none", "square")
PHASES = (Phase("head", 0, 2, 3e-3), Phase("top 4", 4, 1, 1e-3))
IN_PROCESS = [name for name in PEERS if name != transfer.OURS]


def draw(number: int, kind: int) -> np.ndarray:
    """Return uint8 (40, 36): noise, with a disc or a square in it."""
    generator = np.random.default_rng(number)
    pixels = generator.integers(0, 90, (40, 36)).astype(np.uint8)
    row, column = generator.integers(10, 26, 2)
    rows, columns = np.mgrid[:40, :36]
    if CLASSES[kind] == "disc":
        pixels[(rows - row) ** 2 + (columns - column) ** 2 < 64] = 240
    if CLASSES[kind] == "square":
        pixels[row - 6 : row + 6, column - 6 : column + 6] = 240
    return pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 48 phantom images of three classes, 12, 12 and 24, and its table."""
    root = tmp_path_factory.mktemp("phantoms")
    with (root / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        for number in range(48):
            kind = (0, 1, 2, 2)[number % 4]
            PillowImage.fromarray(draw(number, kind)).save(root / f"{number:02d}.png")
            writer.writerow([f"{number:02d}.png", CLASSES[kind]])
    return root


@pytest.fixture
def job(folder: Path, tmp_path: Path) -> Job:
    """Return a tiny job: 16 training and 8 validation images of 32 px, an untrained network."""
    labels, images = tmp_path / "labels.csv", tmp_path / "images.npz"
    assert choose(folder, labels, 18, 8, 8) == (16, 8)
    prepare(folder, labels, images, 32)
    return Job(str(folder), str(labels), str(images), PHASES, batch=8, size=32, weights=None)


@pytest.fixture
def images(job: Job) -> Images:
    """Return the job's images."""
    return load_images(Path(job.images))


def peer_module(name: str):
    """Return a peer's module, or skip where one of its packages is absent."""
    for package in PEERS[name].packages:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: it comes with the extra `bench`")
    return import_module(f"benchmarks.peers.{PEERS[name].module}")


def read_table(path: Path) -> list[tuple[str, str, str]]:
    """Return (path, label, split) of each row."""
    with path.open(newline="", encoding="utf-8") as file:
        return [(row["path"], row["label"], row["split"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("augment", [False, True], ids=["plain", "augmented"])
@pytest.mark.parametrize("name", IN_PROCESS)
def test_a_peer_takes_the_steps_of_both_phases_and_keeps_its_best(
    name: str, augment: bool, job: Job, images: Images, tmp_path: Path
) -> None:
    module = peer_module(name)
    before = make_classifier(job, images).state_dict()
    clock = Clock()
    trained = module.train(replace(job, augment=augment), images, tmp_path, clock)
    assert trained.steps == 3 * 2  # epochs times batches
    assert list(clock.seconds) == ["head", "top 4"]
    assert min(clock.seconds.values()) > 0
    assert 0 <= macro_auroc(trained.classifier, images) <= 1
    after = trained.classifier.state_dict()
    assert not torch.equal(before["head.linear.weight"], after["head.linear.weight"])


@pytest.mark.parametrize("name", ["plain PyTorch", "finetuning-scheduler", "MONAI and Ignite"])
def test_a_peer_with_our_schedule_moves_the_top_groups_and_no_weight_below(
    name: str, job: Job, images: Images, tmp_path: Path
) -> None:
    module = peer_module(name)
    before = make_classifier(job, images)
    # A second phase that is sure to be kept as the best: the first one is too slow to learn anything.
    still = replace(job, phases=(Phase("top 4", 4, 2, 1e-2),))
    trained = module.train(still, images, tmp_path, Clock())
    moved = {
        name.split(".")[2]
        for (name, old), new in zip(before.named_parameters(), trained.classifier.parameters(), strict=True)
        if name.startswith("backbone") and not torch.equal(old, new)
    }
    assert moved == set(list(before.backbone.layer_groups)[-4:])


def test_backbone_finetuning_thaws_everything_after_the_head(
    job: Job, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = peer_module("Lightning BackboneFinetuning")
    thawed: list[bool] = []

    def look(network: torch.nn.Module) -> None:
        convolution = network.get_submodule("backbone.groups.stem.0")
        thawed.append(next(convolution.parameters()).requires_grad)

    monkeypatch.setattr(module.Transfer, "on_train_epoch_end", look)
    module.train(job, images, tmp_path, Clock())
    assert thawed == [False, False, True]


def test_medtl_by_its_front_door_has_the_same_job(job: Job, tmp_path: Path) -> None:
    job.write(tmp_path / "job.json")
    transfer.run_process(tmp_path, transfer.command_of("medtl_front_door", tmp_path))
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["steps"] == 3 * 2
    assert list(result["seconds"]) == ["head", "top 4"]
    assert {"reading", "comparing"} < set(result["apart"])
    assert min(result["apart"].values()) >= 0
    assert 0 <= result["auroc"] <= 1
    assert result["peak_mib"] > 50
    assert not list(tmp_path.glob("home-*"))


def test_a_chosen_subset_keeps_the_proportions_and_lies_in_the_larger_one(
    folder: Path, tmp_path: Path
) -> None:
    small, large = tmp_path / "small.csv", tmp_path / "large.csv"
    assert choose(folder, small, 8, 4, 8) == (8, 4)
    assert choose(folder, large, 32, 8, 8) == (32, 8)
    rows = read_table(small)
    assert [sum(r[1:] == (c, "train") for r in rows) for c in CLASSES] == [2, 2, 4]
    assert [sum(r[1:] == (c, "val") for r in rows) for c in CLASSES] == [1, 1, 2]
    assert set(rows) < set(read_table(large))


def test_more_images_than_there_are_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="class disc has 12 images, not 13"):
        choose(folder, tmp_path / "labels.csv", 40, 12, 8)


def test_a_job_file_reads_back(job: Job, tmp_path: Path) -> None:
    job.write(tmp_path / "job.json")
    assert read_job(tmp_path / "job.json") == job


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_rates_are_those_of_medtl(warmup: float) -> None:
    ours = [stages.learning_rate_factor(step, 40, warmup) for step in range(40)]
    assert np.allclose([rate_factor(step, 40, warmup) for step in range(40)], ours, atol=1e-6)


def test_the_network_and_its_head_are_those_of_medtl(job: Job, images: Images) -> None:
    classifier = make_classifier(job, images)
    assert len(top_groups(classifier, PHASES[1])) == 4
    assert len(top_groups(classifier, Phase("all", 99, 1, 1e-3))) == len(classifier.backbone.groups)
    assert top_groups(classifier, PHASES[0]) == []
    again = make_classifier(job, images)
    assert torch.equal(classifier.head.linear.weight, again.head.linear.weight)  # type: ignore[union-attr]


def test_the_score_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    probabilities, targets = generator.dirichlet(np.ones(3), 30), np.arange(30) % 3
    assert to_score(probabilities, targets) == roc_auc_score(targets, probabilities, multi_class="ovr")
    two = probabilities[:, :2] / probabilities[:, :2].sum(1, keepdims=True)
    assert to_score(two, targets % 2) == roc_auc_score(targets % 2, two[:, 1])


class CountedSteps:
    """A bare loop that only counts."""

    def __init__(self) -> None:
        self.blocks: list[int] = []

    def run(self, steps: int) -> float:
        """Take no time."""
        self.blocks.append(steps)
        return 1.0


def test_blocks_of_medtl_and_the_bare_loop_alternate_within_an_epoch() -> None:
    bare = CountedSteps()
    turns = TakingTurns(bare, "all", 5)  # type: ignore[arg-type]
    for epoch in (1, 2):
        for done in range(1, 13):
            turns.progress(f"all epoch {epoch}", done, 12)
            turns.progress("reading", done, 12)
    assert bare.blocks == [5, 5, 5, 5]
    assert len(turns.pairs) == 4
    assert all(0 <= ours < 1.0 for ours, _ in turns.pairs)


def test_the_bare_loop_has_the_images_of_the_job(images: Images) -> None:
    batches = batches_of(images, 8, "cpu")
    assert torch.equal(torch.cat([x for x, _ in batches]), images.train)
    assert torch.equal(torch.cat([targets for _, targets in batches]), images.train_targets)


def test_a_step_of_medtl_is_set_against_the_bare_loops(job: Job, images: Images, tmp_path: Path) -> None:
    found = measure(replace(job, phases=(Phase("all", 99, 2, 1e-3),), batch=4), tmp_path, images, block=1)
    assert len(found["ratios"]) == 2 * (4 - 1) - 1  # epochs times blocks, but for the first
    assert min(*found["ratios"], found["medtl_step"], found["bare_step"]) > 0


def make_row(peer: str, head: float, top: float = 0.0, auroc: tuple[float, ...] = (0.9,)) -> transfer.Row:
    """Return a row of as many seeds as there are values of AUROC."""
    seconds = {"head": [head] * len(auroc), "top 4": [top] * len(auroc)}
    return transfer.Row(peer, seconds, {}, [1.0], list(auroc), [6], seconds)


@pytest.mark.parametrize(("ours", "verdict"), [(10.0, "met"), (13.0, "MISSED")])
def test_the_aim_of_the_head_is_judged_by_the_fastest_peer(ours: float, verdict: str) -> None:
    rows = [make_row("medtl", ours), make_row("slow", 500), make_row("fast", 100)]
    line = next(transfer.judge("head", rows))
    assert line.startswith(verdict)
    assert "fast" in line and f"{100 / ours:.2f} times" in line


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ((0.90,), "met"),
        ((0.895,), "met"),
        ((0.85,), "MISSED"),
        ((0.85, 0.95), "met"),
        ((0.85, 0.851), "MISSED"),
    ],
)
def test_the_gradual_aim_needs_the_same_auroc(ours: tuple[float, ...], verdict: str) -> None:
    rows = [make_row("medtl", 1, 1, ours), make_row("peer", 5, 5, (0.9,) * len(ours))]
    assert next(transfer.judge("gradual", rows)).startswith(verdict)


def test_what_bounds_medtl_is_told_by_stage() -> None:
    row = replace(make_row("medtl", 10, 6), epochs={"head": [1.0], "top 4": [5.0]})
    lines = list(transfer.judge("gradual", [row, make_row("peer", 80, 80)]))
    assert "head: 10.0 s, of which the epochs 1.0 s" in lines[1]
    assert "9.0 s" in lines[1]


def test_no_aim_is_judged_without_a_peer() -> None:
    assert list(transfer.judge("head", [make_row("medtl", 1)])) == []


def test_the_interval_of_a_median_is_that_of_order_statistics() -> None:
    assert transfer.median_interval(range(12)) == (2, 9)  # coverage 0.961
    assert transfer.median_interval([3.0, 1.0]) == (1.0, 3.0)


def test_a_result_is_measured_anew_where_the_job_is_another(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    def fake(place: Path, command: list[str]) -> None:
        ran.append(command)
        (place / "result.json").write_text(json.dumps({"seconds": {"head": 1.0}, "scoring": 0.5}))

    monkeypatch.setattr(transfer, "run_process", fake)
    bench = transfer.Bench(folder, tmp_path, 32, augment=False)
    for seed in (0, 0, 1, 1):
        result = bench.run("head peer", "plain_torch", bench.job(PHASES, seed))
        assert set(result["apart"]) == {"start-up and reading"}
    assert len(ran) == 2


def fake_result(job: Job) -> dict:
    """Return a result as a peer's: seconds and memory that are lines in the number of images."""
    count = sum(split == "train" for _, _, split in read_table(Path(job.labels)))
    phases = {phase.name: 2.0 + 0.5 * count for phase in job.phases}
    step = {"medtl_step": 0.103, "bare_step": 0.1, "ratios": [1.02, 1.03, 1.04]}
    rest = {"scoring": 0.0, "peak_mib": 400.0 + count, "auroc": 0.9, "steps": 9, "epoch_seconds": phases}
    return {"seconds": phases, **rest, **step}


def test_the_whole_bench_prints_its_tables_its_fits_and_every_verdict(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fake(place: Path, command: list[str]) -> None:
        (place / "result.json").write_text(json.dumps(fake_result(read_job(place / "job.json"))))

    monkeypatch.setattr(transfer, "run_process", fake)
    monkeypatch.setattr(transfer.Bench, "prepare", lambda bench: 1.5)
    monkeypatch.setattr(transfer.Job, "batch", 2)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "brain-mri-tumour").symlink_to(folder)
    sizes = ["--samples", "16", "--growth-base", "2", "--seeds", "2", "--peers", "medtl", "plain PyTorch"]
    where = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("sys.argv", ["transfer", *where, *sizes, "--threads", "1"])
    transfer.main()
    printed = capsys.readouterr().out
    for line in (
        "16 training and 4 validation images",
        "| plain PyTorch | 10.0 | 10.0 | 20.0 s | 1.00 | start-up and reading",
        "medtl 103 ms, bare loop 100 ms",
        "met  step overhead +3.0% (+2.0% to +4.0%), median of 6 pairs",
        "least squares: 4 s + 1 s an image",
        "least squares: 400 MiB + 1 MiB an image",
        "MISSED  head: 1.00 times as fast as plain PyTorch, aim 8",
        "MISSED  gradual: 1.00 times as fast as plain PyTorch, aim 3; AUROC +0.0000",
        "met  full: 1.00 times as fast as plain PyTorch, aim 1",
    ):
        assert line in printed


def test_each_rung_of_the_ladder_is_a_recipe_that_differs_in_its_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import ladder
    from medtl.config import load_config

    commands: list[list[str]] = []
    monkeypatch.setattr(ladder, "medtl", commands.append)
    ladder.climb("brain", tmp_path, tmp_path / "out", ["50", "all"], [0, 1])
    *trained, compared = commands
    assert len(trained) == 16 and compared[0] == "compare" and len(set(compared)) == len(compared)
    assert sum("--label-budget" in command for command in trained) == 8
    recipes = [
        load_config(
            "mri",
            Path(command[command.index("--config") + 1]),
            [command[place + 1] for place, part in enumerate(command) if part == "--set"],
        )
        for command in trained
    ]
    assert {recipe.schedule.name for recipe in recipes} == set(ladder.SCHEDULES)
    assert len({recipe.model_copy(update={"schedule": None}).model_dump_json() for recipe in recipes}) == 1


def test_photographs_are_there_without_a_network() -> None:
    from benchmarks import ood

    crops = ood.photographs(None)
    assert len(crops) >= 3 * ood.CROPS and len(crops) % ood.CROPS == 0
    assert all(crop.ndim == 2 and crop.shape[0] == crop.shape[1] for crop in crops)
    assert ood.reduced(crops[0]).shape == (28, 28)


def test_every_metric_equals_its_reference_and_is_in_the_table() -> None:
    table = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    found = list(metric_references.rows())
    assert len(found) >= 28
    for row in found:
        assert row.ours == pytest.approx(row.reference, abs=1e-6 if row.by == "torchmetrics" else 1e-9), row
        assert f"| {row.metric} | {row.task} | {row.ours:.6f} |" in table
