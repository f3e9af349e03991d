"""medtl config: recipes with all their keys."""

from collections.abc import Sequence
from textwrap import fill
from typing import Any

import click

from medtl.cli import options

WIDTH = 80


@click.group()
def config() -> None:
    """Show a recipe in full, or the schema of recipes."""


@config.command()
@options.recipe
@click.option("--stages", is_flag=True, help="Print what each stage trains, caches and costs instead.")
@click.option("--samples", type=click.IntRange(1), help="How many training images, for --stages.")
@options.as_json("the stages as one JSON list")
def show(stages: bool, samples: int | None, as_json: bool, **recipe: Any) -> None:
    """Print the resolved recipe: every key, defaults and overrides included.

    --stages prints what each stage trains, at which learning rates and until when, what is cached, and how
    many multiply-adds it costs. A recipe that names no classes is assumed to have two.
    """
    from medtl.config import load_config, to_yaml

    if (samples or as_json) and not stages:
        raise click.UsageError("--samples and --json need --stages")
    if not recipe["config"]:
        recipe["modality"] = recipe["modality"] or "xray"
    resolved = load_config(**recipe)
    if not stages:
        click.echo(to_yaml(resolved), nl=False)
        return
    from medtl.cli.terminal import print_json
    from medtl.workflows.plan import plan_stages

    plans = plan_stages(resolved, samples)
    if as_json:
        print_json(plans)
    else:
        click.echo(_as_tables(plans, samples))


@config.command()
def schema() -> None:
    """Print the JSON schema of recipes."""
    from medtl.cli.terminal import print_json
    from medtl.config import RunConfig

    print_json(RunConfig.model_json_schema())


def _as_tables(plans: Sequence[dict[str, Any]], samples: int | None) -> str:
    """Lay the stages out as three tables that fit a terminal of 80 columns."""
    images = f"{samples} images, all epochs" if samples else "an image, all epochs"
    tables = {
        _trains: ("stage", "trains", "parameters", "LR: head, top, lowest"),
        _ends: ("stage", "ends after", "frozen"),
        _costs: ("multiply-adds", "an image, an epoch", "cached", images, "cached"),
    }
    parts = [
        _table([head, *((plan["stage"]["name"], *cells(plan)) for plan in plans)])
        for cells, head in tables.items()
    ]
    if samples:
        reasons = (f"{plan['stage']['name']}: {plan['reason']}" for plan in plans)
        parts.append("\n".join(fill(reason, WIDTH, subsequent_indent="  ") for reason in reasons))
    return "\n\n".join(parts)


def _trains(plan: dict[str, Any]) -> tuple[str, ...]:
    groups = dict.fromkeys((*plan["groups"][:1], *plan["groups"][-1:]))
    modules = f"{' to '.join(groups)}, head" if groups else "head"
    parameters = f"{_short(plan['trained_parameters'])} of {_short(plan['parameters'])}"
    return modules, parameters, ", ".join(f"{rate:.2g}" for rate in plan["rates"])


def _ends(plan: dict[str, Any]) -> tuple[str, ...]:
    """Return when the stage ends, where its frozen prefix ends, and what is cached of one image."""
    stage, prefix = plan["stage"], "nothing"
    steps = f" or {stage['steps']} steps" if stage["steps"] else ""
    patience = f", patience {stage['patience']}" if stage["patience"] else ""
    if plan["boundary"]:
        size = f"{stage['views']} x {_short(plan['kept_bytes'], 'B')} cached"
        prefix = f"up to {plan['boundary']}: {size if plan['cached'] else 'not cached'}"
    return f"{stage['epochs']} epochs{steps}{patience}", prefix


def _costs(plan: dict[str, Any]) -> tuple[str, ...]:
    image = plan["prefix_multiply_adds"] + plan["trained_multiply_adds"]
    cached = plan["trained_multiply_adds"] if plan["cached"] else image
    totals = plan["all_epochs_multiply_adds"], plan["cached_all_epochs_multiply_adds"]
    return tuple(map(_short, (image, cached, *totals)))


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
