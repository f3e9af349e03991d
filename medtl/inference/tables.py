"""Write rows of scores as CSV, JSON lines or Parquet: one after the other, none held, whole files or none."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from medtl.core.files import replacing, write_lines
from medtl.errors import ConfigError
from medtl.inference.predictor import Prediction, batched, column_names, row_fields, write_scores

# Rows that a Parquet file gets at a time.
GROUP_ROWS = 1000

Write = Callable[[Path, Sequence[str], Iterable[Prediction]], None]


def write_jsonl(path: Path, classes: Sequence[str], predictions: Iterable[Prediction]) -> None:
    """Write a JSON object a line, its fields those of the columns of scores.csv, probabilities unrounded."""
    write_lines(path, (json.dumps(row_fields(row, classes)) + "\n" for row in predictions))


def write_parquet(path: Path, classes: Sequence[str], predictions: Iterable[Prediction]) -> None:
    """Write a Parquet file with the columns of scores.csv, probabilities as float64, null where refused."""
    parquet, arrow = _pyarrow()
    kinds = {True: arrow.float64(), False: arrow.string()}
    schema = arrow.schema([(name, kinds[name.startswith("p_")]) for name in column_names(classes)])
    with replacing(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        rows = (row_fields(row, classes) for row in predictions)
        for group in batched(rows, GROUP_ROWS):
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
