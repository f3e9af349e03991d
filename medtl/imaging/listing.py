"""ROOTS -> files: each file below them once, through links that stay below them, and what was not followed.

A folder that is a link is walked where it leads, unless that is outside the roots or is walked anyway.
"""

import os
from collections import Counter, deque
from collections.abc import Iterable
from pathlib import Path

from medtl.errors import ReadError
from medtl.imaging.series import unreadable

OUTSIDE = "links that lead out of the folder"
NOWHERE = "links that lead nowhere"
REPEATED = "links to what is listed already"


class Listing:
    """Files, sorted and without repeats; those of them that the user named; refusals; links by kind.

    not_followed: links that lead out of the folder or nowhere, and are no refusals by themselves.
    """

    def __init__(self, roots: Iterable[Path]) -> None:
        self.named: set[Path] = set()
        self.refusals: list[ReadError] = []
        self.left_out: Counter[str] = Counter()
        self.not_followed: list[ReadError] = []
        self._found: set[Path] = set()
        self._walked: set[str] = set()  # folders, as they are called without links
        self._links: deque[str] = deque()
        folders = []
        for root in roots:
            if root.is_dir():
                folders.append(root)
            elif root.exists():
                self.named.add(root)
            else:
                raise ReadError("file-missing", "does not exist", where=root, fix="check the path")
        self._bounds = [folder.resolve() for folder in folders]
        for folder in folders:
            self._walk(os.fspath(folder))
        files = []
        while self._links:  # after all real folders, so that what has two names goes by its own
            link = self._links.popleft()
            self._follow(link) if Path(link).is_dir() else files.append(link)
        for link in files:
            self._follow(link)
        self.files = sorted(self._found | self.named, key=lambda path: path.parts)

    def _walk(self, top: str) -> None:
        waiting = [(top, os.path.realpath(top).rstrip(os.sep))]
        while waiting:
            folder, real = waiting.pop()
            if real in self._walked:
                continue
            self._walked.add(real)
            try:
                with os.scandir(folder) as entries:
                    inside = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                self.refusals.append(unreadable(Path(error.filename or folder), error))
                continue
            for entry in inside:
                if entry.name.startswith("."):
                    continue
                own = f"{real}{os.sep}{entry.name}"
                if entry.is_symlink() or (entry.is_dir() and os.path.realpath(own) != own):  # or a junction
                    self._links.append(entry.path)
                elif entry.is_dir():
                    waiting.append((entry.path, own))
                else:
                    self._found.add(Path(entry.path))

    def _follow(self, link: str) -> None:
        try:
            target = Path(link).resolve(strict=True)
        except (OSError, RuntimeError):  # or it leads back to itself
            self._leave_out(link, NOWHERE)
            return
        if not any(target.is_relative_to(bound) for bound in self._bounds):
            self._leave_out(link, OUTSIDE)
        elif self._is_listed(target):
            self.left_out[REPEATED] += 1
        elif target.is_dir():
            self._walk(link)
        else:  # two links to one file that is listed nowhere else are two names that a table may have
            self._found.add(Path(link))

    def _leave_out(self, link: str, kind: str) -> None:
        self.left_out[kind] += 1
        self.not_followed.append(ReadError("file-missing", "is a link that is not followed", where=link))

    def _is_listed(self, target: Path) -> bool:
        """Say whether a folder was walked, or a file is in one that was, and not hidden there."""
        beside = str(target.parent) in self._walked and not target.name.startswith(".")
        return str(target) in self._walked if target.is_dir() else beside
