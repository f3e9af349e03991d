"""Where medtl keeps what it may reuse: the salt, prepared datasets, cached features, imported weights."""

import os
from pathlib import Path


def medtl_home() -> Path:
    """Return $MEDTL_HOME, or ~/.cache/medtl. Everything below it can be deleted; it is made again."""
    return Path(os.environ.get("MEDTL_HOME") or Path.home() / ".cache" / "medtl")
