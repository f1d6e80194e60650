"""Which addresses are everybody's: decided by a function, on addresses that nobody is asked at."""

import ipaddress

import pytest

from lora_runtime.server.addresses import is_loopback_name, is_public

PUBLIC = (
    "93.184.215.14",
    "1.1.1.1",
    "100.128.0.1",  # the first after the carriers' network
    "168.63.129.17",
    "192.0.1.1",
    "2606:2800:21f:cb07:6820:80da:af6b:8b2c",
    "2a00:1450:4001:82a::200e",
    "2001:4860:4860::8888",
    "64:ff9b::5db8:d70e",  # 93.184.215.14 for a network that has IPv6 alone
    "::ffff:93.184.215.14",
)

NOT_PUBLIC = {
    "this machine": ("127.0.0.1", "127.255.255.254", "0.0.0.0", "::1", "::"),
    "private networks": ("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fd00::1", "fc00::1"),
    "this link": ("169.254.1.1", "fe80::1", "febf::1"),
    "carriers": ("100.64.0.1", "100.127.255.255"),
    "metadata services": (
        "169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254",
    ),
    "protocols": (
        "192.0.0.1", "192.0.0.9", "192.0.0.10", "192.0.0.170", "192.0.0.255", "192.88.99.1", "192.31.196.1",
        "192.52.193.1", "192.175.48.1", "2001::1", "2001:1::1", "2001:20::1", "2001:30::1", "2001:1ff::1",
        "2620:4f:8000::1", "5f00::1", "100::1",
    ),
    "documentation and tests": (
        "192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "198.19.255.255", "2001:db8::1", "3fff::1",
    ),
    "groups and everybody": ("224.0.0.1", "239.255.255.255", "255.255.255.255", "240.0.0.1", "ff02::1", "ff0e::1"),
    "old ways to be local": ("fec0::1", "feff::1"),
    "nobody's": ("4000::1", "8000::1", "e000::1", "::2"),
    "IPv4 inside IPv6": (
        "::ffff:10.0.0.1", "::ffff:127.0.0.1", "::ffff:168.63.129.16", "::ffff:192.0.0.9",
        "::127.0.0.1", "::10.0.0.1", "::93.184.215.14",
        "::ffff:0:127.0.0.1", "::ffff:0:10.0.0.1", "::ffff:0:93.184.215.14",
        "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::7f00:1", "64:ff9b:1::5db8:d70e", "64:ff9b:1:ffff::1",
        "2002:7f00:1::", "2002:a00:1::", "2002:a9fe:a9fe::1", "2002:c058:6301::1",
        "2001:0:4136:e378:8000:63bf:f5ff:fffe",
    ),
}  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_everybody_reaches(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(("kind", "address"), [(kind, each) for kind, all_ in NOT_PUBLIC.items() for each in all_])
def test_a_server_is_not_sent_to(kind: str, address: str) -> None:
    assert not is_public(ipaddress.ip_address(address)), kind


@pytest.mark.parametrize(
    "name",
    [
        "localhost",
        "LOCALHOST:80",
        "lab.localhost",
        "127.0.0.1:1",
        "127.1.2.3",
        "[::1]:7860",
        "::1",
        "[::ffff:127.0.0.1]",
    ],
)
def test_names_of_this_machine(name: str) -> None:
    assert is_loopback_name(name)


STRANGE = (
    "localhost.",
    "localhost.evil.example",
    "evil-localhost",
    "127.0.0.1.evil.example",
    "127.0.0.1@evil",
    "evil@",
)


@pytest.mark.parametrize("name", [*STRANGE, "", "0.0.0.0", "2130706433", "[::]", "[", "10.0.0.1"])
def test_names_that_are_not(name: str) -> None:
    assert not is_loopback_name(name)
