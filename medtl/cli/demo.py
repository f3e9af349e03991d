"""medtl demo: the whole tour on the phantoms of sample_data, offline."""

from pathlib import Path

import click


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("medtl-demo"), show_default=True)
def demo(out: Path) -> None:
    """Train an X-ray and an MRI model, evaluate, score unseen studies and write reports. About five minutes."""
    from medtl.cli.terminal import TerminalWatcher
    from medtl.demo import run_demo

    with TerminalWatcher("medtl demo") as watcher:
        tours = run_demo(out, watcher)
    for tour in tours:
        click.echo(tour.summary())
