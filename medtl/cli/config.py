"""medtl config: the recipe as it will be used."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from medtl.workflows.plan import StagePlan

WIDTH = 80


@click.group()
def config() -> None:
    """Show a recipe in full, or the schema of recipes."""


@config.command()
@click.option("--modality", type=click.Choice(["xray", "mri"]))
@click.option("--config", "recipe", type=click.Path(path_type=Path), help="Recipe (YAML).")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key.")
@click.option("--stages", is_flag=True, help="Print the stages in place of the recipe: trained, kept, cost.")
@click.option("--samples", type=click.IntRange(min=1), help="Training images, for --stages.")
@click.option("--json", "as_json", is_flag=True, help="Print the stages as one JSON list on stdout.")
def show(
    modality: str | None,
    recipe: Path | None,
    overrides: tuple[str, ...],
    stages: bool,
    samples: int | None,
    as_json: bool,
) -> None:
    """Print the resolved recipe: every key, defaults and overrides included.

    With --stages, print what each stage of it trains at which rates, until when, what is cached, and how many
    multiply-adds it costs. A recipe that names no classes is taken to have two.
    """
    from medtl.config import load_config, to_yaml

    if (samples or as_json) and not stages:
        raise click.UsageError("--samples and --json go with --stages")
    resolved = load_config(modality, recipe, overrides)
    if not stages:
        click.echo(to_yaml(resolved), nl=False)
        return
    from medtl.workflows.plan import plan_stages

    plans = plan_stages(resolved, samples)
    click.echo(_as_json(plans, samples) if as_json else _as_tables(plans, samples))


@config.command()
def schema() -> None:
    """Print the JSON schema of recipes."""
    import json

    from medtl.config import RunConfig

    click.echo(json.dumps(RunConfig.model_json_schema(), indent=2))


def _as_json(plans: Sequence["StagePlan"], samples: int | None) -> str:
    import json
    from dataclasses import asdict

    rows = [{**asdict(plan), "stage": plan.stage.model_dump(mode="json")} for plan in plans]
    for row, plan in zip(rows, plans, strict=True):
        row["all_epochs_multiply_adds"] = (samples or 1) * plan.all_epochs
        row["cached_all_epochs_multiply_adds"] = (samples or 1) * plan.cached_all_epochs
    return json.dumps(rows, indent=2)


def _as_tables(plans: Sequence["StagePlan"], samples: int | None) -> str:
    """Lay the stages out as three tables that fit a terminal of 80 columns."""
    names = [plan.stage.name for plan in plans]
    trains = [("trains", "parameters", "rates: head, top, lowest"), *map(_trains, plans)]
    lasts = [("ends by", "frozen"), *((_ends(plan), _frozen(plan)) for plan in plans)]
    costs = [_cost_titles(samples), *(_costs(plan, samples or 1) for plan in plans)]
    parts = [
        _table([(first, *cells) for first, cells in zip((title, *names), rows, strict=True)])
        for title, rows in (("stage", trains), ("stage", lasts), ("multiply-adds", costs))
    ]
    if samples:
        reasons = (f"{plan.stage.name}: {plan.reason}" for plan in plans)
        parts.append("\n".join(fill(reason, WIDTH, subsequent_indent="  ") for reason in reasons))
    return "\n\n".join(parts)


def _trains(plan: "StagePlan") -> tuple[str, ...]:
    groups = dict.fromkeys((*plan.groups[:1], *plan.groups[-1:]))
    modules = f"{' to '.join(groups)}, head" if groups else "head"
    parameters = f"{_short(plan.trained_parameters)} of {_short(plan.parameters)}"
    return modules, parameters, ", ".join(f"{rate:.2g}" for rate in plan.rates)


def _ends(plan: "StagePlan") -> str:
    stage = plan.stage
    steps = f" or {stage.steps} steps" if stage.steps else ""
    patience = f", patience {stage.patience}" if stage.patience else ""
    return f"{stage.epochs} epochs{steps}{patience}"


def _frozen(plan: "StagePlan") -> str:
    """Say where the frozen prefix ends, and what is kept of it for one image."""
    if not plan.boundary:
        return "nothing"
    kept = f"{plan.stage.views} x {_short(plan.kept_bytes, 'B')} cached" if plan.cached else "not cached"
    return f"up to {plan.boundary}: {kept}"


def _cost_titles(samples: int | None) -> tuple[str, ...]:
    images = f"{samples} images, all epochs" if samples else "an image, all epochs"
    return "an image, an epoch", "cached", images, "cached"


def _costs(plan: "StagePlan", samples: int) -> tuple[str, ...]:
    run = samples * plan.all_epochs, samples * plan.cached_all_epochs
    return tuple(map(_short, (plan.image, plan.cached_image, *run)))


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _short(number: float, unit: str = "") -> str:
    """Write a number in three digits: 1.28 k, 3.37 M, 768 B."""
    for prefix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {prefix}{unit}"
    return f"{number:.0f} {unit}".rstrip()
