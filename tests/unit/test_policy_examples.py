"""Examples beside the rules of a policy: how they are decided, what fails, and where the faults are."""

import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest

from clustercert.model import KeyType
from clustercert.policy.decision import policy_digest
from clustercert.policy.examples import ExampleResult, run_examples
from clustercert.policy.rule_settings import PolicySettings
from clustercert.settings import SettingsError, load

RULES = """
allow_system = []
username = "{user.name}@{user.domain}"

[[rules]]
name = "frozen"
when.cluster_labels = { frozen = ["true"] }
deny = "This cluster is frozen."

[[rules]]
name = "members"
when.roles = ["member"]
grant.groups = ["editors", "team:{group}"]
grant.max_lifetime = "24h"
grant.default_lifetime = "8h"

[[rules]]
name = "ci"
when.users = ["Default/ci-*"]
when.auth_methods = ["access_key"]
when.issuers = ["built-in"]
when.sources = ["10.0.0.0/8"]
grant.groups = ["ci:{project.id}:{cluster.name}"]
grant.key_types = ["rsa-4096"]
"""
EXAMPLE = """
[[examples]]
name = "alice"
caller.user = "alice"
caller.roles = ["member"]
request.duration = -1
expects.groups = ["editors"]
"""


def results(text: str) -> list[ExampleResult]:
    loaded = PolicySettings.model_validate(tomllib.loads(text))
    return list(run_examples(loaded.policy(), loaded.examples))


def result(example: str) -> ExampleResult:
    [one] = results(f'{RULES}\n[[examples]]\nname = "x"\n{example}')
    return one


@pytest.mark.parametrize(
    "example",
    [
        "expects.groups = ['editors']",
        "expects = { refused = false }",
        "expects = { username = 'alice@Default', lifetime = '8h', max_lifetime = '24h' }",
        "caller.groups = ['b', 'a']\nexpects.groups = ['team:a', 'editors', 'team:b']",
        "caller.user = 'other/bob'\nexpects.username = 'bob@other'",
        "request.expires_in = '90m'\nexpects = { lifetime = '90m', max_lifetime = '24h' }",
        "request = { expires_in = '25h', shorten = true }\nexpects.lifetime = '24h'",
        "request.expires_in = '25h'\nexpects.message = 'exceeds the limit of rule members'",
        "request.duration = 1\nexpects.lifetime = '1d'",
        "request.duration = 2\nexpects.message = 'exceeds the limit of rule members'",
        "cluster.labels = { frozen = 'true' }\nexpects.refused_by = 'frozen'",
        "cluster.labels = { frozen = 'true' }\nexpects = { refused = true, message = 'is frozen' }",
        "caller.roles = []\nexpects.refused = true",
        "caller.roles = ['reader']\nexpects.message = 'No rule of the policy matches'",
    ],
)
def test_a_decision_as_expected_passes(example: str) -> None:
    assert result(example).passed, result(example)


CI = """
caller = { user = "ci-web", roles = ["deployer"], auth_method = "access_key", source = "10.1.2.3" }
cluster = { name = "shop", project = "0c97ac3cb280f4d91fa7c0096739e1f8" }
request.key_type = "rsa-4096"
expects.groups = ["ci:0c97ac3cb280f4d91fa7c0096739e1f8:shop"]
"""


def test_all_conditions_are_compared_with_the_example() -> None:
    assert result(CI).passed
    for change, to in [
        ("ci-web", "web"),
        ("ci-web", "other/ci-web"),
        ('"access_key"', '"token"'),
        ("10.1.2.3", "192.0.2.1"),
        ("rsa-4096", "rsa-2048"),
        ("user =", 'issuer = "https://issuer.example", user ='),
    ]:
        assert CI.count(change) == 1
        failed = result(CI.replace(change, to))
        assert not failed.passed
        assert failed.decided.startswith("refused: No rule of the policy matches")


@pytest.mark.parametrize(
    ("example", "expected", "decided"),
    [
        ("expects.groups = ['a']", "allowed; groups a", "allowed; groups editors; user name alice@Default"),
        ("expects.groups = ['editors', 'x']", "allowed; groups editors, x", "allowed; groups editors;"),
        ("expects.username = 'a'", "allowed; user name a", "allowed; groups editors; user name alice@Default"),
        ("expects.lifetime = '24h'", "allowed; lifetime 1 day", "; lifetime 8 hours; longest lifetime 1 day"),
        ("expects.max_lifetime = '8h'", "allowed; longest lifetime 8 hours", "; longest lifetime 1 day"),
        ("expects.refused = true", "refused", "allowed; groups editors; "),
        ("expects.refused_by = 'frozen'", "refused by rule frozen", "allowed; groups editors; "),
        ("expects.message = 'No.'", "refused: No.", "allowed; groups editors; "),
        ("request.duration = 30\nexpects.message = 'No.'", "refused: No.", "refused: The requested lifetime (30"),
        ("caller.roles = []\nexpects.lifetime = '8h'", "allowed; lifetime 8", "refused: The caller has no role"),
        (
            "cluster.labels = { frozen = 'true' }\nexpects.refused_by = 'ci'",
            "refused by rule ci",
            "refused by rule frozen: This cluster is frozen.",
        ),
    ],
)  # fmt: skip
def test_another_decision_fails_and_both_are_named(example: str, expected: str, decided: str) -> None:
    failed = result(example)
    assert not failed.passed
    assert failed.expected.startswith(expected)
    assert decided in failed.decided


OFFERS = """
[[rules]]
name = "edit"
when.roles = ["member"]
offer.groups = ["editors", "owners"]
offer.max_lifetime = "4h"
offer.approvals = [{ role = "admin" }, { role = "admin" }]

[[rules]]
name = "emergency"
when.groups = ["on-call"]
offer.groups = ["admins"]
offer.max_lifetime = "1h"
offer.approvals = [{ role = "admin" }]
offer.before_approval = true
"""
EDIT = 'request.access = { rule = "edit", groups = ["editors"] }\n'
EMERGENCY = 'caller.groups = ["on-call"]\nrequest.access = { rule = "emergency", groups = ["admins"] }\n'


@pytest.mark.parametrize(
    ("example", "failure"),
    [
        (EDIT + 'expects = { groups = ["editors"], lifetime = "4h" }', None),
        (EDIT + "expects.refused = true", ("refused", "allowed; groups editors; lifetime 4 hours")),
        (EDIT.replace("editors", "admins") + 'expects.message = "does not offer you this access"', None),
        (EDIT + 'caller.roles = ["x"]\nexpects.message = "The rule needs: role is member."', None),
        (EMERGENCY + 'expects = { groups = ["admins"], offers = ["emergency", "edit"] }', None),
        (EMERGENCY.replace(" }", ", approved = false }") + 'expects.groups = ["admins"]', None),
        (EDIT.replace(" }", ", approved = false }") + 'expects.message = "use before the approval"', None),
        ('expects = { refused = true, offers = ["edit"] }', None),
        ('expects = { message = "request create example --group", offers = ["edit"] }', None),
        ('expects.offers = ["edit"]', None),
        ('caller.roles = ["x"]\nexpects.offers = []', None),
        ("expects.offers = []", ("offers nothing", "refused: You have no access to this cluster without a ")),
        (
            EDIT + 'expects = { groups = ["editors"], offers = ["edit", "emergency"] }',
            ("allowed; groups editors; offers edit, emergency", "allowed; groups editors; lifetime 4 hours; off"),
        ),
    ],
)  # fmt: skip
def test_an_example_can_have_an_access_request(example: str, failure: tuple[str, str] | None) -> None:
    [one] = results(f'{OFFERS}\n[[examples]]\nname = "x"\n{example}')
    assert one.passed is (failure is None), one.decided
    if failure is not None:
        assert one.expected == failure[0]
        assert one.decided.startswith(failure[1])


@pytest.mark.parametrize(
    ("example", "fault"),
    [
        (EDIT.replace('"edit"', '"none"') + "expects.refused = true", r"request.access.rule: no rule named none"),
        (EDIT.replace('["editors"]', "[]") + "expects.refused = true", r"request.access.groups: write at least one"),
        ('request.access = { rule = "edit" }\nexpects.refused = true', r"request.access.groups: the field is missing"),
        ('expects.offers = ["edit", "gone"]', r"expects.offers: no rule named gone offers groups"),
    ],
)  # fmt: skip
def test_a_fault_in_an_access_request_of_an_example_is_named(
    tmp_path: Path, example: str, fault: str
) -> None:
    [found] = faults(tmp_path, f'{OFFERS}\n[[examples]]\nname = "x"\n{example}')
    assert f"policy.examples.0.{fault}" in found


@pytest.mark.parametrize("key_type", get_args(KeyType))
def test_an_example_may_have_a_key_of_any_type(key_type: str) -> None:
    rule = f"[[rules]]\nname = 'r'\ngrant = {{ groups = ['g'], key_types = ['{key_type}'], csr_required = true }}\n"
    example = f"[[examples]]\nname = 'e'\nrequest.key_type = '{key_type}'\nexpects.groups = ['g']\n"
    assert [each.passed for each in results(rule + example)] == [True]


def test_expressions_read_the_time_of_the_example() -> None:
    rule = "[[rules]]\nname = 'r'\nwhen.cel = 'now.getHours() < 18'\ngrant.groups = ['g']\n"
    day = "[[examples]]\nname = 'day'\nexpects.groups = ['g']\n"
    night = "[[examples]]\nname = 'night'\nnow = 2026-03-01T23:00:00+02:00\nexpects.refused = true\n"
    assert [each.passed for each in results(rule + day + night)] == [True, True]


def test_examples_are_not_in_the_digest() -> None:
    said: dict[str, Any] = tomllib.loads(RULES)
    without, with_example = (
        PolicySettings.model_validate(said | {"examples": examples}).policy()
        for examples in ([], [{"name": "e", "expects": {"refused": True}}])
    )
    assert policy_digest(without) == policy_digest(with_example)


@pytest.mark.parametrize(
    ("change", "to", "fault"),
    [
        ('name = "alice"', "", r":26:3: policy.examples.0.name: the field is missing"),
        ('expects.groups = ["editors"]', "", r":26:3: policy.examples.0.expects: the field is missing"),
        ('["editors"]', "[]", r":31:9: policy.examples.0.expects.groups: "),
        ("expects.groups", "expect.groups", r":31:1: policy.examples.0.expect: unknown field"),
        ("groups = [", "gruops = [", r":31:9: policy.examples.0.expects.gruops: unknown field"),
        ('groups = ["editors"]', 'refused_by = "forzen"', r":31:9: .*no rule has the name forzen"),
        ("duration = -1", "duration = 0", r":30:9: .*must be -1 or at least 1"),
        ("duration = -1", "duration = 1828", r":30:9: .*less than or equal to 1827"),
        ("duration = -1", "expires_in = '4m'", r":30:9: .*from 5m to 1825d"),
        ("request.duration = -1", "request = {duration=1, expires_in='1h'}", r":30:12: .*or expires_in, not both"),
        ("request.duration = -1", "request = {duration=1, shorten=true}", r":30:24: .*shorten needs expires_in"),
        ("request.duration = -1", "request = {csr=false, key_type='ed25519'}", r":30:23: .*needs csr = true"),
        ("duration = -1", "key_type = 'rsa'", r":30:9: .*key_type: write 'ec-p256'"),
        ('user = "alice"', "source = '10.0.0.0/8'", r":28:8: .*does not appear to be an IPv4"),
        ('user = "alice"', "auth_method = '*'", r":28:8: .*unknown authentication method"),
        ('caller.user = "alice"', "cluster.project = ''", r":28:9: .*cluster.project: .*at least one character"),
        ('caller.user = "alice"', "now = 2026-01-05", r":28:1: .*now: write a time with its offset"),
        ('caller.user = "alice"', "now = 9000-01-05T00:00:00Z", r":28:1: .*year must be from 2000 to 2100"),
        ('expects.groups = ["editors"]', "expects = {}", r":31:1: .*write what is expected"),
        ('expects.groups = ["editors"]', "expects = {refused=true, groups=['g']}", r":31:26: .*refused has no groups"),
        ('expects.groups = ["editors"]', "expects = {refused=false, message='a'}", r":31:27: .*contradicts message"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_place(tmp_path: Path, change: str, to: str, fault: str) -> None:
    text = RULES + EXAMPLE
    assert text.count(change) >= 1
    before, _, after = text.rpartition(change)
    assert before.count("\n") > RULES.count("\n")
    found = faults(tmp_path, before + to + after)
    assert any(re.search(f"policy.toml{fault}", each) for each in found), found


def test_two_examples_with_one_name_are_a_fault(tmp_path: Path) -> None:
    [found] = faults(tmp_path, RULES + EXAMPLE + EXAMPLE)
    assert ":34:1: policy.examples.1.name: two examples have the name alice" in found


def faults(folder: Path, policy: str) -> list[str]:
    file = folder / "policy.toml"
    file.write_text(policy, encoding="utf-8")
    with pytest.raises(SettingsError) as refused:
        load(None, file)
    return refused.value.message.splitlines()[1:]


def test_the_first_failed_examples_are_named(tmp_path: Path) -> None:
    failing = "".join(EXAMPLE.replace("alice", f"example {n}").replace('"editors"', '"x"') for n in range(5))
    file = tmp_path / "policy.toml"
    file.write_text(RULES + EXAMPLE + failing, encoding="utf-8")
    with pytest.raises(SettingsError) as refused:
        load(None, file).check_examples()
    _, *lines = refused.value.message.splitlines()
    assert [line.partition(":")[0].strip() for line in lines] == [
        *("example 0", "example 1", "example 2"),
        "and 2 more",
    ]
    assert "expected allowed; groups x; got allowed; groups editors" in lines[0]


ISSUERS = """
[identity.keystone]
url = "https://keystone.example:5000/v3"
domain = "cloud"
service = { username = "u", password_file = "/p" }

[[identity.issuers]]
name = "sso"
issuer = "https://sso.example"
audiences = ["a"]
domain = "acme"

[[identity.issuers]]
name = "corp"
issuer = "https://corp.example"
audiences = ["a"]
domain = "acme"
prefix_names = false

[[policy.rules]]
grant.groups = ["g"]

[[policy.examples]]
name = "e"
expects.groups = ["g"]
"""
SSO = "issuer = 'https://sso.example', auth_method = 'oidc'"
CORP = "issuer = 'https://corp.example', auth_method = 'oidc'"
KEYSTONE = "issuer = 'https://keystone.example:5000/v3', auth_method = 'keystone_key'"


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (f"{SSO}, user = 'sso/alice', groups = ['sso/a']", None),
        (f"{SSO}, user = 'sso/alice', groups = ['{'1' * 32}'], domain = 'sso'", None),
        (f"{CORP}, domain = 'corp', user = 'alice', groups = ['a']", None),
        (f"{KEYSTONE}, user = 'keystone/Default/alice', groups = ['keystone/Default/a']", None),
        ("auth_method = 'access_key'", None),
        (f"{SSO}", "user: no user or group of this issuer is called alice; write names like sso/alice$"),
        (f"{SSO}, user = 'sso/alice', groups = ['team-a']", "groups: .*is called team-a"),
        (f"{SSO}, user = 'sso/alice', groups = ['{'1' * 32}']", "groups: no user or group"),
        (
            f"{SSO}, user = 'sso/alice', domain = 'Default'",
            "domain: the domain of this issuer's users is sso",
        ),
        (f"{CORP}", "domain: .*write domain = corp$"),
        (f"{KEYSTONE}", "user: .*write names like keystone/DOMAIN/alice$"),
        ("issuer = 'https://sso.example', user = 'sso/alice'", "auth_method: .*by token; write oidc$"),
        ("issuer = 'https://keystone.example:5000/v3'", "auth_method: .*by token; write keystone, "),
        (
            "auth_method = 'oidc'",
            "auth_method: callers of built-in don't authenticate by oidc; write token, ",
        ),
        (
            "issuer = 'https://other.example'",
            "issuer: no issuer has the URL https://other.example; the issuers",
        ),
    ],
)
def test_an_example_is_about_a_caller_that_the_issuer_can_have(
    tmp_path: Path, said: str, fault: str | None
) -> None:
    config = tmp_path / "settings.toml"
    config.write_text(f"{ISSUERS}caller = {{ {said} }}\n", encoding="utf-8")
    if fault is None:
        load(config).check_examples()
        return
    with pytest.raises(SettingsError, match=rf"policy\.examples\.0\.caller\.{fault}"):
        load(config)


@pytest.mark.parametrize(
    ("said", "groups"),
    [
        ({"user": "corp/alice", "groups": ["corp/dev"]}, ["team:corp/dev"]),
        ({"domain": "corp", "user": "alice", "groups": ["dev"]}, ["team:dev"]),
        ({"domain": "corp", "user": "corp/alice", "groups": ["corp/dev"]}, ["team:corp/dev"]),
    ],
)
def test_an_issuer_names_its_groups_with_or_without_its_own_name(
    said: dict[str, object], groups: list[str]
) -> None:
    rule = {"name": "dev", "when": {"groups": ["corp/dev"]}, "grant": {"groups": ["team:{group}"]}}
    example = {
        "name": "e",
        "caller": said | {"issuer": "https://issuer.example", "auth_method": "oidc"},
        "expects": {"groups": groups},
    }
    settings = PolicySettings.model_validate({"rules": [rule], "examples": [example]})
    [result] = run_examples(settings.policy(), settings.examples)
    assert result.passed, result.decided
