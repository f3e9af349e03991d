"""medtl tune: search for a better recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medtl.cli import options
from medtl.cli.options import PATH
from medtl.core.progress import StopSignal

if TYPE_CHECKING:
    from medtl.workflows.search import TrialRow
    from medtl.workflows.tune import TuneOutcome

BEST_SHOWN = 5


@click.command()
@options.recipe
@options.data
@options.labels
@click.option("--out", type=PATH, required=True, help="Folder of the search; one that exists is resumed.")
@click.option("--trials", type=click.IntRange(1), default=20, help="Trials in total.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Start no trial after this time.")
@click.option("--seed", default=0, help="Seed of the search.")
@click.option("--space", type=PATH, help="What to search (YAML). Default: what suits the schedule.")
@click.option("--metric", default="auroc", help="Validation metric to optimise.")
@click.option("--keep", type=click.IntRange(1), default=3, help="How many best trials keep checkpoints.")
@click.option("--evaluate", is_flag=True, help="Evaluate the best trial on the test part.")
@options.as_json()
def tune(modality: Any, config: Path | None, out: Path, as_json: bool, **settings: Any) -> int:
    """Search for a better recipe; each trial is a run.

    Frozen layers are computed once for all trials.

    \b
    medtl tune --modality xray --data FOLDER --labels labels.csv --out SEARCH
    medtl train --config SEARCH/best.yaml --data FOLDER --labels labels.csv --out RUN

    The same command resumes the search, to --trials in total. Ctrl-C and SIGTERM stop it after the current
    step and save everything; a second one stops at once. Several processes may work on one SEARCH at the same
    time. SEARCH/space.yaml says what is searched: copy it, change it, and give it with --space.
    """
    from medtl.cli.terminal import TerminalWatcher, print_json, print_refusals

    options.check_recipe(modality, config)
    with StopSignal() as stop, TerminalWatcher(f"medtl tune · {modality or config}") as watcher:
        from medtl.workflows import tune as workflow

        outcome = workflow.tune(modality, config=config, out=out, watcher=watcher, stop=stop, **settings)
    if as_json:
        print_json(to_json(outcome))
    else:
        print_outcome(outcome)
    return print_refusals(outcome.refusals)


def print_outcome(outcome: "TuneOutcome") -> None:
    """Print the best trials, what mattered, what a trial cost and where everything is, on stdout."""
    from medtl.cli.terminal import metric_text, print_evaluation
    from medtl.evaluation.evaluate import to_json as evaluation_json

    states = ", ".join(f"{count} {state}" for state, count in _states(outcome).items())
    click.echo(f"\n{len(outcome.rows)} trials ({states}); the best by validation {outcome.metric}:")
    best = list(outcome.best[:BEST_SHOWN])
    for row in best + [row for row in outcome.best[BEST_SHOWN:] if row.recipe][:1]:
        click.echo(f"  trial {row.number:<4} {metric_text(*row.bounds)}  {row.describe_values()}")
    if outcome.importances:
        shares = (f"{key} {share:.0%}" for key, share in outcome.importances.items())
        click.echo(f"\nwhat mattered: {', '.join(shares)}")
    if outcome.cost:
        seconds, pace = outcome.cost["trial"], _trials_a_minute(outcome)
        click.echo(f"\na trial took {seconds:.1f} s (median), {pace:.1f} trials a minute")
    for line in outcome.notes:
        click.echo(f"note: {line}")
    if outcome.test is not None:
        title = f"\nTrial {outcome.best[0].number} on the test part"
        print_evaluation(evaluation_json(outcome.test), title)
    run = _run(outcome, outcome.best[0])
    click.echo(f"\nbest recipe: {outcome.root / 'best.yaml'}; its run: {run}")
    click.echo(f"all trials: {outcome.root / 'trials.csv'}")


def to_json(outcome: "TuneOutcome") -> dict[str, Any]:
    """Return plain data without NaN."""
    from medtl.evaluation.evaluate import to_json as evaluation_json

    return {
        "study": str(outcome.root),
        "metric": outcome.metric,
        "states": _states(outcome),
        "best": [_row_json(outcome, row) for row in outcome.best[:BEST_SHOWN]],
        "importances": dict(outcome.importances),
        "median_seconds": dict(outcome.cost),
        "trials_a_minute": round(_trials_a_minute(outcome), 3),
        "seconds": round(outcome.seconds, 2),
        "test": evaluation_json(outcome.test) if outcome.test is not None else None,
        "notes": list(outcome.notes),
    }


def _row_json(outcome: "TuneOutcome", row: "TrialRow") -> dict[str, Any]:
    numbers = dict(zip(("value", "low", "high"), row.bounds, strict=True))
    return {
        "trial": row.number,
        **{name: number if number == number else None for name, number in numbers.items()},
        "values": dict(row.values),
        "recipe": row.recipe,
        "run": str(_run(outcome, row)),
    }


def _states(outcome: "TuneOutcome") -> dict[str, int]:
    states = [row.state for row in outcome.rows]
    return {state: states.count(state) for state in sorted(set(states))}


def _trials_a_minute(outcome: "TuneOutcome") -> float:
    return 60 * outcome.trials_here / outcome.seconds


def _run(outcome: "TuneOutcome", row: "TrialRow") -> Path:
    return outcome.root / "trials" / f"{row.number:04d}"
