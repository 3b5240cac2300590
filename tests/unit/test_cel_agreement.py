"""Our library for CEL and Google's reference, `cel-expr-python`, agree on every expression that operators are shown."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cel import cel
from cel_expr_python import cel as google
from hypothesis import given
from hypothesis import strategies as st

from clustercert.model import Domain, Group, IssueRequest, Origin
from clustercert.pki.keys import sample_key
from clustercert.policy.conditions import ConditionFailed, DecisionInput
from clustercert.policy.expressions import FIELD_TYPES, FIELDS, Expression, compile_expression, variables
from support.samples import NOW, caller, cluster

DOCS = Path(__file__).parents[2] / "docs"
FAILED = "failed"

DOMAIN = Domain("d" * 32, "default")
TEAMS = tuple(Group(f"{n:032x}", name, DOMAIN) for n, name in enumerate(("ops", "team-a", "équipe-ü")))
ALICE = replace(caller("member", "reader"), groups=TEAMS, service_roles=("operator",))
INPUTS = (
    DecisionInput(
        ALICE,
        replace(cluster(), labels={"env": "prod", "owner": "team-a", "tier": "1", "a/b": "x"}),
        IssueRequest(duration=-1, reason="TICKET-42 é"),
        ("member", "reader"),
        NOW,
        "ec-p256",
    ),
    DecisionInput(
        caller("admin"),
        cluster(),
        IssueRequest(public_key=sample_key("rsa-3072")),
        ("admin",),
        datetime(2028, 2, 29, tzinfo=UTC),
        "rsa-3072",
    ),
    DecisionInput(
        replace(ALICE, origin=Origin("local", "f" * 32), method="cli"),
        replace(cluster(), labels={"env": "", "frozen": "true"}),
        IssueRequest(reason=""),
        ("reader",),
        datetime(2026, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        "ed25519",
    ),
)

OBJECT = google.Type.Map(google.Type.STRING, google.Type.DYN)
REFERENCE = google.NewEnv(
    variables={"user": OBJECT, "cluster": OBJECT, "request": OBJECT, "now": google.Type.TIMESTAMP}
)


def ours(source: str, said: DecisionInput) -> bool | str:
    try:
        result = compile_expression(source).execute(cel.Context(variables(said)))
    except BaseException:  # noqa: BLE001 - panics of the library don't derive from Exception
        return FAILED
    return result if isinstance(result, bool) else FAILED


def theirs(source: str, said: DecisionInput) -> bool | str:
    # Without the check of types, which CEL makes optional: our library has none.
    result = REFERENCE.compile(source, disable_check=True).eval(data=variables(said))
    return bool(result.value()) if result.type() == google.Type.BOOL else FAILED


def shown() -> Iterator[str]:
    """The expressions of the documentation."""
    for page in sorted(DOCS.glob("*.md")):
        for block in re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            yield from expressions(tomllib.loads(block).get("policy", {}).get("rules", ()))


def expressions(rules: Any) -> Iterator[str]:
    for rule in rules:
        if source := rule.get("when", {}).get("cel"):
            yield source


ABSENT = """\
cluster.labels.owner == "team-a"
cluster.labels["a/b"] == "x"
cluster.labels["nothing"] == "x" || true
true || cluster.labels["nothing"] == "x"
false && cluster.labels["nothing"] == "x"
cluster.labels["nothing"] == "x" && false
cluster.nothing == "x"
user.name in ["alice"] || user.nothing
user.nothing || user.name in ["alice"]
user.nothing || user.name in ["bob"]
user.nothing ? true : false
user.groups.exists(g, g.nothing) || true
has(user.nothing)
has(user.name)
has(cluster.labels)
has(cluster.labels.owner) && cluster.labels.owner in user.groups
has(cluster.labels.env) && cluster.labels.env == ""
!has(cluster.labels.owner) || cluster.labels.owner == "team-a"
"env" in cluster.labels
"nothing" in cluster.labels
"""
LISTS = """\
cluster.labels.env in ["prod", "live"]
!(cluster.labels.env in ["prod", "live"])
size(cluster.labels) == 4
cluster.labels == {"env": ""}
cluster.labels == {}
cluster.labels.exists(k, k == "env")
cluster.labels.all(k, k.startsWith("e"))
cluster.labels.exists_one(k, cluster.labels[k] == "prod")
user.roles == ["member", "reader"]
["member"] == user.roles
user.roles[0] == "member"
user.roles[1] == "reader"
user.roles[-1] == "reader"
user.groups.exists(g, g.startsWith("team-"))
user.groups.all(g, g.size() > 2)
user.groups.filter(g, g.startsWith("team-")).size() == 1
user.groups.map(g, g + "!") == ["ops!", "team-a!", "équipe-ü!"]
user.groups.exists_one(g, g == "ops")
user.groups.exists(g, g == 1)
size(user.groups) > 0
user.groups.size() == 3
user.groups + ["x"] == ["x"]
user.group_ids.exists(g, g == "00000000000000000000000000000001")
"operator" in user.service_roles
"équipe-ü" in user.groups
"a" in "abc"
1 in {1: 2}
[1, "a"] == [1, "a"]
[1, 2] == [1.0, 2.0]
{"a": 1}["a"] == 1
{"a": 1}.a == 1
[[1], [2]][1][0] == 2
[1, 2, 3][3] == 1
[].all(x, false)
[].exists(x, true)
[1, 2].exists_one(x, x > 0)
"""
STRINGS = """\
user.domain == "default" && user.name != "bob"
user.domain + "/" + user.name == "default/alice"
user.id.size() == 32
user.id < "8"
user["name"] == "alice"
request.reason.contains("é")
request.reason.contains("")
request.reason.matches("^TICKET-[0-9]+")
request.reason.matches("TICKET")
request.reason.matches("(?i)ticket-[0-9]+")
request.reason.matches("^TICKET-[0-9]+$")
request.reason.matches("^.{1,20}$")
request.reason.matches("[")
request.reason.matches("(?=a)")
request.reason.matches("\\\\p{L}")
request.reason.startsWith("TICKET") && request.reason.endsWith("é")
request.reason != "" ? request.csr : !request.csr
request.reason.size() > 5
request.source.startsWith("192.0.2.")
request.source == "local" || request.auth_method == "token"
request.issuer == "built-in"
request.key_type in ["ec-p256", "ec-p384"]
request.key_type.startsWith("rsa-") && request.csr
"abc".startsWith("abcd")
"a" < "b"
"\\u00e9" == "é"
r"\\d" == "\\\\d"
'a"b' == "a\\"b"
"a\\n" == "a\\n"
b"abc" == bytes("abc")
"ABC".lowerAscii() == "abc"
"a,b".split(",") == ["a", "b"]
"""
TIMES = """\
now.getFullYear() == 2026
now.getMonth() == 2
now.getMonth() == 1 && now.getDate() == 29
now.getDate() == 14
now.getDayOfMonth() == 13
now.getDayOfWeek() == 6
now.getDayOfWeek() in [1, 2, 3, 4, 5]
now.getDayOfYear() == 72
now.getDayOfYear() == 364
now.getHours() == 15
now.getHours() >= 6 && now.getHours() < 18
now.getMinutes() == 9
now.getSeconds() == 26
now < timestamp("2026-03-14T15:09:27Z")
now > timestamp("2026-03-14T15:09:26.535Z")
now == timestamp("2026-03-14T15:09:26.535897Z")
now == "2026-03-14T15:09:26Z"
now - timestamp("2026-03-14T15:09:26Z") < duration("1s")
now + duration("1h") > timestamp("2026-03-14T16:00:00Z")
now - duration("24h") < now
now >= timestamp("2026-03-14T16:09:26.535897+01:00")
timestamp("2026-13-01T00:00:00Z") < now
timestamp("soon") < now
duration("1h") == duration("60m")
duration("1d") > duration("1h")
duration("-1h") < duration("0s")
"""
NUMBERS = """\
int("42") == 42
int(cluster.labels.tier) >= 1
int("x") == 1
string(1) == "1"
double("1.5") == 1.5
1 == 1.0
1 < 2u
2 > 1.5
1 + 1.0 == 2.0
-7 / 2 == -3
-7 % 3 == -1
1 / 0 == 0
1 % 0 == 0
1.0 / 0.0 > 1.0
9223372036854775807 + 1 > 0
-9223372036854775808 < 0
uint(-1) == 1u
int(-1.9) == -1
0x10 == 16
"""
TYPES = """\
request.csr
!request.csr
request.csr == "true"
user.name
user
1
!user.name
"a" + 1 == "a1"
"a" == 1
"1" < 1
null == null
null == false
user.name == null
true < false
type(1) == int
type(user.name) == string
type([]) == list
type(user) == map
(user.name == "alice") == true
1 == 1 == true
true ? "a" == "a" : 1 / 0 == 1
false ? 1 / 0 == 1 : true
"""
LISTED = [line for part in (ABSENT, LISTS, STRINGS, TIMES, NUMBERS, TYPES) for line in part.splitlines()]


@pytest.mark.parametrize("source", [*dict.fromkeys(shown()), *LISTED])
def test_both_libraries_agree(source: str) -> None:
    for said in INPUTS:
        assert ours(source, said) == theirs(source, said)


def test_the_expressions_of_the_documentation_are_found() -> None:
    found = list(shown())
    assert len(found) >= 5
    assert '"owner" in cluster.labels && cluster.labels.owner in user.groups' in found


@pytest.mark.parametrize(
    "source",
    [
        'now.getHours("Europe/Berlin") < 24',
        "now.getMilliseconds() < 1000",
        "int(now) > 0",
        'bool("true")',
        "dyn(1) == 1",
        "[0, 1].exists(x, 1 / x == 1)",
        "![0, 1].all(x, 1 / x == 2)",
    ],
)
def test_what_our_library_lacks_fails_and_so_refuses(source: str) -> None:
    for said in INPUTS:
        assert (ours(source, said), theirs(source, said)) == (FAILED, True)


@pytest.mark.parametrize("source", ['now.getHours("Europe/Berlin") < 24', 'now . getDate ( "+02:00" ) == 1'])
def test_a_time_zone_is_refused_when_the_policy_is_loaded(source: str) -> None:
    with pytest.raises(ValueError, match="takes no time zone here; times are in UTC"):
        Expression(source)


def test_the_text_of_a_time_and_of_a_duration_differs_as_the_page_says() -> None:
    said = INPUTS[1]
    for source in ('string(now) == "2028-02-29T00:00:00+00:00"', 'string(duration("1h")) == "1h0m0s"'):
        assert (ours(source, said), theirs(source, said)) == (True, False)


def test_the_size_of_a_string_is_in_bytes_as_the_page_says() -> None:
    assert (ours('size("é") == 2', INPUTS[0]), theirs('size("é") == 1', INPUTS[0])) == (True, True)


# Random expressions of what operators combine

TERMS = st.sampled_from(
    [
        *("user.name", "user.domain", "cluster.name", "request.reason", "request.source", "request.key_type"),
        *(
            "cluster.labels.env",
            "cluster.labels.owner",
            "cluster.labels.tier",
            '"prod"',
            '"alice"',
            '""',
            '"é"',
        ),
    ]
)
LISTS_OF_STRINGS = st.sampled_from(["user.groups", "user.roles", '["alice", "prod"]', "[]", "cluster.labels"])
FACTS = st.one_of(
    st.builds("{} {} {}".format, TERMS, st.sampled_from(["==", "!=", "<", ">="]), TERMS),
    st.builds("{}.{}({})".format, TERMS, st.sampled_from(["contains", "startsWith", "endsWith"]), TERMS),
    st.builds("{} in {}".format, TERMS, LISTS_OF_STRINGS),
    st.builds("{}.{}(x, x == {})".format, LISTS_OF_STRINGS, st.sampled_from(["all", "exists", "exists_one"]), TERMS),
    st.builds("has(cluster.labels.{})".format, st.sampled_from(["env", "owner", "nothing"])),
    st.builds("now.get{}() > {}".format, st.sampled_from(["Hours", "DayOfWeek", "Month"]), st.integers(0, 24)),
    st.sampled_from(["request.csr", "true", "false", "user.nothing", "user.name"]),
)  # fmt: skip
COMBINED = st.recursive(
    FACTS,
    lambda inner: st.one_of(
        st.builds("({} && {})".format, inner, inner),
        st.builds("({} || {})".format, inner, inner),
        st.builds("!({})".format, inner),
        st.builds("({} ? {} : {})".format, inner, inner, inner),
    ),
    max_leaves=5,
)


@given(source=COMBINED, said=st.sampled_from(INPUTS))
def test_both_libraries_agree_on_random_expressions(source: str, said: DecisionInput) -> None:
    assert ours(source, said) == theirs(source, said)


# What is refused when the policy is loaded


def accepted(source: str) -> bool:
    try:
        Expression(source)
    except ValueError:
        return False
    return True


def test_the_fields_of_the_checks_are_those_that_expressions_read() -> None:
    read = variables(INPUTS[0])
    assert {name: tuple(read[name]) for name in FIELDS} == FIELDS
    assert read.keys() - FIELDS.keys() == {"now"}


@pytest.mark.parametrize("source", LISTED)
def test_no_accepted_expression_gives_anything_but_a_bool(source: str) -> None:
    results = []
    for said in INPUTS:
        result = REFERENCE.compile(source, disable_check=True).eval(data=variables(said))
        if result.type() not in (google.Type.BOOL, google.Type.ERROR):
            results.append(result)
    assert not (results and accepted(source))


@given(source=COMBINED)
def test_random_expressions_are_refused_only_for_their_fields_and_types(source: str) -> None:
    uses_wrong_fact = "user.nothing" in source or re.search(
        r"(?<![=<>!] )\buser\.name\b(?! [=<>!]| in|\.)", source
    )
    assert accepted(source) or uses_wrong_fact


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ('request.crs == "x"', "unknown field request.crs; valid fields are .*request.csr"),
        ('has(user.group) && "a" in user.group', "unknown field user.group; .*user.groups"),
        ('"contractors" in user', "user can only be read by field: user.id"),
        ('user["groups"].exists(g, g == "a")', "user can only be read by field"),
        ("[user][0].crs == 1", "user can only be read by field"),
        ('.user.crs == "x"', "unknown variable .user"),
        ('user . crs == "x"', "unknown field user.crs"),
        ('user // a comment\n.crs == "x"', "unknown field user.crs"),
        ('"request.csr" == request.crs', "unknown field request.crs"),
        ('r"\\" == user.crs', "unsupported syntax"),
        ("user.groups.exists(user, user.crs == 1)", "user is a variable already"),
        ("user.groups.exists(now, now == 'a')", "now is a variable already"),
        ("1 + 1", "the result is not a bool"),
        ("user.name", "the result is not a bool"),
        ("size(user.groups)", "the result is not a bool"),
        ("request.csr ? 1 : true", "the result is not a bool"),
        ("request.csr && user.name", "the result is not a bool"),
        ('user.groups.filter(g, g == "a")', "the result is not a bool"),
        ("user.groups.map(g, g) == []", "map gives no bool"),
        ("user.groups.exists(g, user.roles.exists(r, r == g))", "exists can't be called inside exists"),
        ('user.groups.exists(g, g.matches("^a"))', "matches can't be called inside exists"),
        (" || ".join(['user.groups.exists(g, g == "a")'] * 11), "at most 10 calls of all, exists"),
        ("matches(user.name, 'a')", 'matches must be called on a text, .* request.reason.matches."a".'),
        ("'a'.startsWith('b', 'c')", "startsWith must be called on a text"),
        ("startsWith('a','b')", "startsWith must be called on a text"),
        ("'1'.int() == 1", "int is called with one value"),
        ("user.groups.size('x') == 1", "size must be called as"),
        ("getHours(now) == 1", "getHours must be called on a time, .* now.getHours.."),
        ("timestamp(0) < now", "timestamp.0. fails for every request"),
        ("string(true) == 'true'", "string.true. fails for every request"),
        ("int(now) > 0", "int.now. fails for every request"),
        ("user.name.matches('(')", "matches.'.'. fails for every request"),
        ("user.name.contains(1)", "contains.1. fails for every request"),
        ("now.x == 1", "now is a timestamp and has no field x"),
        ("user.name.x == 'a'", "user.name is a string and has no field x"),
        ("has(cluster.labels.env.x)", "cluster.labels.env is a string and has no field x"),
        ("cluster.labels['env'].x == 'a'", "is a string and has no field x"),
        ("user.name == 1", "user.name is a string, which never equals a number; compare it with a string"),
        ("user.name != -1", "never equals a number"),
        ("true && 1 == user.name", "never equals a number"),
        ("-1 == user.name", "never equals a number"),
        ("request.csr == 'true'", "request.csr is a bool, which never equals a string"),
        ("request.reason == null", "never equals a null"),
        ("user.groups == 'a'", "user.groups is a list, which never equals a string"),
        ("cluster.labels.tier == 1 && request.csr", "cluster.labels.tier is a string"),
        ("cluster.labels['tier'] == 1", "is a string, which never equals a number"),
        ("(user.name == true)", "never equals a bool"),
        ("now == '2026-01-01T00:00:00Z'", "now is a timestamp, which never equals a string"),
        ("!" * 4000 + "request.csr", "nested too deeply|syntax error"),
    ],
)
def test_an_expression_that_could_never_decide_or_take_long_is_refused(source: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Expression(source)


@pytest.mark.parametrize(
    "source",
    [
        "1 == 1 == request.csr",
        "'a' == user.name == request.csr",
        "1 + user.name.size() == 6",
        "user.name.size() == 6 - 1",
        "user.name == '1' + '2'",
        "cluster.labels == {} || cluster.labels.size() == 1",
        "cluster.labels.exists(k, k == 'env')",
        "'a,b'.contains(',') && user.groups[0] == 'a'",
        "request.csr == true && true == request.csr",
        "timestamp(now) == now && string(now) != ''",
        "cluster.labels.env.startsWith('a') && now.getHours() == 1",
    ],
)
def test_an_expression_that_can_decide_is_accepted(source: str) -> None:
    assert Expression(source).source == source


def test_the_types_of_the_checks_are_those_that_expressions_read() -> None:
    read = variables(INPUTS[0])
    types = {f"{name}.{each}": type(read[name][each]).__name__ for name in FIELDS for each in FIELDS[name]}
    others = {name: kind for name, kind in types.items() if kind != "str"}
    assert {name: kind.replace("dict", "map") for name, kind in others.items()} == FIELD_TYPES


def test_a_user_with_very_many_groups_fails_each_expression() -> None:
    many = replace(ALICE, groups=tuple(Group(f"{n:032x}", f"g{n}", DOMAIN) for n in range(501)))
    with pytest.raises(ConditionFailed, match="more than 500 groups"):
        Expression("request.csr").first_false(replace(INPUTS[0], caller=many))
