"""Where medtl keeps what it may reuse: the salt, prepared datasets, cached features, imported weights."""

import os
from pathlib import Path


def medtl_home() -> Path:
    """Return $MEDTL_HOME, or ~/.cache/medtl.

    prepared/, features/ and graphs/ can be deleted at any time and are made again. weights/ holds the
    user's files, and salt makes the ids of samples: with another salt the same samples have other ids.
    """
    return Path(os.environ.get("MEDTL_HOME") or Path.home() / ".cache" / "medtl")
