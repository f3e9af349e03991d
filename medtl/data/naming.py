"""Name what is read: to the user by its path in the folder, on pages by a salted hash of that name.

splits.csv, scores.csv and reports agree on the ids of a folder because each of them asks here.
"""

from collections.abc import Iterable
from pathlib import Path

from medtl.core.ids import hash_identifier
from medtl.errors import ReadError
from medtl.imaging.series import Series


def source_name(series: Series, root: Path) -> str:
    """Name a series by its path relative to `root` (to its folder, where it is a file), with its item.

    A root that is itself the series is "./" and its own name, which nothing below it is called.
    """
    name = _name(series.path, base_folder(root))
    return f"{name}#{series.item}" if series.item else name


def refused_name(error: ReadError, root: Path) -> str:
    """Name a refused input as source_name names a series."""
    return _name(Path(error.where), base_folder(root))


def check_names(series: Iterable[Series], root: Path) -> None:
    """Raise ReadError name-repeated where two series have one name: "a#1" may be a file or an item of "a"."""
    seen: set[str] = set()
    for one in series:
        name = source_name(one, root)
        if name in seen:
            reason, fix = f"has the name {name!r} of another series", "rename it"
            raise ReadError("name-repeated", reason, where=one.path, fix=fix)
        seen.add(name)


def sample_key(source: str) -> str:
    """Return the salted id under which tables and pages that others read show a source."""
    return "s" + hash_identifier(source, length=10)


def base_folder(root: Path) -> Path:
    """Return the folder that names are relative to: `root`, or the folder of a file."""
    return root if root.is_dir() else root.parent


def relative_name(path: Path, base: Path) -> str:
    """Return a path relative to a folder, with forward slashes; absolute where it lies elsewhere."""
    path, base = path.absolute(), base.absolute()
    return (path.relative_to(base) if path.is_relative_to(base) else path).as_posix()


def _name(path: Path, base: Path) -> str:
    name = relative_name(path, base)
    name = f"./{base.absolute().name}" if name == "." else name
    return name.encode("utf-8", "backslashreplace").decode()  # bytes of a file name that are no text
