"""Options -> the PACS to connect to, `http(s)://...` or `AE@host:port`, TLS, and whom a listener admits."""

import re
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit

from medtl.errors import ConfigError, PacsError

# PS3.5 6.2: up to 16 characters, no backslash, no control characters; spaces at the ends mean nothing.
AE_TITLE = re.compile(r"[\x21-\x5b\x5d-\x7e](?:[\x20-\x5b\x5d-\x7e]{0,14}[\x21-\x5b\x5d-\x7e])?")
DIMSE = re.compile(r"(?P<ae>.+)@(?:\[(?P<six>[0-9a-fA-F:]+)\]|(?P<host>[^@:/\s]+)):(?P<port>\d{1,5})")
LOOPBACK = ("127.0.0.0/8", "::1/128")
MEGABYTE = 2**20


@dataclass(frozen=True)
class Tls:
    """PEM files: our certificate, its key, and the CA that signed the other side's certificate."""

    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None


@dataclass(frozen=True)
class WebPeer:
    """Base URL of a DICOMweb service."""

    url: str

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class DimsePeer:
    """An application entity."""

    ae: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.ae}@{host}:{self.port}"


Peer = WebPeer | DimsePeer


@dataclass(frozen=True)
class Endpoint:
    """A PACS, the TLS files for it, and the AE title under which we call it."""

    peer: Peer
    tls: Tls | None = None
    our_ae: str = "MEDTL"


@dataclass(frozen=True)
class Gate:
    """Limits of a listener. ae: our title; callers: theirs; largest: bytes per instance.

    idle: seconds of silence after which an association is ended.
    """

    ae: str
    callers: tuple[str, ...]
    networks: tuple[IPv4Network | IPv6Network, ...]
    largest: int = 1024 * MEGABYTE
    associations: int = 8
    idle: float = 60.0

    def admits(self, address: str) -> bool:
        """Return whether an address may connect."""
        ip = ip_address(address.split("%")[0])
        ip = getattr(ip, "ipv4_mapped", None) or ip
        return any(ip in network for network in self.networks)


def parse_peer(text: str) -> Peer:
    """Read an address. Raises ConfigError pacs-address, which never repeats a password."""
    if "://" in text:
        return _parse_web(text)
    parts = DIMSE.fullmatch(text)
    if not parts or not 0 < int(parts["port"]) < 65536:
        fix = "give AE@host:port, or http(s)://..."
        raise ConfigError("pacs-address", "is not the address of a PACS", where=text, fix=fix)
    return DimsePeer(check_ae(parts["ae"]), check_host(parts["six"] or parts["host"]), int(parts["port"]))


def _parse_web(text: str) -> WebPeer:
    place = text.rpartition("@")[2]  # without a password
    if "@" in text.split("/")[2]:
        fix = "put user and password into ~/.netrc"
        raise ConfigError("pacs-address", "contains credentials", where=place, fix=fix)
    with suppress(ValueError):  # an unclosed bracket, a port that is not a number
        parts = urlsplit(text)
        known = parts.scheme in ("http", "https") and parts.port != 0
        if known and parts.hostname and not parts.query and not parts.fragment:
            check_host(parts.hostname)
            return WebPeer(text.rstrip("/"))
    fix = "give http(s)://host[:port]/path, with the path from the manual of the PACS"
    raise ConfigError("pacs-address", "is not the base URL of a DICOMweb service", where=place, fix=fix)


def check_ae(title: str) -> str:
    """Return an AE title without spaces at its ends. Raises ConfigError pacs-address."""
    if not AE_TITLE.fullmatch(title.strip(" ")):
        reason = "is not an AE title (1 to 16 ASCII characters, no backslash)"
        raise ConfigError("pacs-address", reason, where=title, fix="use the title configured in the PACS")
    return title.strip(" ")


def check_host(host: str) -> str:
    """Return a host name or IP address that can be looked up. Raises ConfigError pacs-address."""
    try:
        if ":" in host:
            ip_address(host)
        elif not host.isprintable() or " " in host or not host.encode("idna"):
            raise ValueError
    except ValueError as error:  # UnicodeError is one: a label is empty, or too long
        fix = "give a name or an address, such as pacs.example or 10.1.2.3"
        raise ConfigError("pacs-address", "is not a host name", where=host, fix=fix) from error
    return host


def parse_networks(texts: Sequence[str]) -> tuple[IPv4Network | IPv6Network, ...]:
    """Parse addresses and CIDR networks. Raises ConfigError pacs-address."""
    try:
        return tuple(ip_network(text.strip()) for text in texts)
    except ValueError as error:
        fix = "give an address, or a network such as 10.1.2.0/24"
        raise ConfigError("pacs-address", "is not a network", where=", ".join(texts), fix=fix) from error


def client_tls(tls: Tls) -> ssl.SSLContext:
    """Return the TLS context for a server, whose certificate is verified. Raises ConfigError pacs-tls."""
    return _context(tls, ssl.Purpose.SERVER_AUTH)


def server_tls(tls: Tls) -> ssl.SSLContext:
    """Return the TLS context for clients: with an authority they need a certificate. Raises as client_tls."""
    return _context(tls, ssl.Purpose.CLIENT_AUTH)


def _context(tls: Tls, purpose: ssl.Purpose) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(purpose, cafile=tls.authority)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if purpose is ssl.Purpose.CLIENT_AUTH and tls.authority:
            context.verify_mode = ssl.CERT_REQUIRED
        if tls.certificate:
            context.load_cert_chain(tls.certificate, tls.key, password=lambda: "")  # never prompts
        return context
    except OSError as error:  # SSLError is one
        files = ", ".join(str(path) for path in (tls.certificate, tls.key, tls.authority) if path)
        reason = f"cannot be used for TLS ({error.strerror or type(error).__name__})"
        fix = "give PEM files that belong together"
        raise ConfigError("pacs-tls", reason, where=files, fix=fix) from error


def unreachable(peer: Peer, reason: str) -> PacsError:
    """Return the error for a PACS that does not answer, or no longer does."""
    fix = "check address, TLS, network and our AE title at the PACS; then run the same command again"
    return PacsError("pacs-unreachable", reason, where=str(peer), fix=fix)


def unexpected(peer: Peer, reason: str) -> PacsError:
    """Return the error for an answer that makes no sense."""
    web = isinstance(peer, WebPeer)
    fix = "check that this is the base URL of its DICOMweb service" if web else "see the log of the PACS"
    return PacsError("pacs-answer", reason, where=str(peer), fix=fix)


@contextmanager
def needing_extra() -> Iterator[None]:
    """Turn a failed import of a network library into ConfigError extra-missing."""
    try:
        yield
    except ImportError as error:
        fix = "pip install 'medtl[pacs]'"
        raise ConfigError("extra-missing", f"needs {error.name}", where="medtl pacs", fix=fix) from error
