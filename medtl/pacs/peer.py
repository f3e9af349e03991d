"""Say where a PACS is, `http(s)://...` or `AE@host:port`, and how TLS is spoken with it."""

import re
import ssl
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from medtl.errors import ConfigError

# PS3.5 6.2: at most 16 characters, no backslash, no control characters; blanks at the ends mean nothing.
AE_TITLE = re.compile(r"[\x21-\x5b\x5d-\x7e](?:[\x20-\x5b\x5d-\x7e]{0,14}[\x21-\x5b\x5d-\x7e])?")
DIMSE = re.compile(r"(?P<ae>.+)@(?:\[(?P<six>[0-9a-fA-F:]+)\]|(?P<host>[^@:/\s]+)):(?P<port>\d{1,5})")


@dataclass(frozen=True)
class Tls:
    """Files in PEM: our certificate and its key, and the authority that signs the other side's."""

    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None


@dataclass(frozen=True)
class WebPeer:
    """The base of a DICOMweb service."""

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


def parse_peer(text: str) -> Peer:
    """Read an address. Raises ConfigError pacs-address, without passwords that it may hold."""
    return _web(text) if "://" in text else _dimse(text)


def check_ae(title: str) -> str:
    """Return an AE title without blanks at its ends. Raises ConfigError pacs-address."""
    if not AE_TITLE.fullmatch(title.strip(" ")):
        reason = "is no AE title (1 to 16 characters of ASCII, no backslash)"
        raise ConfigError("pacs-address", reason, where=title, fix="name it as the PACS does")
    return title.strip(" ")


def check_host(host: str) -> str:
    """Return a name or address of a machine, as one can be asked for. Raises ConfigError pacs-address."""
    try:
        if ":" in host:
            ip_address(host)
        elif not host.isprintable() or " " in host or not host.encode("idna"):
            raise ValueError
    except ValueError as error:  # UnicodeError is one: a label is empty, or too long
        fix = "give a name or an address, as pacs.example or 10.1.2.3"
        raise ConfigError("pacs-address", "is no name of a machine", where=host, fix=fix) from error
    return host


def client_tls(tls: Tls) -> ssl.SSLContext:
    """Return how TLS is spoken with a server, whose certificate must hold. Raises ConfigError pacs-tls."""
    try:
        context = ssl.create_default_context(cafile=tls.authority)
        return _with_certificate(context, tls)
    except OSError as error:  # SSLError is one
        raise unusable(tls, error) from error


def server_tls(tls: Tls) -> ssl.SSLContext:
    """Return how TLS is spoken with clients, who must show a certificate where an authority is given.

    Raises ConfigError pacs-tls.
    """
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls.authority)
        context.verify_mode = ssl.CERT_REQUIRED if tls.authority else ssl.CERT_NONE
        return _with_certificate(context, tls)
    except OSError as error:
        raise unusable(tls, error) from error


def unusable(tls: Tls, error: OSError) -> ConfigError:
    """Return the error that says why files of TLS cannot be used."""
    files = ", ".join(str(path) for path in (tls.certificate, tls.key, tls.authority) if path)
    reason = f"cannot be used for TLS ({error.strerror or type(error).__name__})"
    return ConfigError("pacs-tls", reason, where=files, fix="name files in PEM that belong together")


def _with_certificate(context: ssl.SSLContext, tls: Tls) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.certificate:
        context.load_cert_chain(tls.certificate, tls.key, password=lambda: "")  # never asks on a terminal
    return context


def _web(text: str) -> WebPeer:
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:  # a bracket that is not closed, a port that is none
        raise _no_base(text) from error
    if "@" in parts.netloc:
        fix = "put user and password into ~/.netrc"
        raise ConfigError("pacs-address", "holds credentials", where=host, fix=fix)
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise _no_base(text)
    check_host(host)
    return WebPeer(text.rstrip("/"))


def _no_base(text: str) -> ConfigError:
    fix = "give http(s)://host[:port]/path, the path as the PACS documents it"
    place = text.rpartition("@")[2]  # without a password that it may hold
    return ConfigError("pacs-address", "is no base of a DICOMweb service", where=place, fix=fix)


def _dimse(text: str) -> DimsePeer:
    found = DIMSE.fullmatch(text)
    if not found or not 0 < int(found["port"]) < 65536:
        fix = "give AE@host:port, or http(s)://..."
        raise ConfigError("pacs-address", "is no address of a PACS", where=text, fix=fix)
    return DimsePeer(check_ae(found["ae"]), check_host(found["six"] or found["host"]), int(found["port"]))
