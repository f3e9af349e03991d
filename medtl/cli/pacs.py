"""medtl pacs: studies from a PACS, and results to it."""

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medtl.core.stopping import StopSignal

if TYPE_CHECKING:
    from medtl.pacs.gate import Gate
    from medtl.pacs.listen import Scoring
    from medtl.pacs.peer import Tls


PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
KINDS = ("sr", "sc", "map", "fhir")
Command = Callable[..., Any]
TLS_OPTIONS = (
    click.option("--tls", "secured", is_flag=True, help="Speak TLS with an AE; https:// does so by itself."),
    click.option("--tls-cert", type=FILE, help="Our certificate, PEM."),
    click.option("--tls-key", type=FILE, help="Its key, PEM, without a password."),
    click.option("--tls-ca", type=FILE, help="The authority that signed the other side's certificate, PEM."),
)


def tls_options(command: Command) -> Command:
    """Add the options of TLS to a command."""
    return reduce(lambda decorated, option: option(decorated), reversed(TLS_OPTIONS), command)


@click.group()
def pacs() -> None:
    """Fetch studies from a PACS, send results to it, or listen for studies and score what comes.

    DICOMweb where an address is http(s)://..., DIMSE where it is AE@host:port. `pip install 'medtl[pacs]'`.
    """


@pacs.command()
@click.argument("source", metavar="FOLDER", type=PATH)
@click.option("--to", required=True, metavar="URL|AE@HOST:PORT", help="The PACS.")
@click.option("--ae", default="MEDTL", show_default=True, help="Our AE title, to an AE.")
@tls_options
@click.option("--anew", is_flag=True, help="Send what was acknowledged before, too.")
@click.pass_context
def push(ctx: click.Context, source: Path, to: str, ae: str, anew: bool, **tls: Any) -> None:
    """Send the DICOM files of FOLDER, as medtl results writes them into OUT/dicom, to a PACS.

    What it has acknowledged is remembered in FOLDER: the same command sends the rest.
    """
    from medtl.cli.terminal import TerminalWatcher
    from medtl.pacs.peer import check_ae, parse_peer
    from medtl.pacs.push import Destination, push_run

    destination = Destination(parse_peer(to), _tls(**tls), check_ae(ae))
    title = f"medtl pacs push · {source} to {destination.peer}"
    with _Stoppable(ctx) as stop, TerminalWatcher(title) as watcher:
        outcome = push_run(source, destination, watcher, anew=anew, stop=stop)
    for failure in outcome.failures:
        click.echo(f"refused: {failure}", err=True)
    kept = f", {outcome.kept} were there" if outcome.kept else ""
    click.echo(f"{outcome.sent} objects sent{kept}, {len(outcome.failures)} refused: {destination.peer}")
    ctx.exit(3 if outcome.failures else 0)


@pacs.command()
@click.option("--from", "source", required=True, metavar="URL|AE@HOST:PORT", help="The PACS.")
@click.option("--ae", default="MEDTL", show_default=True, help="Our AE title, to an AE.")
@click.option("--modality", help="Series of this modality, as MR.")
@click.option("--date", metavar="DATES", help="Studies of 20260131, or 20260101-, or 20260101-20260131.")
@click.option("--study", metavar="UID", help="The study of this StudyInstanceUID.")
@click.option("--limit", type=click.IntRange(1), help="At most so many studies.")
@click.option("--out", type=PATH, required=True, help="Folder for the studies.")
@tls_options
@click.pass_context
def pull(
    ctx: click.Context,
    source: str,
    ae: str,
    modality: str | None,
    date: str | None,
    study: str | None,
    limit: int | None,
    out: Path,
    **tls: Any,
) -> None:
    """Fetch studies from a PACS, over DICOMweb or by C-FIND and C-GET.

    Stopped or killed, the same command goes on. Files have names that tell nothing; what they hold is as the
    PACS has it, patient data included.
    """
    from medtl.cli.terminal import TerminalWatcher, counted, say
    from medtl.pacs.peer import check_ae, parse_peer
    from medtl.pacs.pull import Query, pull_run
    from medtl.pacs.push import Destination

    peer = Destination(parse_peer(source), _tls(**tls), check_ae(ae))
    query = Query(modality, date, study, limit)
    with _Stoppable(ctx) as stop, TerminalWatcher(f"medtl pacs pull · {peer.peer}") as watcher:
        outcome = pull_run(peer, query, out, watcher, stop)
    for failure in outcome.failures:
        click.echo(f"refused: {failure}", err=True)
    counts = f"{outcome.fetched} instances fetched, {outcome.kept} were there"
    if not outcome.studies and not outcome.failures:
        say(f"nothing on {peer.peer} matches this query")
        return
    studies = counted(outcome.studies, "study", "studies")
    say(f"{studies}, {counts}, {len(outcome.failures)} refused: {out}")
    ctx.exit(3 if outcome.failures else 0)


@pacs.command()
@click.option("--ae", required=True, help="Our AE title.")
@click.option("--port", type=click.IntRange(0, 65535), required=True, help="0: any free one.")
@click.option("--bind", default="127.0.0.1", show_default=True, help="Address of this machine to listen on.")
@click.option("--out", type=PATH, required=True, help="Folder for what is received, results and the journal.")
@click.option("--allow-ae", multiple=True, required=True, help="AE title that may send; repeatable.")
@click.option(
    "--allow-address",
    multiple=True,
    metavar="CIDR",
    help="Addresses that may send, as 10.1.2.0/24; repeatable. Default: this machine.",
)
@click.option("--score", "run", type=PATH, metavar="RUN", help="Score each study and write results about it.")
@click.option("--kind", "kinds", type=click.Choice(KINDS), multiple=True, help="Results. Default: all.")
@click.option("--any-modality", is_flag=True, help="Take images whose files name another modality, too.")
@click.option("--send-to", metavar="URL|AE@HOST:PORT", help="The PACS to which results go.")
@click.option(
    "--settle",
    type=click.FloatRange(min=0.1),
    default=30.0,
    show_default=True,
    help="Seconds without a new instance after which a study is whole.",
)
@click.option("--largest", type=click.IntRange(1), default=1024, show_default=True, help="MB of an instance.")
@click.option(
    "--associations", type=click.IntRange(1), default=8, show_default=True, help="At most, at once."
)
@click.option("--tls-cert", type=FILE, help="Our certificate, PEM: whoever sends must speak TLS.")
@click.option("--tls-key", type=FILE, help="Its key, PEM, without a password.")
@click.option("--tls-ca", type=FILE, help="Who sends must show a certificate of this authority, PEM.")
@click.option(
    "--send-tls-ca",
    type=FILE,
    help="The authority of --send-to, PEM: speak TLS, with --tls-cert.",
)
@click.pass_context
def listen(ctx: click.Context, out: Path, settle: float, **options: Any) -> None:
    """Receive studies by C-STORE; score them with --score, send results on with --send-to.

    An instance is on disk before it is acknowledged. Stopped or killed, the same command goes on: no study is
    lost, and what the PACS has acknowledged is not sent again.
    """
    from medtl.cli.terminal import TerminalWatcher
    from medtl.pacs.listen import listen_run
    from medtl.pacs.peer import check_host

    gate, scoring = _gate(options), _scoring(options)
    tls = _tls(False, options["tls_cert"], options["tls_key"], options["tls_ca"])
    if tls and not tls.certificate:
        raise click.UsageError("--tls-ca needs --tls-cert")
    address = (check_host(options["bind"]), options["port"])
    with _Stoppable(ctx) as stop, TerminalWatcher(f"medtl pacs listen · {gate.ae}") as watcher:
        listen_run(out, address, gate, watcher, stop, tls=tls, scoring=scoring, settle=settle)


def _gate(options: dict[str, Any]) -> "Gate":
    """Return whom --allow-ae, --allow-address and the limits let in."""
    from medtl.pacs.gate import LOOPBACK, MEGABYTE, Gate, parse_networks
    from medtl.pacs.peer import check_ae

    addresses = options["allow_address"]
    if not addresses and options["bind"] not in ("127.0.0.1", "::1", "localhost"):
        raise click.UsageError("--bind to a network needs --allow-address: who may send?")
    return Gate(
        ae=check_ae(options["ae"]),
        callers=tuple(map(check_ae, options["allow_ae"])),
        networks=parse_networks(addresses or LOOPBACK),
        largest=options["largest"] * MEGABYTE,
        associations=options["associations"],
    )


def _scoring(options: dict[str, Any]) -> "Scoring | None":
    """Return what --score, --kind and --send-to ask for; None where nothing is scored."""
    from medtl.pacs.listen import Scoring
    from medtl.pacs.peer import Tls, parse_peer
    from medtl.pacs.push import Destination

    run, send_to, authority = options["run"], options["send_to"], options["send_tls_ca"]
    kinds = options["kinds"] or KINDS
    if run is None:
        if send_to or options["kinds"]:
            raise click.UsageError("--send-to and --kind need --score: what was received is not sent on")
        return None
    if send_to and kinds == ("fhir",):
        raise click.UsageError("--send-to sends DICOM objects: name another --kind, too")
    tls = Tls(options["tls_cert"], options["tls_key"], authority) if authority else None
    destination = Destination(parse_peer(send_to), tls, options["ae"].strip(" ")) if send_to else None
    return Scoring(run, kinds, options["any_modality"], destination)


def _tls(
    secured: bool = False,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    tls_ca: Path | None = None,
) -> "Tls | None":
    """Return how TLS is spoken, None where nothing asks for it."""
    from medtl.pacs.peer import Tls

    if tls_key and not tls_cert:
        raise click.UsageError("--tls-key needs --tls-cert: a key alone names nobody")
    return Tls(tls_cert, tls_key, tls_ca) if secured or tls_cert or tls_key or tls_ca else None


class _Stoppable:
    """Ends a command that was stopped with its line, and the exit code of the signal."""

    def __init__(self, ctx: click.Context) -> None:
        self.ctx = ctx
        self.stop = StopSignal()

    def __enter__(self) -> StopSignal:
        return self.stop.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from medtl.core.progress import StoppedError

        self.stop.__exit__(kind, error, trace)
        if isinstance(error, StoppedError):
            click.echo(f"medtl: {error}", err=True)
            self.ctx.exit(self.stop.exit_code)
        if isinstance(error, KeyboardInterrupt):
            click.echo("medtl: [interrupted] stopped by the user: the same command goes on", err=True)
            self.ctx.exit(self.stop.exit_code)


@click.command()
@click.argument("run", type=PATH)
@click.argument("folder", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder for the objects, outside FOLDER.")
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(KINDS),
    multiple=True,
    help="Write this kind alone; may be repeated. [default: all]",
)
@click.option(
    "--method",
    help="Saliency method of overlay and map. Default: grad-cam, or integrated-gradients for transformers.",
)
@click.option("--any-modality", is_flag=True, help="Take images whose files name another modality, too.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON on stdout.")
@click.pass_context
def results(
    ctx: click.Context,
    run: Path,
    folder: Path,
    out: Path,
    kinds: tuple[str, ...],
    method: str | None,
    any_modality: bool,
    as_json: bool,
) -> None:
    """Score the DICOM studies of FOLDER with RUN, and write what goes back to the PACS about each.

    sr: the classification as a Structured Report; sc: the heatmap over the image as a Secondary Capture;
    map: the heatmap of a volume as a Parametric Map; fhir: a DiagnosticReport. They hold the patient data of
    their study; research use only.
    """
    import json
    from dataclasses import asdict

    from medtl.cli.terminal import TerminalWatcher, print_refused_rows, say
    from medtl.pacs.results import write_results
    from medtl.training.checkpoint import load_finished

    with TerminalWatcher(f"medtl results · {folder}") as watcher:
        checkpoint = load_finished(run, any_modality=any_modality)
        outcome = write_results(checkpoint, folder, out, watcher, kinds=kinds or KINDS, method=method)
    refused = [row.prediction for row in outcome.rows if row.refused]
    print_refused_rows(refused, outcome.table)
    if as_json:
        rows = [{**asdict(row.prediction), "files": row.files} for row in outcome.rows]
        click.echo(json.dumps(rows, indent=2))
    else:
        files = sum(len(row.files) for row in outcome.rows)
        series = sum(bool(row.files) for row in outcome.rows)
        unlike = sum(row.prediction.ood not in ("", "ok") for row in outcome.rows)
        told = f" ({unlike} not like the training images: the objects say so)" if unlike else ""
        say(f"{files} objects about {series} series{told}, {len(refused)} refused: {outcome.table}")
    ctx.exit(3 if refused else 0)
