"""medtl demo: the whole tour on the phantoms of sample_data, offline."""

from dataclasses import astuple
from pathlib import Path

import click

from medtl.cli.options import PATH


@click.command()
@click.option("--out", type=PATH, default=Path("medtl-demo"), help="Folder to write to.")
def demo(out: Path) -> None:
    """Tour medtl on phantoms, in about a minute.

    Trains an X-ray and an MRI model, evaluates them, scores unseen studies and writes reports.
    """
    from medtl.cli.terminal import TerminalWatcher, metric_text

    with TerminalWatcher("medtl demo") as watcher:
        from medtl.workflows.demo import median_gain, run_demo

        tours = run_demo(out, watcher=watcher)
    for tour in tours:
        area, accuracy = (metric_text(*astuple(tour.test[name])) for name in ("auroc", "balanced_accuracy"))
        lines = {
            "test AUROC": f"{area}, on patients not used in training",
            "test accuracy": f"{accuracy}, balanced",
            "saliency maps": f"{median_gain(tour.localisations):.1f} times chance inside the planted lesion "
            f"(median of {len(tour.localisations)})",
            "unseen studies": f"{tour.scored} scored, {tour.correct} as planted; {tour.refused} refused",
            "report": tour.report,
            "evaluation": tour.evaluation,
            "how it trained": tour.run_report,
            "run": tour.run,
        }
        if not tour.localisations:
            lines.pop("saliency maps")
        click.echo(
            f"\n{tour.modality} in {tour.seconds:.0f} s: phantoms, so the numbers mean nothing for patients"
        )
        for name, text in lines.items():
            click.echo(f"  {name:<15} {text}")
