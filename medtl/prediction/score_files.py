"""Write rows of scores as CSV, JSON lines or Parquet: one after the other, none held, whole files or none."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from medtl.errors import ConfigError
from medtl.imaging.storage import replacing, write_lines
from medtl.prediction.scoring import COLUMNS, Prediction, write_scores

# Rows that a Parquet file gets at a time.
GROUP_ROWS = 1000

Write = Callable[[Path, Sequence[str], Iterable[Prediction]], None]


def write_jsonl(path: Path, classes: Sequence[str], predictions: Iterable[Prediction]) -> None:
    """Write a JSON object a line, its fields those of the columns of scores.csv, probabilities unrounded."""
    write_lines(path, (json.dumps(_fields(row, classes)) + "\n" for row in predictions))


def write_parquet(path: Path, classes: Sequence[str], predictions: Iterable[Prediction]) -> None:
    """Write a Parquet file with the columns of scores.csv, probabilities as float64, null where refused."""
    parquet, arrow = _pyarrow()
    numbers = [arrow.field(f"p_{name}", arrow.float64()) for name in classes]
    texts = [arrow.field(name, arrow.string()) for name in (*COLUMNS, "set")]
    schema = arrow.schema([*texts[:-1], *numbers, texts[-1]])
    with replacing(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        rows = (_fields(row, classes) for row in predictions)
        for group in _groups(rows):
            writer.write_table(arrow.Table.from_pylist(group, schema))


FORMATS: dict[str, Write] = {"csv": write_scores, "jsonl": write_jsonl, "parquet": write_parquet}


def check_formats(formats: Iterable[str]) -> None:
    """Raise ConfigError extra-missing for a format that cannot be written here."""
    if "parquet" in formats:
        _pyarrow()


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ModuleNotFoundError as missing:
        fix = "pip install 'medtl[parquet]'"
        raise ConfigError("extra-missing", "needs pyarrow", where="--format parquet", fix=fix) from missing
    return parquet, arrow


def _fields(row: Prediction, classes: Sequence[str]) -> dict[str, str | float | None]:
    numbers = row.probabilities or (None,) * len(classes)
    texts = {name: getattr(row, name) for name in COLUMNS}
    return {**texts, **{f"p_{name}": p for name, p in zip(classes, numbers, strict=True)}, "set": row.held}


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    rest = iter(rows)
    while group := list(islice(rest, GROUP_ROWS)):
        yield group
