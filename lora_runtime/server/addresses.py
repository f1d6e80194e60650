"""Which addresses everybody can reach, and which names are this machine's own.

`ipaddress.is_global` alone does not say it: it is as old as the Python it came with, calls some of a provider's inner
addresses global, and does not look into IPv6 addresses that carry an IPv4 address.
Source: IANA's special-purpose registries, RFC 6890, 6666, 9602, 9637; the metadata services of Azure and Oracle.
"""

import ipaddress
from typing import Final, TypeAlias
from urllib.parse import urlsplit

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
"""All of IPv6 that was ever given out: fec0::/10, ::/96, ::ffff:0:0:0/96, 64:ff9b:1::/48 and 5f00::/16 lie outside."""

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")

_RESERVED: Final = tuple(
    map(
        ipaddress.ip_network,
        (
            "100.64.0.0/10",  # carriers; 100.100.100.200 is Alibaba's metadata service
            "168.63.129.16/32",  # Azure's platform, reached from each of its machines
            "192.0.0.0/24",  # protocol assignments; 192.0.0.192 is Oracle's metadata service
            "192.31.196.0/24",  # AS112: the nearest of many
            "192.52.193.0/24",  # AMT relays: the nearest of many
            "192.88.99.0/24",  # 6to4 relays: the nearest of many
            "192.175.48.0/24",  # AS112
            "2001::/23",  # protocol assignments, Teredo and ORCHID among them
            "2001:db8::/32",  # documentation
            "2620:4f:8000::/48",  # AS112
            "3fff::/20",  # documentation
        ),
    )
)
"""Networks that `is_global` lets through, in some Python at least, and that are no place for a picture or a webhook."""


def is_public(address: Address) -> bool:
    """Whether everybody can reach `address`; what is embedded in an IPv6 address counts."""
    if isinstance(address, ipaddress.IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour
        if embedded is None and address in _NAT64:
            embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(embedded)
        if address not in _GLOBAL_UNICAST:
            return False
    reserved = any(address in network for network in _RESERVED)
    return address.is_global and not address.is_multicast and not reserved


def is_loopback(text: str) -> bool:
    """Whether `text` is an address of this machine that no other can reach."""
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback


def is_loopback_name(host: str) -> bool:
    """Whether `host`, as a Host header has it, is this machine in a way that no name service decides."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return name == "localhost" or name.endswith(".localhost") or is_loopback(name) or is_loopback(host)
