"""medtl demo: the whole tour on the phantoms of sample_data, offline."""

from pathlib import Path

import click


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("medtl-demo"), show_default=True)
def demo(out: Path) -> None:
    """Train an X-ray and an MRI model, evaluate, score unseen studies, report. About a minute."""
    from medtl.cli.terminal import TerminalWatcher, in_words
    from medtl.workflows.demo import median_gain, run_demo

    with TerminalWatcher("medtl demo") as watcher:
        tours = run_demo(out, watcher)
    for tour in tours:
        click.echo(
            f"\n{tour.modality} in {tour.seconds:.0f} s: phantoms, so the numbers say nothing about patients"
        )
        click.echo(f"  test AUROC      {in_words(tour.test['auroc'])}, patients that training never saw")
        click.echo(f"  test accuracy   {in_words(tour.test['balanced_accuracy'])}, balanced")
        if tour.localisations:
            gain, count = median_gain(tour.localisations), len(tour.localisations)
            click.echo(
                f"  saliency maps   {gain:.1f} times chance inside the planted lesion (median of {count})"
            )
        click.echo(f"  unseen studies  {tour.scored} scored, {tour.right} as planted; {tour.refused} refused")
        click.echo(f"  report          {tour.report}")
        click.echo(f"  evaluation      {tour.evaluation}")
        click.echo(f"  how it trained  {tour.run_report}")
        click.echo(f"  run             {tour.run}")
