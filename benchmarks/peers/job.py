"""What a peer receives (a job file) and returns (result.json beside it). Imports nothing heavy."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Phase:
    """`groups` layer groups next to the head are trained with it, all at one peak rate."""

    name: str
    groups: int
    epochs: int
    rate: float


@dataclass(frozen=True)
class Job:
    """One training: images, phases, and what all peers do alike.

    data and labels: the folder of images and the table with its `split`, for peers that read files; images: a
    .npz of the same images, prepared, for those that do not. augment: a new random view of each image in each
    epoch; without it all train on the images themselves. backbone, weights: of medtl's BACKBONES. device: cpu
    or cuda, in 32 bits on either.
    """

    data: str
    labels: str
    images: str
    phases: tuple[Phase, ...]
    seed: int = 0
    augment: bool = False
    batch: int = 32
    size: int = 160
    backbone: str = "efficientnet_lite0"
    weights: str | None = "imagenet"
    dropout: float = 0.2
    weight_decay: float = 0.01
    warmup: float = 0.1
    device: str = "cpu"

    def write(self, path: Path) -> None:
        """Write the job file."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


def read_job(path: Path) -> Job:
    """Read what Job.write wrote."""
    values = json.loads(path.read_text(encoding="utf-8"))
    phases = tuple(Phase(**phase) for phase in values.pop("phases"))
    return Job(phases=phases, **values)


def job_of_command_line() -> tuple[Job, Path]:
    """Return the job that the process was started with, and the folder for its results."""
    path = Path(sys.argv[1])
    return read_job(path), path.parent


def write_result(folder: Path, **facts: Any) -> None:
    """Write result.json."""
    (folder / "result.json").write_text(json.dumps(facts), encoding="utf-8")
