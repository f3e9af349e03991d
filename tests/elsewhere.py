"""A process as on Windows: what only Linux has is hidden, and no file that is open or mapped is removed.

python -m tests.elsewhere FOLDER works through the main commands in FOLDER, with the tiny backbone.
"""

import errno
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

# They know each system, and have taken what this one has before it is hidden.
import filelock  # noqa: F401
import psutil  # noqa: F401

MODULES = ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "syslog")
FUNCTIONS = (
    *("fork", "forkpty", "sched_getaffinity", "killpg", "getpgid", "setsid", "statvfs", "nice", "mkfifo"),
    *("posix_fallocate", "posix_fadvise", "pwrite", "pread", "chown"),
    *("O_DIRECTORY", "O_NOFOLLOW"),
)


def hide() -> None:
    """Hide what only Linux has, and let children be spawned."""
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for name in FUNCTIONS:
        if hasattr(os, name):
            delattr(os, name)
    os.environ.setdefault("USERNAME", "user")
    multiprocessing.set_start_method("spawn", force=True)


def refuse_open_files() -> None:
    """Refuse to rename or remove what this process has open or mapped, as Windows does."""

    def guard(function: Callable[..., Any], paths: int) -> Callable[..., Any]:
        def guarded(*given: Any, **named: Any) -> Any:
            for path in map(os.path.realpath, given[:paths]):
                if any(used == path or used.startswith(f"{path}/") for used in used_files()):
                    raise PermissionError(errno.EACCES, "The process cannot access the file", path)
            return function(*given, **named)

        return guarded

    for name, paths in (("replace", 2), ("rename", 2), ("unlink", 1), ("remove", 1)):
        setattr(os, name, guard(getattr(os, name), paths))
    shutil._use_fd_functions = False  # type: ignore[attr-defined]  # which have no whole paths


def used_files() -> set[str]:
    """Return what this process has open or mapped."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return {*links, *(line.split(maxsplit=5)[-1] for line in maps)}


def work(folder: Path) -> dict[str, Any]:
    """Read, inspect, prepare, train, stop, resume, evaluate, score and report; return what came of it."""
    from medtl.core.progress import StopSignal
    from medtl.training.checkpoint import load_checkpoint
    from tests.cli import jobs

    data, dataset, run = folder / "studies", folder / "dataset", folder / "run"
    longer = ["schedule.thawed_epochs=3"]
    given = [part for override in jobs.SETTINGS[:3] for part in ("--set", override)]
    prepare = ("prepare", data, "--modality", "xray", "--out", dataset, *given)
    codes = [jobs.medtl("inspect", data).exit_code, jobs.medtl(*prepare).exit_code]
    codes.append(jobs.medtl(*prepare[:-1], "preprocessing.size=[16,16]").exit_code)  # another in its place
    codes.append(jobs.medtl(*prepare).exit_code)
    asked, ask = count(1), StopSignal.__call__
    StopSignal.__call__ = lambda _: next(asked) == 5  # type: ignore[method-assign]  # in stage all
    codes.append(jobs.train(dataset, run, overrides=longer).exit_code)
    StopSignal.__call__ = ask  # type: ignore[method-assign]
    codes.append(jobs.train(dataset, run, "--resume", overrides=longer).exit_code)
    codes.append(jobs.medtl("evaluate", run, "--data", data, "--out", folder / "evaluation").exit_code)
    codes.append(jobs.medtl("score", run, data, "--out", folder / "scores").exit_code)
    codes.append(
        jobs.medtl(
            "report", run, folder / "scores", "--out", folder / "pages", "--check-images", "0"
        ).exit_code
    )
    return {"codes": codes, "sha256": load_checkpoint(run).sha256}


if __name__ == "__main__":
    hide()
    refuse_open_files()
    from tests.cli.jobs import tiny_backbones_registered

    with tiny_backbones_registered():
        print(json.dumps(work(Path(sys.argv[1]))))
