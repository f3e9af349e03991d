"""Options of a listener -> who may send studies here, and how much at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from medtl.errors import ConfigError

LOOPBACK = ("127.0.0.0/8", "::1/128")
MEGABYTE = 2**20
Network = IPv4Network | IPv6Network


@dataclass(frozen=True)
class Gate:
    """Limits of a listener. ae: our title; callers: theirs; largest: bytes per instance.

    idle: seconds of silence after which an association is ended.
    """

    ae: str
    callers: tuple[str, ...]
    networks: tuple[Network, ...]
    largest: int = 1024 * MEGABYTE
    associations: int = 8
    idle: float = 60.0

    def admits(self, address: str) -> bool:
        """Return whether an address may connect."""
        ip = ip_address(address.split("%")[0])
        ip = getattr(ip, "ipv4_mapped", None) or ip
        return any(ip in network for network in self.networks)


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Parse addresses and CIDR networks. Raises ConfigError pacs-address."""
    try:
        return tuple(ip_network(text.strip()) for text in texts)
    except ValueError as error:
        fix = "give an address, or a network such as 10.1.2.0/24"
        raise ConfigError("pacs-address", "is not a network", where=", ".join(texts), fix=fix) from error
