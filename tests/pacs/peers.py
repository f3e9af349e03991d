"""The other side: an archive in this process that speaks DIMSE, Orthanc in another, and certificates."""

import json
import shutil
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.imaging.conftest import build_dataset, fixed_uid, pattern, save
from tests.waiting import PATIENCE, wait_until

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def write_instances(folder: Path, count: int = 3, study: object = 0, **elements: Any) -> list[Path]:
    """Write radiographs of one study, each full of what must not be told."""
    from pydicom.uid import ComputedRadiographyImageStorage

    paths = []
    for k in range(count):
        identity = {
            "StudyInstanceUID": fixed_uid("pacs study", study),
            "SeriesInstanceUID": fixed_uid("pacs series", study),
            "SOPInstanceUID": fixed_uid("pacs instance", study, k),
            "PatientID": "CANARY-7",
            "PatientName": "Canary^<script>=cmd()",
            "StudyDate": "20260115",
            "StudyTime": "",
            "AccessionNumber": "",
            "StudyID": "",
            "BitsStored": 12,
        }
        pixels = pattern(12, 10, seed=k)
        dataset = build_dataset(pixels, ComputedRadiographyImageStorage, **{**identity, **elements})
        paths.append(save(dataset, folder / f"{k:03d}.dcm"))
    return paths


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Archive:
    """What an archive has been sent. status: what it answers, by how many it has answered before."""

    def __init__(self) -> None:
        self.received: list[str] = []
        self.status: Callable[[int], int] = lambda _: 0x0000
        self.asked = 0
        self.port = 0

    def store(self, event: Any) -> int:
        """Answer a C-STORE; a status of -1 drops the association."""
        status, self.asked = self.status(self.asked), self.asked + 1
        if status == -1:
            event.assoc.dul.socket.close()
        if status == 0x0000:
            self.received.append(str(event.request.AffectedSOPInstanceUID))
        return max(status, 0)


@contextmanager
def archive(secured: ssl.SSLContext | None = None, kinds: list[Any] | None = None) -> Iterator[Archive]:
    """Run an archive ARCHIVE that lets MEDTL in; kinds: the SOP classes that it takes."""
    from pynetdicom import AE, evt
    from pynetdicom.presentation import AllStoragePresentationContexts

    found = Archive()
    entity = AE("ARCHIVE")
    entity.require_called_aet, entity.require_calling_aet = True, ["MEDTL"]
    entity.supported_contexts = [
        context
        for context in AllStoragePresentationContexts
        if kinds is None or context.abstract_syntax in kinds
    ]
    handlers = [(evt.EVT_C_STORE, found.store)]
    server = entity.start_server(("127.0.0.1", 0), block=False, ssl_context=secured, evt_handlers=handlers)
    found.port = server.server_address[1]
    try:
        yield found
    finally:
        entity.shutdown()


class Certificates(NamedTuple):
    """An authority, a certificate for this machine with its key, and those of a stranger."""

    authority: Path
    certificate: Path
    key: Path
    stranger: Path
    stranger_key: Path


def make_certificates(folder: Path) -> Certificates:
    """Make them anew."""
    import trustme

    files = Certificates(*(folder / f"{name}.pem" for name in Certificates._fields))
    authority = trustme.CA()
    ours = authority.issue_cert("localhost", "127.0.0.1")
    theirs = trustme.CA().issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(files.authority)
    ours.private_key_pem.write_to_path(files.key)
    ours.cert_chain_pems[0].write_to_path(files.certificate)
    theirs.private_key_pem.write_to_path(files.stranger_key)
    theirs.cert_chain_pems[0].write_to_path(files.stranger)
    return files


class Orthanc(NamedTuple):
    """A running Orthanc. url: its DICOMweb service; port: of DIMSE, for the AE title ORTHANC."""

    root: str
    url: str
    port: int

    def count(self, level: str = "instances") -> int:
        """Return how many instances, series or studies it has."""
        with urllib.request.urlopen(f"{self.root}/{level}", timeout=PATIENCE) as answer:
            return len(json.load(answer))


@contextmanager
def orthanc(folder: Path, modalities: dict[str, list[Any]] | None = None) -> Iterator[Orthanc]:
    """Run Orthanc on loopback, its files in a folder; skip where it is not installed."""
    if shutil.which("Orthanc") is None or not PLUGIN.exists():
        pytest.skip("Orthanc is not on this machine (Debian: orthanc, orthanc-dicomweb)")
    web, port = free_port(), free_port()
    config = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "Plugins": [str(PLUGIN)],
        "HttpPort": web,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomPort": port,
        "DicomModalities": modalities or {},
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
    }
    (folder / "orthanc.json").write_text(json.dumps(config))
    log = (folder / "orthanc.log").open("wb")
    process = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
    found = Orthanc(f"http://127.0.0.1:{web}", f"http://127.0.0.1:{web}/dicom-web", port)
    try:
        wait_until(lambda: _answers(found), process)
        yield found
    finally:
        process.kill()
        process.wait(PATIENCE)
        log.close()


def _answers(found: Orthanc) -> bool:
    try:
        return found.count() >= 0
    except OSError:
        return False
