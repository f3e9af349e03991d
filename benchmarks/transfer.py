"""Compare medtl's transfer with the alternatives: prints tables, and which aims are met.

python -m benchmarks.transfer [--data DIR] [--samples N] [--seeds N] [--augment] [--only PART ...]
[--device cpu|cuda] [--out DIR]

DIR holds brain-mri-tumour/ (Bhuvaji et al., 2,870 MR slices of 4 classes). medtl, the plain PyTorch recipe,
Lightning with BackboneFinetuning, Lightning with finetuning-scheduler, and MONAI's SupervisedTrainer with
CacheDataset train the same EfficientNet-Lite0 from ImageNet on the same images, batches, epochs and learning
rates.

head: the head for 10 epochs. gradual: that, then the top 4 layer groups for 4. full: everything for 2.
overhead: a step of medtl's full fine-tuning and of the barest loop. growth: medtl's gradual schedule on 1x,
4x and 16x the images. Each training is a process of its own with an empty medtl home. Results of the same job
that --out already holds are not measured again. docs/benchmarks.md explains what makes it fair. Run it on an
idle machine.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.peers import PEERS
from benchmarks.peers.images import choose
from benchmarks.peers.job import Job, Phase, read_job, write_result

DEFAULT_DATA = Path(__file__).parents[1] / ".." / "shared" / "data"
OURS = "medtl"
HEAD, TOP, ALL = Phase("head", 0, 10, 3e-3), Phase("top 4", 4, 4, 1e-3), Phase("all", 99, 2, 1e-3)
SCENARIOS: dict[str, tuple[Phase, ...]] = {"head": (HEAD,), "gradual": (HEAD, TOP), "full": (ALL,)}
PARTS = (*SCENARIOS, "overhead", "growth")
# Long enough for a dozen pairs of blocks.
OVERHEAD = replace(ALL, epochs=6)
GROWTH = (1, 4, 16)

# The aims of the project's issue on transfer.
HEAD_AIM, GRADUAL_AIM, FULL_AIM, OVERHEAD_AIM = 8.0, 3.0, 1.0, 0.05
# Within this the AUROC counts as the same, where seeds do not say better.
SAME_AUROC = 0.01


@dataclass(frozen=True)
class Row:
    """The results of one peer in one scenario, one value per seed; apart: seconds outside the phases."""

    peer: str
    seconds: dict[str, list[float]]
    apart: dict[str, list[float]]
    peak_mib: list[float]
    auroc: list[float]
    steps: list[int]
    epochs: dict[str, list[float]]

    @property
    def total(self) -> float:
        """Median seconds of all phases together."""
        return statistics.median(map(sum, zip(*self.seconds.values(), strict=True)))


def row_of(peer: str, results: Sequence[dict[str, Any]]) -> Row:
    """Gather the results of a peer's seeds."""
    return Row(
        peer,
        _by_name(results, "seconds"),
        _by_name(results, "apart"),
        [result["peak_mib"] for result in results],
        [result["auroc"] for result in results],
        [result["steps"] for result in results],
        _by_name(results, "epoch_seconds"),
    )


def _by_name(results: Sequence[dict[str, Any]], key: str) -> dict[str, list[float]]:
    return {name: [result[key][name] for result in results] for name in results[0].get(key, {})}


class Bench:
    """Where results are stored, and the images that all jobs share."""

    def __init__(self, data: Path, out: Path, samples: int, augment: bool, device: str = "cpu") -> None:
        self.data, self.out, self.augment, self.device = data, out, augment, device
        self.labels, self.images = out / f"{samples}.csv", out / f"{samples}.npz"
        self.counts = choose(data, self.labels, samples, samples // 4, Job.batch)

    def prepare(self) -> float:
        """Prepare the images for peers that do not read files; return the seconds."""
        started = time.perf_counter()
        if not self.images.is_file():
            command = [sys.executable, "-m", "benchmarks.peers.images", str(self.data), str(self.labels)]
            with tempfile.TemporaryDirectory(prefix="home-", dir=self.out) as home:
                environment = {**os.environ, "MEDTL_HOME": home}
                subprocess.run([*command, str(self.images), str(Job.size)], env=environment, check=True)
        return time.perf_counter() - started

    def job(self, phases: tuple[Phase, ...], seed: int) -> Job:
        """Return a job on the bench's images."""
        shared = str(self.data), str(self.labels), str(self.images)
        return Job(*shared, phases, seed, self.augment, device=self.device)

    def run(self, name: str, module: str, job: Job) -> dict[str, Any]:
        """Run a job in a process of its own, unless its result exists; return its result.

        For a peer that does not report its time outside the phases, that is the rest of the process except
        the benchmark's own scoring.
        """
        folder = self.out / name.replace(" ", "-")
        if folder.is_dir() and is_of(folder, job):
            return json.loads((folder / "result.json").read_text(encoding="utf-8"))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        job.write(folder / "job.json")
        started = time.perf_counter()
        run_process(folder, command_of(module, folder))
        wall = time.perf_counter() - started
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        if "apart" not in result and "seconds" in result:
            rest = wall - result["scoring"] - sum(result["seconds"].values())
            result["apart"] = {"start-up and reading": rest}
        write_result(folder, **result)
        return result


def is_of(folder: Path, job: Job) -> bool:
    """Say whether a folder holds the result of a job."""
    return (folder / "result.json").is_file() and read_job(folder / "job.json") == job


def command_of(module: str, folder: Path) -> list[str]:
    """Return the command that does the job of a folder."""
    return [sys.executable, "-m", f"benchmarks.peers.{module}", str(folder / "job.json")]


def run_process(folder: Path, command: Sequence[str]) -> None:
    """Run a peer with its output in a file; on failure show the end of it."""
    with tempfile.TemporaryDirectory(prefix="home-", dir=folder) as home:
        environment = {**os.environ, "MEDTL_HOME": home}
        with (folder / "log.txt").open("w", encoding="utf-8") as log:
            done = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        tail = (folder / "log.txt").read_text(encoding="utf-8")[-2000:]
        raise SystemExit(f"{folder.name} ended with {done.returncode}:\n{tail}")


def compare(bench: Bench, scenario: str, peers: Sequence[str], seeds: int) -> list[Row]:
    """Run all peers in a scenario, seed after seed, and print its table.

    The order of the peers rotates with the seed, so that no peer always gets a warm machine.
    """
    results: dict[str, list[dict[str, Any]]] = {peer: [] for peer in peers}
    for seed in range(seeds):
        for place in range(len(peers)):
            peer = peers[(place + seed) % len(peers)]
            module, job = PEERS[peer].module, bench.job(SCENARIOS[scenario], seed)
            results[peer].append(bench.run(f"{scenario} {module} {seed}", module, job))
            print(f"  {scenario}, seed {seed}: {peer} done", file=sys.stderr, flush=True)
    rows = [row_of(peer, found) for peer, found in results.items()]
    print_table(scenario, rows)
    return rows


def print_table(scenario: str, rows: Sequence[Row]) -> None:
    """Print medians over the seeds: seconds by phase, ratio to medtl, seconds apart, memory, AUROC, steps."""
    phases = list(rows[0].seconds)
    ours = next((row.total for row in rows if row.peer == OURS), None)
    ends = ["all phases", "to medtl", "apart from them", "peak MiB", "validation AUROC", "steps"]
    columns = [scenario, *(f"{name}, s" for name in phases), *ends]
    print(f"\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for row in rows:
        cells = [row.peer, *(f"{statistics.median(row.seconds[name]):.1f}" for name in phases)]
        cells += [f"{row.total:.1f} s", f"{row.total / ours:.2f}" if ours else "", in_words(row.apart)]
        cells += [f"{max(row.peak_mib):.0f}", spread(row.auroc), "/".join(map(str, sorted(set(row.steps))))]
        print(f"| {' | '.join(cells)} |", flush=True)


def in_words(apart: dict[str, list[float]]) -> str:
    """Return named medians of seconds."""
    return ", ".join(f"{name} {statistics.median(values):.1f} s" for name, values in apart.items())


def spread(values: Sequence[float]) -> str:
    """Return a mean, and the lowest and highest if there are several."""
    mean = f"{statistics.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.4f} to {max(values):.4f})"


def judge(scenario: str, rows: Sequence[Row]) -> Iterator[str]:
    """Print whether the scenario's aim is met, computed from its rows, and what limits medtl."""
    ours = next((row for row in rows if row.peer == OURS), None)
    peers = [row for row in rows if row.peer != OURS]
    if ours is None or not peers:
        return
    best = min(peers, key=lambda row: row.total)
    ratio = best.total / ours.total
    aim = {"head": HEAD_AIM, "gradual": GRADUAL_AIM, "full": FULL_AIM}[scenario]
    met = ratio >= aim
    text = f"{scenario}: {ratio:.2f} times as fast as {best.peer}, aim {aim:g}"
    if scenario == "gradual":
        same, words = same_auroc(ours, best)
        highest = max(peers, key=lambda row: statistics.mean(row.auroc))
        met, text = met and same, f"{text}; {words}, and {same_auroc(ours, highest)[1]}, the highest"
    yield f"{'met' if met else 'MISSED'}  {text}"
    yield from bounds(ours)


def same_auroc(ours: Row, theirs: Row) -> tuple[bool, str]:
    """Return whether medtl's AUROC is no lower than a peer's.

    True if the mean is at most SAME_AUROC lower, or the 95% interval of the differences includes 0.
    """
    differences = np.array(ours.auroc) - np.array(theirs.auroc)
    mean, interval = float(differences.mean()), ""
    same = mean >= -SAME_AUROC
    if len(differences) > 1:
        margin = float(stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences))
        same, interval = same or mean + margin >= 0, f" ({mean - margin:+.4f} to {mean + margin:+.4f})"
    return same, f"AUROC {mean:+.4f}{interval} to {theirs.peer}"


def bounds(ours: Row) -> Iterator[str]:
    """Break down medtl's seconds: what an epoch takes, and what each stage costs once."""
    for name, seconds in ours.seconds.items():
        whole, epochs = statistics.median(seconds), statistics.median(ours.epochs[name])
        yield (
            f"        {name}: {whole:.1f} s, of which the epochs {epochs:.1f} s; "
            f"once a stage (frozen prefix, optimizer, best weights) {whole - epochs:.1f} s"
        )


def overhead(bench: Bench, seeds: int) -> str:
    """Measure a step beside the bare loop; print both, return whether the aim is met."""
    jobs = [bench.job((OVERHEAD,), seed) for seed in range(seeds)]
    found = [bench.run(f"overhead {job.seed}", "bare_loop", job) for job in jobs]
    ours, bare = (
        1000 * statistics.median(result[key] for result in found) for key in ("medtl_step", "bare_step")
    )
    print(f"\na step of full fine-tuning: medtl {ours:.0f} ms, bare loop {bare:.0f} ms", flush=True)
    ratios = [ratio for result in found for ratio in result["ratios"]]
    over, (low, high) = statistics.median(ratios) - 1, median_interval(ratios)
    return (
        f"{'met' if over <= OVERHEAD_AIM else 'MISSED'}  step overhead {over:+.1%} ({low - 1:+.1%} to "
        f"{high - 1:+.1%}), median of {len(ratios)} pairs of blocks, aim {OVERHEAD_AIM:.0%}"
    )


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95% interval of a median by order statistics, or the range if there are too few."""
    ordered = sorted(values)
    lowest = max(0, int(stats.binom.ppf(0.025, len(ordered), 0.5)) - 1)
    return ordered[lowest], ordered[-1 - lowest]


def growth(bench: Bench, base: int, seed: int = 0) -> None:
    """Train gradually by medtl on 1x, 4x and 16x the images; print time and memory, and their fits."""
    print("\n| training images | all phases, s | apart from them | peak MiB | AUROC |\n|" + " --- |" * 5)
    counts, seconds, peaks = [], [], []
    for times in GROWTH:
        out = bench.out / f"growth-{times}x"
        out.mkdir(exist_ok=True)
        part = Bench(bench.data, out, times * base, bench.augment, bench.device)
        part.prepare()
        row = row_of(OURS, [part.run("medtl", PEERS[OURS].module, part.job(SCENARIOS["gradual"], seed))])
        counts.append(part.counts[0])
        seconds.append(row.total)
        peaks.append(row.peak_mib[0])
        cells = f"{counts[-1]} | {row.total:.1f} | {in_words(row.apart)} | {peaks[-1]:.0f}"
        print(f"| {cells} | {spread(row.auroc)} |", flush=True)
    for what, values in (("s", seconds), ("MiB", peaks)):
        slope, constant = np.polyfit(counts, values, 1)
        exponent = np.polyfit(np.log(counts), np.log(values), 1)[0]
        print(
            f"least squares: {constant:.3g} {what} + {slope:.3g} {what} an image; "
            f"it grows as the {exponent:.2f}th power of the images"
        )


def here(names: Sequence[str]) -> list[str]:
    """Return the peers whose packages are installed; print which are not."""
    found = []
    for name in names:
        absent = [package for package in PEERS[name].packages if find_spec(package) is None]
        if absent:
            print(f"{name} is left out: no package {absent[0]} (install the extra `bench`)")
        else:
            found.append(name)
    return found


def main() -> None:
    """Run the chosen parts and print their results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--samples", type=int, default=384, help="training images; a quarter more validate")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--augment", action="store_true", help="new views each epoch; medtl: 4 cached views")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--growth-base", type=int, default=128, help="training images of 1x")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    folder = (chosen.data / "brain-mri-tumour").resolve()
    if not folder.is_dir():
        parser.error(f"{folder} is not here: name the folder of real images with --data")
    if min(chosen.seeds, chosen.threads) < 1 or min(chosen.samples, chosen.growth_base) < Job.batch:
        parser.error(f"--seeds and --threads are 1 or more, --samples and --growth-base {Job.batch} or more")
    out = chosen.out or Path(tempfile.mkdtemp(prefix="medtl-transfer-"))
    out.mkdir(parents=True, exist_ok=True)
    os.environ["MEDTL_SALT"] = "benchmark"
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    run(Bench(folder, out.resolve(), chosen.samples, chosen.augment, chosen.device), chosen)


def run(bench: Bench, chosen: argparse.Namespace) -> None:
    """Run parts in order."""
    train, val = bench.counts
    views = "augmented" if bench.augment else "not augmented"
    print(
        f"{train} training and {val} validation images of {Job.size} px, {views}, batches of {Job.batch}, "
        f"{chosen.seeds} seed(s), {chosen.threads} thread(s), on {chosen.device}"
    )
    print(f"images prepared for the peers in {bench.prepare():.1f} s, which no row counts")
    verdicts: list[str] = []
    peers = here(chosen.peers)
    for scenario in (part for part in SCENARIOS if part in chosen.only):
        verdicts += judge(scenario, compare(bench, scenario, peers, chosen.seeds))
    if "overhead" in chosen.only:
        verdicts.append(overhead(bench, chosen.seeds))
    if "growth" in chosen.only:
        growth(bench, chosen.growth_base)
    print("", *verdicts, sep="\n")


if __name__ == "__main__":
    main()
