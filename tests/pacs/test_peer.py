"""Addresses of a PACS and files of TLS: read, or refused in a line without the password in it."""

import ssl
from pathlib import Path

import pytest

from medtl.errors import ConfigError
from medtl.pacs.peer import (
    LOOPBACK,
    DimsePeer,
    Gate,
    Tls,
    WebPeer,
    client_tls,
    parse_networks,
    parse_peer,
    server_tls,
)
from tests.pacs.peers import make_certificates


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("http://pacs:8042/dicom-web/", WebPeer("http://pacs:8042/dicom-web")),
        ("https://10.0.0.1", WebPeer("https://10.0.0.1")),
        ("MAIN PACS@pacs.example:104", DimsePeer("MAIN PACS", "pacs.example", 104)),
        ("A@[::1]:11112", DimsePeer("A", "::1", 11112)),
    ],
)
def test_addresses_are_read_and_written_back(text: str, peer: WebPeer | DimsePeer) -> None:
    assert parse_peer(text) == peer == parse_peer(str(peer))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "pacs",
            "@h:1",
            "A@h",
            "A@h:0",
            "A@h:65536",
            "A@h:1:2",
            "A\\B@h:1",
            "A" * 17 + "@h:1",
            "A\x1b@h:1",
        ),
        *("ftp://h/x", "http://", "file:///etc/passwd", "http://h/x?y=1", "http://h/#f"),
        *(
            "http://[::1",
            "http://[::g]/d",
            "http://a..b/d",
            "http://a b/d",
            "http://h:99999/d",
            "http://h:x/d",
        ),
        *("AE@a..b:104", "AE@.a:104", f"AE@{'a' * 64}.b:104", "AE@[:::]:104"),
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_peer(text)
    assert caught.value.code == "pacs-address"


@pytest.mark.parametrize("host", ["pacs", "[::1", "pacs:x", "a..b"])
def test_a_password_in_an_address_is_refused_and_not_repeated(host: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_peer(f"https://user:CANARY@{host}/dicom-web")
    assert "CANARY" not in str(caught.value) and ("netrc" in str(caught.value) or host != "pacs")


@pytest.mark.parametrize("make", [client_tls, server_tls])
def test_files_that_do_not_belong_together_are_one_line(make, tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    empty = tmp_path / "empty.pem"
    empty.write_bytes(b"")
    for tls in (
        Tls(files.certificate, files.stranger_key),
        Tls(empty, files.key),
        Tls(tmp_path / "absent.pem"),
        Tls(authority=empty),
    ):
        with pytest.raises(ConfigError) as caught:
            make(tls)
        assert caught.value.code == "pacs-tls"


def test_servers_are_verified_and_clients_where_an_authority_is_named(tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    ours = Tls(files.certificate, files.key, files.authority)
    assert client_tls(ours).verify_mode == server_tls(ours).verify_mode == ssl.CERT_REQUIRED
    assert client_tls(ours).check_hostname
    assert client_tls(ours).minimum_version >= ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("networks", "address", "allowed"),
    [
        (LOOPBACK, "127.0.0.1", True),
        (LOOPBACK, "::1", True),
        (LOOPBACK, "::ffff:127.0.0.1", True),
        (LOOPBACK, "10.1.2.3", False),
        (["10.1.2.0/24"], "10.1.2.3", True),
        (["10.1.2.0/24"], "10.1.3.3", False),
        (["10.1.2.3"], "10.1.2.3", True),
        (["fe80::/10"], "fe80::1%eth0", True),
    ],
)
def test_a_gate_lets_in_its_networks_alone(networks: list[str], address: str, allowed: bool) -> None:
    assert Gate("MEDTL", ("A",), parse_networks(networks)).admits(address) is allowed


@pytest.mark.parametrize("text", ["", "10.1.2.3/24", "everyone", "10.1.2.0/33"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="pacs-address"):
        parse_networks([text])
