"""medtl tune: search a recipe's rates, stages and augmentation."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medtl.core.stopping import StopSignal

if TYPE_CHECKING:
    from medtl.workflows.study import TrialRow
    from medtl.workflows.tune import TuneOutcome

PATH = click.Path(path_type=Path)
BEST_SHOWN = 5


@click.command()
@click.option("--modality", type=click.Choice(["xray", "mri"]), help="Which recipe to start from.")
@click.option("--data", type=PATH, help="Folder of studies, or a MedMNIST .npz. Default: sample_data.")
@click.option("--labels", type=PATH, help="Label table. Default: labels.csv in the folder.")
@click.option("--out", type=PATH, required=True, help="Study folder; one that is there is gone on with.")
@click.option("--config", "recipe", type=PATH, help="Recipe (YAML). Default: as for medtl train.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, e.g. schedule=full."
)
@click.option("--trials", type=click.IntRange(min=1), default=20, show_default=True, help="Trials in all.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Begin no trial after so long.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the search; a run's is fit.seed.")
@click.option("--space", type=PATH, help="What to search (YAML). Default: what suits the schedule.")
@click.option("--metric", default="auroc", show_default=True, help="Any metric of the validation part.")
@click.option(
    "--keep", type=click.IntRange(min=1), default=3, show_default=True, help="Trials that keep checkpoints."
)
@click.option("--evaluate", is_flag=True, help="Judge the best trial on the test part.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
@click.pass_context
def tune(
    ctx: click.Context,
    modality: str | None,
    data: Path | None,
    labels: Path | None,
    out: Path,
    recipe: Path | None,
    overrides: tuple[str, ...],
    trials: int,
    minutes: float | None,
    seed: int,
    space: Path | None,
    metric: str,
    keep: int,
    evaluate: bool,
    as_json: bool,
) -> None:
    """Search for a better recipe: each trial is a run, and what is frozen is computed once for all.

    \b
    medtl tune --modality xray --data FOLDER --labels labels.csv --out STUDY
    medtl train --config STUDY/best.yaml --data FOLDER --labels labels.csv --out RUN

    The same command again goes on where the search was, to --trials in all. Ctrl-C and SIGTERM end it after
    the current step with all that was done saved; a second one ends it at once. Several processes may work on
    one STUDY at once. STUDY/space.yaml says what is searched: copy it, change it, and give it with --space.
    """
    import json

    from medtl.cli.terminal import TerminalWatcher, print_refusals
    from medtl.config import load_config, sample_data
    from medtl.core.progress import StoppedError
    from medtl.workflows.study import TuneOptions
    from medtl.workflows.tune import tune_run

    if modality is None and recipe is None:
        raise click.UsageError("give --modality xray or mri, or a recipe with --config")
    config = load_config(modality, recipe, overrides)
    options = TuneOptions(trials, minutes, seed, metric, keep, evaluate)
    stop = StopSignal()
    try:
        with stop, TerminalWatcher(f"medtl tune · {config.modality}") as watcher:
            if data is None:
                data = sample_data(config.modality)
                watcher.note("data", f"no --data was named: searching on the phantoms of {data}")
            outcome = tune_run(data, labels, out, config, watcher, options, space, stop=stop)
    except StoppedError as error:
        click.echo(f"medtl: {error}", err=True)
        ctx.exit(stop.exit_code)
    except KeyboardInterrupt:
        fix = "what was saved is kept: go on with the same command"
        click.echo(f"medtl: [interrupted] {out}: stopped by the user; {fix}", err=True)
        ctx.exit(stop.exit_code)
    if as_json:
        click.echo(json.dumps(to_json(outcome), indent=2, allow_nan=False))
    else:
        print_outcome(outcome)
    print_refusals(outcome.refusals)
    ctx.exit(3 if outcome.refusals else 0)


def print_outcome(outcome: "TuneOutcome") -> None:
    """Print the best trials, what mattered, what a trial cost and where everything is, on stdout."""
    from medtl.cli.terminal import print_evaluation
    from medtl.workflows.study import describe_values

    click.echo(f"\n{_counts(outcome)}; the best by validation {outcome.metric}:")
    for row in _shown(outcome):
        click.echo(f"  trial {row.number:<4} {_score(row)}  {describe_values(row)}")
    if outcome.importances:
        shares = (f"{key} {share:.0%}" for key, share in outcome.importances.items())
        click.echo(f"\nwhat mattered: {', '.join(shares)}")
    if outcome.cost:
        click.echo(
            f"\na trial took {outcome.cost['trial']:.1f} s (median), {_pace(outcome):.1f} trials a minute"
        )
    for line in outcome.told:
        click.echo(f"note: {line}")
    if outcome.test is not None:
        print_evaluation(outcome.test, f"\nTrial {outcome.best[0].number} on the test part")
    click.echo(
        f"\nrecipe of the best: {outcome.root / 'best.yaml'}; its run: {_run(outcome, outcome.best[0])}"
    )
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
        "trials_a_minute": round(_pace(outcome), 3),
        "seconds": round(outcome.seconds, 2),
        "test": evaluation_json(outcome.test) if outcome.test is not None else None,
        "notes": list(outcome.told),
    }


def _row_json(outcome: "TuneOutcome", row: "TrialRow") -> dict[str, Any]:
    score = row.score
    numbers = (score.value, score.low, score.high) if score else ()
    named = zip(("value", "low", "high"), numbers, strict=False)
    return {
        "trial": row.number,
        **{name: number if number == number else None for name, number in named},
        "values": dict(row.values),
        "recipe": row.recipe,
        "run": str(_run(outcome, row)),
    }


def _shown(outcome: "TuneOutcome") -> list["TrialRow"]:
    """Return the best trials, and the recipe's own where it is not among them."""
    best = list(outcome.best[:BEST_SHOWN])
    return best + [row for row in outcome.best[BEST_SHOWN:] if row.recipe][:1]


def _states(outcome: "TuneOutcome") -> dict[str, int]:
    states = [row.state for row in outcome.rows]
    return {state: states.count(state) for state in sorted(set(states))}


def _counts(outcome: "TuneOutcome") -> str:
    parts = ", ".join(f"{count} {state}" for state, count in _states(outcome).items())
    return f"{len(outcome.rows)} trials ({parts})"


def _score(row: "TrialRow") -> str:
    if row.score is None:
        return ""
    low, high = row.score.low, row.score.high
    return f"{row.score.value:.3f}" + (f" ({low:.3f} to {high:.3f})" if low == low else "")


def _pace(outcome: "TuneOutcome") -> float:
    return 60 * outcome.trials_here / outcome.seconds


def _run(outcome: "TuneOutcome", row: "TrialRow") -> Path:
    return outcome.root / "trials" / f"{row.number:04d}"
