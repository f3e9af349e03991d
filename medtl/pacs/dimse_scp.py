"""Listen for C-STORE and C-ECHO (PS3.4 annexes A and B) from whom a gate lets in.

connection -> Gate: address, TLS, AE titles -> instance -> keep -> status: success once it is on disk
"""

import logging
import socket
import ssl
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
from medtl.pacs.gate import MEGABYTE, Gate
from medtl.pacs.peer import AE_TITLE, Tls, server_tls

logger = logging.getLogger(__name__)
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # its messages quote what is received

HANDSHAKE_SECONDS, END_SECONDS = 10.0, 2.0
# A deflated data set can be a bomb.
SYNTAXES: list[Any] = [syntax for syntax in ALL_TRANSFER_SYNTAXES if syntax != DeflatedExplicitVRLittleEndian]
SUCCESS, DUPLICATE, OUT_OF_RESOURCES, MISMATCH, NOT_UNDERSTOOD = 0x0000, 0x0111, 0xA700, 0xA900, 0xC000
STATUSES = {"pacs-duplicate": DUPLICATE, "pacs-mismatch": MISMATCH}

# Receives the bytes of a DICOM file, and the class and UID under which it was announced.
Keep = Callable[[bytes, str, str], None]
# Is told a fault in a line.
Tell = Callable[[MedtlError], None]


@contextmanager
def listening(host: str, port: int, gate: Gate, keep: Keep, tell: Tell, tls: Tls | None) -> Iterator[int]:
    """Listen in threads until the block ends, then end all associations; yield the port.

    Raises PacsError pacs-port; ConfigError pacs-tls.
    """
    secured = server_tls(tls) if tls else None
    server = _bind(host, port, secured, _Reception(gate, keep, tell))
    thread = threading.Thread(target=server.serve_forever, name="medtl-pacs", daemon=True)
    thread.start()
    try:
        with _without_tracebacks():
            try:
                yield server.server_address[1]
            finally:
                BaseServer.shutdown(server)  # pynetdicom's own asks the entity to have started the server
                for association in server.active_associations:
                    _end(association)
    finally:
        server.server_close()
        thread.join()


@contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Let a thread of pynetdicom that odd bytes have ended say so in the log."""
    before = threading.excepthook
    threading.excepthook = lambda ended: logger.warning("an association ended: %s", ended.exc_type.__name__)
    try:
        yield
    finally:
        threading.excepthook = before


def _end(association: Association) -> None:
    """End an association, or what has not become one: the process would wait for its thread."""
    if association.is_established:
        association.abort()
    elif association.dul.socket:
        association.dul.socket.close()
    association.dul.kill_dul()
    association.dul.join(END_SECONDS)


def _bind(host: str, port: int, secured: ssl.SSLContext | None, reception: "_Reception") -> "_GatedServer":
    gate = reception.gate
    entity = AE(gate.ae)
    entity.require_called_aet, entity.require_calling_aet = True, list(gate.callers)
    entity.maximum_associations = gate.associations
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = gate.idle
    entity.supported_contexts = AllStoragePresentationContexts
    for context in entity.supported_contexts:
        context.transfer_syntax = SYNTAXES
    entity.add_supported_context(Verification)
    try:
        server = entity.make_server(
            (host, port),
            ssl_context=secured,
            evt_handlers=reception.handlers(),
            server_class=_GatedServer,
            reception=reception,
        )
        assert isinstance(server, _GatedServer)
        return server
    except OSError as error:
        reason = error.strerror or str(error)
        raise PacsError("pacs-port", reason, where=f"{host}:{port}", fix="choose another one") from error


class _Reception:
    """What happens to connections and instances. Its methods run in the threads of pynetdicom."""

    def __init__(self, gate: Gate, keep: Keep, tell: Tell) -> None:
        self.gate, self.keep, self.tell = gate, keep, tell
        # Bytes of the message that an association is sending; they are counted in its own thread.
        self.pending: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def handlers(self) -> list[Any]:
        """Return what is asked and told of an association."""
        return [
            (evt.EVT_C_STORE, self.store),
            (evt.EVT_C_ECHO, lambda _: SUCCESS),
            (evt.EVT_REJECTED, self.rejected),
            (evt.EVT_DATA_RECV, self.count),
            (evt.EVT_ESTABLISHED, self.whole),
            (evt.EVT_DIMSE_RECV, self.whole),
        ]

    def admits(self, address: str) -> bool:
        """Say whether a connection may come from an address; if not, it is told."""
        if self.gate.admits(address):
            return True
        self.refuse(address, "its address is not allowed", "add it with --allow-address")
        return False

    def refuse(self, address: str, reason: str, fix: str) -> None:
        """Tell that somebody was not let in."""
        self.tell(PacsError("pacs-refused", f"was not let in: {reason}", where=address, fix=fix))

    def rejected(self, event: Any) -> None:
        """Tell why an association was rejected."""
        asked, address = event.assoc.requestor.primitive, event.assoc.requestor.address
        caller, called = str(asked.calling_ae_title).strip(), str(asked.called_ae_title).strip()
        if called != self.gate.ae:
            self.refuse(address, "it calls another AE title than ours", "mend it there")
        elif caller not in self.gate.callers:
            name = caller if AE_TITLE.fullmatch(caller) else "its AE title"
            self.refuse(address, f"{name} is not allowed", "add it with --allow-ae")
        else:
            self.refuse(address, "too many associations", "it will try again")

    def count(self, event: Any) -> None:
        """Hang up on a message that is larger than an instance may be."""
        size = self.pending.get(event.assoc, 0) + len(event.data)
        self.pending[event.assoc] = size
        if size > self.gate.largest:
            reason = f"an instance has more than {self.gate.largest // MEGABYTE} MB"
            self.refuse(event.assoc.requestor.address, reason, "allow more with --largest")
            event.assoc.dul.socket.close()

    def whole(self, event: Any) -> None:
        """A message has come to its end."""
        self.pending[event.assoc] = 0

    def store(self, event: Any) -> int:
        """Keep an instance, and return the status (PS3.4 B.2.3)."""
        request = event.request
        try:
            content = event.encoded_dataset()
            self.keep(content, str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID))
        except OutputError as error:
            self.tell(error)
            return OUT_OF_RESOURCES
        except OSError as error:
            self.tell(unwritable(Path(), error))
            return OUT_OF_RESOURCES
        except ReadError as error:
            self.tell(error)
            return STATUSES.get(error.code, NOT_UNDERSTOOD)
        return SUCCESS


class _GatedServer(ThreadedAssociationServer):
    """A server that looks at addresses first, and in which a slow handshake holds up nobody else."""

    daemon_threads, block_on_close = True, False

    def __init__(self, *arguments: Any, reception: _Reception, **more: Any) -> None:
        self.reception = reception
        super().__init__(*arguments, **more)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection, without TLS as yet."""
        assert self.socket is not None
        return self.socket.accept()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Say whether a connection goes on; it is closed where not."""
        return self.reception.admits(client_address[0])

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Speak TLS if we do, then associate: this runs in the connection's own thread."""
        if self.ssl_context:
            request.settimeout(HANDSHAKE_SECONDS)
            request = self.ssl_context.wrap_socket(request, server_side=True)
        request.settimeout(self.reception.gate.idle)  # or half a message could hold an association for ever
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tell what ended a connection before it was one, as a handshake without a certificate."""
        kind = type(sys.exc_info()[1]).__name__
        self.reception.refuse(client_address[0], f"the handshake failed ({kind})", "check TLS on both sides")
