"""Which names the settings let a policy give."""

import pytest
from pydantic import ValidationError

from clustercert.policy.rule_settings import PolicySettings


def names(*given: str, **policy: object) -> list[str]:
    """The names of rules as the settings give them; empty strings are rules without a name."""
    rules = [({"name": name} if name else {}) | {"grant": {"groups": ["g"]}} for name in given]
    return [rule.name for rule in PolicySettings.model_validate({"rules": rules} | policy).policy().rules]


def test_a_rule_without_a_name_is_named_by_its_position() -> None:
    assert [rule.name for rule in PolicySettings().policy().rules] == ["admin", "member", "reader"]
    assert names("a", "", "b", "") == ["a", "rule-2", "b", "rule-4"]
    assert names("a", role_groups=True) == ["a", "admin", "member", "reader"]


@pytest.mark.parametrize(
    ("given", "policy"), [(["x", "x"], {}), (["rule-2", ""], {}), (["admin"], {"role_groups": True})]
)
def test_two_rules_with_one_name_are_refused(given: list[str], policy: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=f"two rules have the name {given[0]}"):
        names(*given, **policy)


@pytest.mark.parametrize(
    "name", ["clustercert:credential:", "clustercert:credential:" + "0" * 40, "clustercert:credential:admins"]
)
def test_no_rule_gives_a_credential_group(name: str) -> None:
    said = {"rules": [{"grant": {"groups": ["ours", name]}}]}
    with pytest.raises(ValidationError, match="reserved for credential groups"):
        PolicySettings.model_validate(said)
    with pytest.raises(ValidationError, match="write the full name, such as system:masters"):
        PolicySettings.model_validate(said | {"allow_system": [name]})


def test_no_rule_gives_the_services_own_group() -> None:
    with pytest.raises(ValidationError, match="is reserved for this service"):
        PolicySettings.model_validate({"rules": [{"grant": {"groups": ["clustercert:service"]}}]})


@pytest.mark.parametrize(
    ("rule", "role"),
    [
        ({"name": "r", "when": {"roles": ["r"]}, "grant": {"groups": ["g"]}}, "r"),
        ({"when": {"roles": ["r"]}, "grant": {"groups": ["g", "team:{group}"]}}, "r"),
        ({"name": "r", "when": {"roles": ["r"]}, "grant": {"groups": ["team:{group}"]}}, None),
        ({"name": "r", "when": {"roles": ["r"]}, "grant": {"groups": ["g", "user:{user.id}"]}}, None),
        ({"when": {"roles": ["r"]}, "grant": {"groups": ["{role}"]}}, None),
        ({"when": {"roles": ["r"]}, "grant": {"max_lifetime": "1h"}}, None),
        ({"when": {"roles": ["r"]}, "deny": "No."}, None),
    ],
)
def test_a_rule_without_a_plain_group_cannot_be_tested_with_a_role(
    rule: dict[str, object], role: str | None
) -> None:
    [loaded] = PolicySettings.model_validate({"rules": [rule]}).all_rules
    assert loaded.tested_role == role
