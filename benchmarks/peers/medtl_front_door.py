"""medtl as its users run it: `medtl train` on the files themselves, a process with an empty medtl home.

python -m benchmarks.peers.medtl_front_door JOB. This process stays small until medtl has ended: the peak
memory of a child includes that of the process that started it.
"""

import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.peers.job import Job, job_of_command_line, write_result


def main() -> None:
    """Do the job of the command line, and leave result.json."""
    job, folder = job_of_command_line()
    with tempfile.TemporaryDirectory(prefix="home-", dir=folder) as home:
        wall = train(job, folder / "run", Path(home))
    units = 2**20 if sys.platform == "darwin" else 2**10
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / units
    rows = read_history(folder / "run")
    seconds = json.loads((folder / "run" / "metrics.json").read_text(encoding="utf-8"))["seconds"]
    stages = {phase.name: seconds[phase.name] for phase in job.phases}
    started = time.perf_counter()
    auroc = score(job, folder / "run")
    write_result(
        folder,
        seconds=stages,
        apart=apart(seconds, wall, stages),
        scoring=time.perf_counter() - started,
        peak_mib=peak,
        auroc=auroc,
        steps=int(rows[-1]["step"]),
        epoch_seconds={name: sum(float(r["seconds"]) for r in rows if r["stage"] == name) for name in stages},
    )


def train(job: Job, run: Path, home: Path) -> float:
    """Run `medtl train`; return its wall seconds."""
    command = [sys.executable, "-m", "medtl", "train", "--modality", "mri", "--data", job.data]
    command += ["--config", "configs/mri-slices.yaml", "--labels", job.labels, "--out", str(run), "--json"]
    command += [part for override in overrides(job) for part in ("--set", override)]
    environment = {**os.environ, "MEDTL_HOME": str(home)}
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL)
    if done.returncode not in (0, 3):
        raise SystemExit(f"medtl train ended with {done.returncode}")
    return time.perf_counter() - started


def overrides(job: Job) -> list[str]:
    """Return the overrides that make medtl's recipe the one all peers have."""
    values = [
        f"schedule.stages={json.dumps([stage_of(job, number) for number in range(len(job.phases))])}",
        f"backbone.name={job.backbone}",
        f"backbone.weights={job.weights or 'null'}",
        f"preprocessing.size=[{job.size},{job.size}]",
        f"fit.seed={job.seed}",
        f"fit.batch_size={job.batch}",
        f"fit.dropout={job.dropout}",
        f"fit.device={job.device}",
        "fit.precision=32-true",
        "fit.imbalance=none",
        "fit.gradient_clip=null",
        "split.near_duplicates=warn",
    ]
    unmoved = ("rotate_degrees=0", "scale=0", "translate=0", "flip=false", "gamma=0")
    return values + ([] if job.augment else [f"augmentation.{value}" for value in unmoved])


def stage_of(job: Job, number: int) -> dict[str, Any]:
    """Return a phase as medtl's stage; augmented, a frozen prefix keeps four views of each image."""
    phase = job.phases[number]
    return {
        "name": phase.name,
        "groups": phase.groups,
        "epochs": phase.epochs,
        "head_learning_rate": phase.rate,
        "learning_rate": phase.rate,
        "weight_decay": job.weight_decay,
        "warmup": job.warmup,
        "batch_norm": "follow" if phase.groups else "pretrained",
        "views": 4 if job.augment else 1,
    }


def read_history(run: Path) -> list[dict[str, str]]:
    """Return the rows of history.csv."""
    with (run / "history.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def apart(seconds: dict[str, float], wall: float, stages: dict[str, float]) -> dict[str, float]:
    """Return the seconds outside the stages: reading, near-duplicates, and the rest of the process."""
    named = {"reading": seconds["reading"], "comparing": seconds["comparing"]}
    rest = wall - sum(named.values()) - sum(stages.values())
    return {**named, "start-up, checks, evaluation": rest}


def score(job: Job, run: Path) -> float:
    """Return the AUROC of the run's checkpoint as for every peer."""
    from benchmarks.peers.common import load_images, macro_auroc
    from medtl.training.checkpoint import load_checkpoint

    return macro_auroc(load_checkpoint(run).classifier, load_images(Path(job.images)))


if __name__ == "__main__":
    main()
