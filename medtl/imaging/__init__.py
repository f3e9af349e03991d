"""Files become prepared samples: read exactly or refused, labelled, split, brought to one grid.

Importing this package loads nothing heavy; `read_images` is fetched on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medtl.imaging.reader import read_images

__all__ = ["read_images"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from medtl.imaging import series

        return getattr(series, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
