"""Names in certificates, lifetimes in words, and how a decision came about."""

import unicodedata
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from clustercert.model import IssueRequest
from clustercert.model.errors import Forbidden, Unavailable
from clustercert.pki.keys import new_key
from clustercert.pki.leaf import new_signing_request
from clustercert.policy.decision import Policy
from clustercert.policy.lifetime import parse_lifetime
from clustercert.policy.templates import is_plain_text
from support.leaf_builder import LeafBuilder
from support.leaf_checks import assert_subject
from support.policy_decisions import CLUSTER, DAY, decide
from support.samples import (
    CA_KEY,
    NOW,
    POLICY,
    caller,
    client_ca,
    cluster,
    role_rule,
)

LEAF_KEY = new_key("ec-p256").public_key()


# Names


@pytest.mark.parametrize("name", ["system:masters", "system:node:a", "system:", "system:kube-scheduler"])
def test_system_names_are_refused_unless_they_are_named(name: str) -> None:
    rule = role_rule("admin", ("ours", name), timedelta(days=30))
    with pytest.raises(Forbidden, match=r"reserved by Kubernetes"):
        decide(IssueRequest(duration=1), policy=Policy(rules=(rule,)))
    others = Policy(rules=(rule,), allowed_system_names=frozenset({"system:other", name + "x"}))
    with pytest.raises(Forbidden):
        decide(IssueRequest(duration=1), policy=others)
    named = Policy(rules=(rule,), allowed_system_names=frozenset({name}))
    assert decide(IssueRequest(duration=1), policy=named).groups == ("ours", name)


def test_a_user_who_is_named_like_the_system_is_refused() -> None:
    with pytest.raises(Forbidden):
        POLICY.decide(
            caller("admin", user_id="system:kube-scheduler"), CLUSTER, IssueRequest(duration=1), NOW
        )


@pytest.mark.parametrize(
    "name",
    [
        "clustercert:credential:",
        "clustercert:credential:" + "0" * 40,
        "clustercert:credential:" + "A" * 40,
        "clustercert:credential:admins",
        "Clustercert:Credential:0",
    ],
)
def test_a_name_with_the_credential_prefix_is_always_refused(name: str) -> None:
    rule = role_rule("admin", ("ours", name), timedelta(days=30))
    allowed = Policy(rules=(rule,), allowed_system_names=frozenset({name}))
    for policy in (Policy(rules=(rule,)), allowed):
        with pytest.raises(Forbidden, match="reserved for credential groups"):
            decide(IssueRequest(duration=1), policy=policy)
        with pytest.raises(Forbidden, match="reserved for credential groups"):
            replace(policy, rules=POLICY.rules).decide(
                caller("admin", user_id=name), CLUSTER, IssueRequest(duration=1), NOW
            )


@pytest.mark.parametrize(
    "name", ["clustercert:credential", "clustercert:admins", "my:clustercert:credential:0"]
)
def test_a_name_that_is_only_like_a_credential_groups_is_not_refused(name: str) -> None:
    rule = role_rule("admin", (name,), timedelta(days=30))
    assert decide(IssueRequest(duration=1), policy=Policy(rules=(rule,))).groups == (name,)


REFUSED_NAMES = {
    "empty": "",
    "65 characters": "x" * 65,
    "10000 characters": "x" * 10_000,
    "null": "a\0b",
    "newline": "a\nb",
    "tab": "a\tb",
    "escape": "a\x1b[31mb",
    "delete": "a\x7f",
    "C1 control": "a\x85b",
    "line separator": "a\u2028b",
    "right-to-left override": "a\u202eb",
    "right-to-left isolate": "a\u2067b\u2069",
    "Arabic letter mark": "a\u061cb",
    "lone surrogate": "a\ud800b",
    "surrogate pair as two": "\ud83d\udd10",
}


@pytest.mark.parametrize("kind", REFUSED_NAMES)
def test_a_name_that_no_certificate_can_hold_is_refused_in_words(kind: str) -> None:
    name = REFUSED_NAMES[kind]
    with pytest.raises(Forbidden) as refused:
        POLICY.decide(caller("admin", user_id=name), CLUSTER, IssueRequest(duration=1), NOW)
    assert is_plain_text(refused.value.message), "the words themselves are safe to print"
    assert len(refused.value.message) < 300
    refused.value.message.encode()
    with pytest.raises(Forbidden):
        decide(IssueRequest(duration=1), policy=Policy(rules=(role_rule("admin", ("ok", name), DAY),)))


ANY_CHARACTER = st.characters()
NAMES = st.one_of(
    st.text(ANY_CHARACTER, max_size=70),
    st.text(st.sampled_from("aä€🔐,+\"'\\;<>=# /:@"), min_size=1, max_size=70),
    st.text(st.sampled_from("aä🔐"), min_size=60, max_size=66),
    st.sampled_from(
        [
            "system:masters",
            "clustercert:admins",
            "clustercert:credential:",
            "clustercert:credential:" + "0" * 40,
        ]
    ),
    st.sampled_from(["system:x,O=system:masters", "O=a", "x" * 64, "ä" * 64, "🔐" * 64]),
)


@given(username=NAMES, groups=st.lists(NAMES, min_size=1, max_size=4).map(tuple))
@settings(max_examples=300)
def test_names_are_issued_exactly_or_refused_in_words(username: str, groups: tuple[str, ...]) -> None:
    policy = Policy(rules=(role_rule("admin", groups, DAY),))
    try:
        granted = policy.decide(caller("admin", user_id=username), CLUSTER, IssueRequest(duration=1), NOW)
    except Forbidden as refused:
        refused.message.encode()
        return
    ca = CLUSTER.client_ca
    request = new_signing_request(granted, LEAF_KEY, ca, takes_serial=True)
    leaf = LeafBuilder(ca.ca_certificate, CA_KEY).build(request)
    reread = x509.load_der_x509_certificate(leaf)
    assert_subject(
        reread, username, [*dict.fromkeys(groups), f"clustercert:credential:{request.credential_number}"]
    )
    ours = ("system:", "clustercert:credential:")
    assert not any(name.startswith(ours) for name in (username, *groups))
    assert not any(unicodedata.category(c) in {"Cc", "Cs"} for name in (username, *groups) for c in name)


@pytest.mark.parametrize(
    "name", ["ä" * 64, "€" * 30, "🔐" * 17], ids=["128 bytes", "90 bytes", "68 bytes in 17 characters"]
)
def test_a_user_name_over_64_bytes_is_issued_exactly_or_refused(name: str) -> None:
    try:
        granted = POLICY.decide(caller("admin", user_id=name), CLUSTER, IssueRequest(duration=1), NOW)
    except Forbidden:
        return
    ca = CLUSTER.client_ca
    request = new_signing_request(granted, LEAF_KEY, ca, takes_serial=True)
    leaf = x509.load_der_x509_certificate(LeafBuilder(ca.ca_certificate, CA_KEY).build(request))
    assert_subject(leaf, name, [*granted.groups, f"clustercert:credential:{request.credential_number}"])


def test_the_grant_is_for_the_callers_id_and_not_their_name() -> None:
    granted = decide(IssueRequest(duration=1))
    assert granted.username == caller().user.id != caller().user.name


# Lifetimes in words


@pytest.mark.parametrize(
    ("text", "lifetime"),
    [
        ("90s", timedelta(seconds=90)),
        ("15m", timedelta(minutes=15)),
        ("8h", timedelta(hours=8)),
        ("30d", timedelta(days=30)),
        ("2w", timedelta(weeks=2)),
        ("1h30m", timedelta(minutes=90)),
        ("1d12h", timedelta(hours=36)),
    ],
)
def test_a_lifetime_in_words_is_read(text: str, lifetime: timedelta) -> None:
    assert parse_lifetime(text) == lifetime


@pytest.mark.parametrize(
    "text",
    ["", "8", "h", "8 h", "8h ago", "-8h", "1.5h", "8H", "eight hours", "8h,", "1y", "99999999999d"],
)
def test_what_is_no_lifetime_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_lifetime(text)


# How a decision came about


def test_a_trace_says_what_limits_and_truncates() -> None:
    longest = POLICY.decide(caller("member"), cluster(), IssueRequest(duration=-1), NOW).trace
    assert longest["shortened"] is False
    assert longest["requested_not_after"] == longest["allowed_until"]
    assert (longest["rule"], longest["skipped_rules"], longest["allowed_by"]) == (
        "member",
        ["admin", "reader"],
        "rule",
    )
    short_ca = client_ca(lifetime=timedelta(days=3))
    by_ca = POLICY.decide(
        caller("admin"), cluster(short_ca), IssueRequest(duration=30, shorten=True), NOW
    ).trace
    assert by_ca["allowed_by"] == "ca"
    assert by_ca["allowed_until"] == short_ca.ca_certificate.not_valid_after_utc.isoformat()
    assert by_ca["shortened"] is True


def test_an_expired_cas_refusal_has_a_trace_too() -> None:
    ended = cluster(client_ca(lifetime=timedelta(hours=1)))
    with pytest.raises(Unavailable) as raised:
        POLICY.decide(caller("admin"), ended, IssueRequest(duration=1), NOW)
    assert raised.value.trace["allowed_by"] == "ca"
