"""medtl pacs and medtl results: studies from a PACS, and results back to it."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medtl.cli import options as shared
from medtl.cli.options import PATH
from medtl.core.progress import StopSignal
from medtl.pacs.objects import KINDS

if TYPE_CHECKING:
    from medtl.errors import MedtlError
    from medtl.pacs.listen import Scoring
    from medtl.pacs.peer import Gate, Tls

kinds = click.option(
    "--kind", "kinds", type=click.Choice(KINDS), multiple=True, help="One kind; repeatable. Default: all."
)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


def peer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add our AE title and the TLS options to a command."""
    for option in (
        click.option("--tls-ca", type=FILE, help="CA that signed the certificate of the other side (PEM)."),
        click.option("--tls-key", type=FILE, help="Its private key (PEM), without a password."),
        click.option("--tls-cert", type=FILE, help="Our certificate (PEM)."),
        click.option("--tls", is_flag=True, help="Use TLS with AE@HOST:PORT; https:// always does."),
        click.option("--ae", default="MEDTL", help="Our AE title for DIMSE."),
    ):
        command = option(command)
    return command


@click.group()
def pacs() -> None:
    """Fetch studies from a PACS, send results to it, or receive studies and score them.

    Addresses are http(s)://... for DICOMweb and AE@host:port for DIMSE. Needs `pip install 'medtl[pacs]'`.
    """


@pacs.command()
@click.argument("source", metavar="FOLDER", type=PATH)
@click.option("--to", required=True, metavar="URL|AE@HOST:PORT", help="The PACS.")
@peer_options
@click.option("--resend", is_flag=True, help="Also send files that the PACS has already acknowledged.")
def push(source: Path, to: str, ae: str, resend: bool, **tls: Any) -> int:
    """Send the DICOM files of FOLDER to a PACS, for example OUT/dicom of medtl results.

    FOLDER remembers what was acknowledged: run the same command again to send the rest.
    """
    from medtl.cli.terminal import TerminalWatcher
    from medtl.pacs.peer import Endpoint, check_ae, parse_peer
    from medtl.pacs.push import push_run

    pacs = Endpoint(parse_peer(to), _tls(**tls), check_ae(ae))
    with StopSignal() as stop, TerminalWatcher(f"medtl pacs push · {source} to {pacs.peer}") as watcher:
        outcome = push_run(source, pacs, watcher, resend=resend, stop=stop)
    skipped = f", {outcome.skipped} already there" if outcome.skipped else ""
    return _finish(outcome.failures, f"{outcome.sent} objects sent{skipped}", str(pacs.peer))


@pacs.command()
@click.option("--from", "source", required=True, metavar="URL|AE@HOST:PORT", help="The PACS.")
@peer_options
@click.option("--modality", help="Only series of this modality, for example MR.")
@click.option("--date", metavar="DATES", help="Study date: 20260131, 20260101- or 20260101-20260131.")
@click.option("--study", metavar="UID", help="Only the study with this StudyInstanceUID.")
@click.option("--limit", type=click.IntRange(1), help="Fetch at most this many studies.")
@click.option("--out", type=PATH, required=True, help="Folder for the studies.")
def pull(source: str, ae: str, out: Path, **settings: Any) -> int:
    """Fetch studies from a PACS by DICOMweb, or by C-FIND and C-GET.

    After an interruption, run the same command again to fetch the rest. File names identify nobody, but the
    files are as the PACS has them, patient data included.
    """
    from medtl.cli.terminal import TerminalWatcher, counted, say
    from medtl.pacs.peer import Endpoint, check_ae, parse_peer
    from medtl.pacs.pull import Query, pull_run

    query = Query(*map(settings.pop, ("modality", "date", "study", "limit")))
    pacs = Endpoint(parse_peer(source), _tls(**settings), check_ae(ae))
    with StopSignal() as stop, TerminalWatcher(f"medtl pacs pull · {pacs.peer}") as watcher:
        outcome = pull_run(pacs, query, out, watcher, stop)
    if not outcome.studies and not outcome.failures:
        say(f"no study on {pacs.peer} matches this query")
        return 0
    studies = counted(outcome.studies, "study", "studies")
    counts = f"{studies}, {outcome.fetched} instances fetched, {outcome.skipped} already there"
    return _finish(outcome.failures, counts, str(out))


@pacs.command()
@click.option("--ae", required=True, help="Our AE title.")
@click.option("--port", type=click.IntRange(0, 65535), required=True, help="0 picks a free port.")
@click.option("--bind", default="127.0.0.1", help="Local address to listen on.")
@click.option("--out", type=PATH, required=True, help="Folder for received studies, results and the journal.")
@click.option("--allow-ae", multiple=True, required=True, help="AE title that may send; repeatable.")
@click.option(
    "--allow-address",
    multiple=True,
    metavar="CIDR",
    help="Addresses that may send, such as 10.1.2.0/24; repeatable. Default: this machine.",
)
@click.option("--score", "run", type=PATH, metavar="RUN", help="Score each study and write its results.")
@kinds
@shared.any_modality
@click.option("--send-to", metavar="URL|AE@HOST:PORT", help="The PACS that receives the results.")
@click.option(
    "--settle",
    type=click.FloatRange(min=0.1),
    default=30.0,
    help="A study is complete after this many seconds without a new instance.",
)
@click.option("--largest", type=click.IntRange(1), default=1024, help="Largest instance in MB.")
@click.option("--associations", type=click.IntRange(1), default=8, help="Most associations at once.")
@click.option("--tls-cert", type=FILE, help="Our certificate (PEM): senders must then use TLS.")
@click.option("--tls-key", type=FILE, help="Its private key (PEM), without a password.")
@click.option("--tls-ca", type=FILE, help="CA (PEM): senders need a certificate signed by it.")
@click.option("--send-tls-ca", type=FILE, help="CA of --send-to (PEM): send over TLS, with --tls-cert.")
def listen(out: Path, settle: float, **options: Any) -> None:
    """Receive studies by C-STORE; score them with --score, forward results with --send-to.

    An instance is on disk before it is acknowledged. After an interruption, run the same command again: no
    study is lost, and results that the PACS has acknowledged are not sent again.
    """
    from medtl.cli.terminal import TerminalWatcher
    from medtl.pacs.listen import listen_run
    from medtl.pacs.peer import check_host

    gate, scoring = _gate(options), _scoring(options)
    tls = _tls(False, options["tls_cert"], options["tls_key"], options["tls_ca"])
    if tls and not tls.certificate:
        raise click.UsageError("--tls-ca needs --tls-cert")
    address = (check_host(options["bind"]), options["port"])
    with StopSignal() as stop, TerminalWatcher(f"medtl pacs listen · {gate.ae}") as watcher:
        listen_run(out, address, gate, watcher, stop, tls=tls, scoring=scoring, settle=settle)


@click.command()
@click.argument("run", type=PATH)
@click.argument("folder", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder for the objects, outside FOLDER.")
@kinds
@click.option(
    "--method",
    help="Saliency method of overlay and map. Default: grad-cam, or integrated-gradients for transformers.",
)
@shared.any_modality
@shared.as_json("the rows as JSON")
def results(run: Path, folder: Path, out: Path, any_modality: bool, as_json: bool, **settings: Any) -> int:
    """Score the DICOM studies of FOLDER with RUN, and write the objects that go back to the PACS.

    sr: the classification as a Structured Report; sc: the heatmap over the image as a Secondary Capture;
    map: the heatmap of a volume as a Parametric Map; fhir: a DiagnosticReport. They contain the patient data
    of their study. Research use only.
    """
    from medtl.cli.terminal import TerminalWatcher, print_json, print_refusals, say
    from medtl.pacs.results import write_results
    from medtl.training.checkpoint import load_finished

    settings["kinds"] = settings["kinds"] or KINDS
    with TerminalWatcher(f"medtl results · {folder}") as watcher:
        checkpoint = load_finished(run, any_modality=any_modality)
        outcome = write_results(checkpoint, folder, out, watcher, **settings)
    refused = [row.prediction for row in outcome.rows if row.refused]
    code = print_refusals(refused, f": see {outcome.table}")
    if as_json:
        print_json([{**asdict(row.prediction), "files": row.files} for row in outcome.rows])
    else:
        files = sum(len(row.files) for row in outcome.rows)
        series = sum(bool(row.files) for row in outcome.rows)
        unlike = sum(row.prediction.ood not in ("", "ok") for row in outcome.rows)
        warning = f" ({unlike} unlike the training images, as the objects state)" if unlike else ""
        say(f"{files} objects about {series} series{warning}, {len(refused)} refused: {outcome.table}")
    return code


def _finish(failures: "tuple[MedtlError, ...]", counts: str, where: str) -> int:
    """Print a line for each failure, and one for the whole; return the exit code."""
    from medtl.cli.terminal import say

    for failure in failures:
        click.echo(f"refused: {failure}", err=True)
    say(f"{counts}, {len(failures)} refused: {where}")
    return 3 if failures else 0


def _gate(options: dict[str, Any]) -> "Gate":
    """Return the limits set by --allow-ae, --allow-address, --largest and --associations."""
    from medtl.pacs.peer import LOOPBACK, MEGABYTE, Gate, check_ae, parse_networks

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
    """Return what --score, --kind and --send-to ask for; None if nothing is scored."""
    from medtl.pacs.listen import Scoring
    from medtl.pacs.peer import Endpoint, Tls, parse_peer

    run, send_to, authority = options["run"], options["send_to"], options["send_tls_ca"]
    if run is None:
        if send_to or options["kinds"]:
            raise click.UsageError("--send-to and --kind need --score: received studies are not forwarded")
        return None
    kinds = options["kinds"] or KINDS
    if send_to and kinds == ("fhir",):
        raise click.UsageError("--send-to sends DICOM objects: add another --kind")
    tls = Tls(options["tls_cert"], options["tls_key"], authority) if authority else None
    pacs = Endpoint(parse_peer(send_to), tls, options["ae"].strip(" ")) if send_to else None
    return Scoring(run, kinds, options["any_modality"], pacs)


def _tls(tls: bool, tls_cert: Path | None, tls_key: Path | None, tls_ca: Path | None) -> "Tls | None":
    """Return the files for TLS, None if no option asks for it."""
    from medtl.pacs.peer import Tls

    if tls_key and not tls_cert:
        raise click.UsageError("--tls-key needs --tls-cert: a key is useless without its certificate")
    return Tls(tls_cert, tls_key, tls_ca) if tls or tls_cert or tls_key or tls_ca else None
