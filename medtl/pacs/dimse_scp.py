"""Listen for C-STORE and C-ECHO (PS3.4 annexes A and B) from the peers that a gate admits.

connection -> Gate: address, TLS, AE titles -> instance -> save -> status: success once it is on disk
"""

import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import BaseServer
from typing import Any
from weakref import WeakKeyDictionary

from pydicom.uid import DeflatedExplicitVRLittleEndian
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
from pynetdicom.association import Association
from pynetdicom.presentation import AllStoragePresentationContexts
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import ThreadedAssociationServer

from medtl.core.files import unwritable
from medtl.errors import MedtlError, OutputError, PacsError, ReadError
from medtl.pacs.peer import AE_TITLE, MEGABYTE, Gate, Tls, server_tls

logger = logging.getLogger(__name__)
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # its messages quote patient data

HANDSHAKE_SECONDS, END_SECONDS = 10.0, 2.0
# A deflated data set can be a bomb.
SYNTAXES: list[Any] = [syntax for syntax in ALL_TRANSFER_SYNTAXES if syntax != DeflatedExplicitVRLittleEndian]
SUCCESS, DUPLICATE, OUT_OF_RESOURCES, MISMATCH, NOT_UNDERSTOOD = 0x0000, 0x0111, 0xA700, 0xA900, 0xC000
STATUSES = {"pacs-duplicate": DUPLICATE, "pacs-mismatch": MISMATCH}

# Saves the bytes of a DICOM file that was announced with a SOP class and instance UID.
Save = Callable[[bytes, str, str], None]
# Receives each fault, to show it as one line.
Report = Callable[[MedtlError], None]


@contextmanager
def listening(host: str, port: int, gate: Gate, save: Save, report: Report, tls: Tls | None) -> Iterator[int]:
    """Listen in threads until the block ends, then end all associations; yield the port.

    Raises PacsError pacs-port; ConfigError pacs-tls.
    """
    try:
        server = _Server((host, port), gate, save, report, tls)
    except OSError as error:
        reason = error.strerror or str(error)
        raise PacsError("pacs-port", reason, where=f"{host}:{port}", fix="choose another one") from error
    thread = threading.Thread(target=server.serve_forever, name="medtl-pacs", daemon=True)
    thread.start()
    before = threading.excepthook
    # Malformed bytes can end a thread of pynetdicom: log it instead of printing a traceback.
    threading.excepthook = lambda ended: logger.warning("an association ended: %s", ended.exc_type.__name__)
    try:
        yield server.server_address[1]
    finally:
        BaseServer.shutdown(server)  # pynetdicom's own works only for a server that the entity has started
        for association in server.active_associations:
            _end(association)
        threading.excepthook = before
        server.server_close()
        thread.join()


def _end(association: Association) -> None:
    """End an association, or a connection before it is one: its thread would keep the process alive."""
    if association.is_established:
        association.abort()
    elif association.dul.socket:
        association.dul.socket.close()
    association.dul.kill_dul()
    association.dul.join(END_SECONDS)


class _Server(ThreadedAssociationServer):
    """Takes instances from those that a gate admits. Its methods run in the threads of pynetdicom.

    A slow handshake delays nobody else, nor the end.
    """

    daemon_threads, block_on_close = True, False

    def __init__(
        self, address: tuple[str, int], gate: Gate, save: Save, report: Report, tls: Tls | None
    ) -> None:
        """Listen on an address. Raises OSError; ConfigError pacs-tls."""
        self.gate, self.save, self.report = gate, save, report
        # Bytes of the message that each association is sending, counted in its own thread.
        self.pending: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        entity = AE(gate.ae)
        entity.require_called_aet, entity.require_calling_aet = True, list(gate.callers)
        entity.maximum_associations = gate.associations
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = gate.idle
        entity.supported_contexts = AllStoragePresentationContexts
        for context in entity.supported_contexts:
            context.transfer_syntax = SYNTAXES
        entity.add_supported_context(Verification)
        secured = server_tls(tls) if tls else None
        super().__init__(entity, address, gate.ae, entity.supported_contexts, secured)
        self.bind(evt.EVT_C_STORE, self.store)
        self.bind(evt.EVT_C_ECHO, lambda _: SUCCESS)
        self.bind(evt.EVT_REJECTED, self.explain_rejection)
        self.bind(evt.EVT_DATA_RECV, self.count_bytes)
        self.bind(evt.EVT_ESTABLISHED, self.reset_count)
        self.bind(evt.EVT_DIMSE_RECV, self.reset_count)

    def refuse(self, address: str, reason: str, fix: str) -> None:
        """Report that a peer was refused."""
        self.report(PacsError("pacs-refused", f"was refused: {reason}", where=address, fix=fix))

    def explain_rejection(self, event: Any) -> None:
        """Report why an association was rejected."""
        request, address = event.assoc.requestor.primitive, event.assoc.requestor.address
        caller, called = str(request.calling_ae_title).strip(), str(request.called_ae_title).strip()
        if called != self.gate.ae:
            self.refuse(address, "it calls another AE title than ours", "correct the title at the sender")
        elif caller not in self.gate.callers:
            name = caller if AE_TITLE.fullmatch(caller) else "its AE title"
            self.refuse(address, f"{name} is not allowed", "add it with --allow-ae")
        else:
            self.refuse(address, "too many associations", "the sender will retry")

    def count_bytes(self, event: Any) -> None:
        """Close the connection when a message exceeds the largest instance."""
        size = self.pending.get(event.assoc, 0) + len(event.data)
        self.pending[event.assoc] = size
        if size > self.gate.largest:
            reason = f"an instance has more than {self.gate.largest // MEGABYTE} MB"
            self.refuse(event.assoc.requestor.address, reason, "allow more with --largest")
            event.assoc.dul.socket.close()

    def reset_count(self, event: Any) -> None:
        """Start counting again: a message is complete."""
        self.pending[event.assoc] = 0

    def store(self, event: Any) -> int:
        """Save an instance, and return the status (PS3.4 B.2.3)."""
        request = event.request
        try:
            content = event.encoded_dataset()
            self.save(content, str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID))
        except (OutputError, OSError) as error:
            self.report(error if isinstance(error, OutputError) else unwritable(Path(), error))
            return OUT_OF_RESOURCES
        except ReadError as error:
            self.report(error)
            return STATUSES.get(error.code, NOT_UNDERSTOOD)
        return SUCCESS

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection, before any TLS handshake."""
        assert self.socket is not None
        return self.socket.accept()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Return whether a connection is admitted; if not, report it and close it."""
        admitted = self.gate.admits(client_address[0])
        if not admitted:
            self.refuse(client_address[0], "its address is not allowed", "add it with --allow-address")
        return admitted

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Do the TLS handshake, if any, and associate: this runs in the connection's own thread."""
        if self.ssl_context:
            request.settimeout(HANDSHAKE_SECONDS)
            request = self.ssl_context.wrap_socket(request, server_side=True)
        request.settimeout(self.gate.idle)  # or half a message could hold an association forever
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report what ended a connection early, such as a handshake without a certificate."""
        kind = type(sys.exc_info()[1]).__name__
        self.refuse(client_address[0], f"the handshake failed ({kind})", "check TLS on both sides")
