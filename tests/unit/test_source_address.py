"""The source address of a request behind proxies."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Scope

from clustercert.http.source_address import MAX_HOPS, UNKNOWN, SourceAddresses

PROXIES = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8:f::/48"))
PROXY, CLIENT = "10.0.0.1", "192.0.2.7"
BEHIND_PROXIES = SourceAddresses(PROXIES)


def scope(peer: str | None, *headers: tuple[str, str]) -> Scope:
    fields = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return {"type": "http", "headers": fields, "client": (peer, 4711) if peer else None}


def source(*headers: tuple[str, str], peer: str | None = PROXY) -> str:
    return BEHIND_PROXIES.address_of(scope(peer, *headers))


def forwarded_for(value: str) -> tuple[str, str]:
    return "x-forwarded-for", value


@pytest.mark.parametrize("peer", [CLIENT, "2001:db8::1", "11.0.0.1", None])
def test_a_header_from_an_untrusted_peer_does_not_count(peer: str | None) -> None:
    assert source(forwarded_for("198.51.100.1"), peer=peer) == (peer or UNKNOWN)


def test_without_trusted_proxies_no_header_counts() -> None:
    assert SourceAddresses().address_of(scope("127.0.0.1", forwarded_for("198.51.100.1"))) == "127.0.0.1"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (CLIENT, CLIENT),
        (f" {CLIENT} ", CLIENT),
        (f"203.0.113.9, {CLIENT}", CLIENT),
        (f"127.0.0.1, 10.1.1.1, {CLIENT}, 10.2.2.2", CLIENT),
        (f"{CLIENT}:54321", CLIENT),
        (f"garbage, {CLIENT}", CLIENT),
        (f'"unclosed, {CLIENT}', CLIENT),
        ("2001:DB8::0001", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        (f"::ffff:{CLIENT}", CLIENT),
        # Every hop is trusted, so the first one is the client.
        ("10.3.3.3, 10.2.2.2", "10.3.3.3"),
        ("2001:db8:f::2, ::ffff:10.2.2.2", "2001:db8:f::2"),
    ],
)
def test_the_rightmost_untrusted_hop_is_the_source(value: str, expected: str) -> None:
    assert source(forwarded_for(value)) == expected


@pytest.mark.parametrize(
    "value",
    [
        "",
        "garbage",
        "unknown",
        "1.2.3",
        "1.2.3.4.5",
        "256.1.1.1",
        "fe80::1%eth0",
        "[192.0.2.7",
        "192.0.2.7:99999999",
        f"{CLIENT},",
        f"{CLIENT}, nonsense",
        f"{CLIENT}, nonsense, 10.2.2.2",
        "1" * 5000,
        "\u00b9.2.3.4",
        f"{CLIENT} {CLIENT}",
    ],
)
def test_an_unreadable_hop_makes_the_peer_the_source(value: str) -> None:
    assert source(forwarded_for(value)) == PROXY


def test_the_header_forwarded_does_not_count() -> None:
    assert source(("forwarded", "for=203.0.113.9")) == PROXY
    assert source(forwarded_for(CLIENT), ("forwarded", "for=203.0.113.9")) == CLIENT


def test_lines_of_one_header_are_one_list() -> None:
    lines = forwarded_for("203.0.113.9"), forwarded_for(f"{CLIENT}, 10.1.1.1"), forwarded_for("10.2.2.2")
    assert source(*lines) == CLIENT


def test_more_proxies_in_a_row_than_are_read_make_the_peer_the_source() -> None:
    def behind(proxies: int) -> str:
        return source(forwarded_for(", ".join([CLIENT, *["10.1.1.1"] * proxies])))

    assert behind(MAX_HOPS - 1) == CLIENT
    assert behind(MAX_HOPS) == PROXY
    assert behind(10_000) == PROXY


def test_an_ipv4_peer_of_an_ipv6_socket_has_its_ipv4_address() -> None:
    assert SourceAddresses().address_of(scope(f"::ffff:{CLIENT}")) == CLIENT
    assert source(forwarded_for(CLIENT), peer="::ffff:10.0.0.1") == CLIENT


@given(st.lists(st.text(st.characters(max_codepoint=255)), max_size=5))
def test_nothing_that_a_client_claims_changes_what_the_proxy_appended(claims: list[str]) -> None:
    appended = [forwarded_for(claim) for claim in claims[:-1]]
    last = f"{claims[-1]}, {CLIENT}" if claims else CLIENT
    assert source(*appended, forwarded_for(last)) == CLIENT
