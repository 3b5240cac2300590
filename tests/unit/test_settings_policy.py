"""Which names the settings let a policy give."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from clustercert.policy.rule_settings import PolicySettings


def rules(*said: dict[str, Any]) -> list[str]:
    """The names of rules as the settings give them."""
    loaded = PolicySettings.model_validate({"rules": [{"groups": ["g"]} | rule for rule in said]})
    return [rule.name for rule in loaded.policy().rules]


def test_a_rule_without_a_name_is_named_like_its_role() -> None:
    assert [rule.name for rule in PolicySettings().policy().rules] == ["admin", "member", "reader"]
    assert rules({"role": "a"}, {"role": "b"}, {"role": "a"}) == ["a", "b", "rule-3"]
    assert rules({"role": "a"}, {"role": "a", "name": "b"}, {"role": "b"}) == ["a", "b", "rule-3"]


def test_two_rules_with_one_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="two rules have the name x"):
        rules({"role": "a", "name": "x"}, {"role": "b", "name": "x"})


@pytest.mark.parametrize("preset", ["production", "strict"])
@pytest.mark.parametrize("own", [{"role": "admin"}, {"role": "x", "name": "admin"}])
def test_own_rules_keep_their_names_beside_a_preset(preset: str, own: dict[str, str]) -> None:
    loaded = PolicySettings.model_validate({"preset": preset, "rules": [own | {"groups": ["g"]}]})
    assert [rule.name for rule in loaded.policy().rules] == ["admin", f"{preset}-admin", "member", "reader"]


@given(st.lists(st.sampled_from("abc"), max_size=6))
def test_every_rule_of_older_settings_has_a_name_of_its_own(roles: list[str]) -> None:
    names = rules(*({"role": role} for role in roles))
    assert len(set(names)) == len(names) == len(roles)
    assert all(roles.index(role) != at or names[at] == role for at, role in enumerate(roles))


@pytest.mark.parametrize(
    "name", ["clustercert:credential:", "clustercert:credential:" + "0" * 40, "clustercert:credential:admins"]
)
@pytest.mark.parametrize("allowed", [True, False])
def test_no_rule_gives_a_credential_group(name: str, allowed: bool) -> None:
    said = {"rules": [{"role": "admin", "groups": ["ours", name]}]}
    with pytest.raises(ValidationError, match="reserved for credential groups"):
        PolicySettings.model_validate(said | {"allow_system": [name] if allowed else []})


def test_no_rule_gives_the_services_own_group() -> None:
    with pytest.raises(ValidationError, match="is reserved for this service"):
        PolicySettings.model_validate({"rules": [{"role": "admin", "groups": ["clustercert:service"]}]})


@pytest.mark.parametrize(
    ("rule", "role"),
    [
        ({"role": "r", "groups": ["g"]}, "r"),
        ({"when": {"roles": ["r"]}, "grant": {"groups": ["g", "team:{group}"]}}, "r"),
        ({"role": "r", "groups": ["team:{group}"]}, None),
        ({"role": "r", "groups": ["g", "user:{user.id}"]}, None),
        ({"when": {"roles": ["r"]}, "grant": {"groups": ["{role}"]}}, None),
        ({"when": {"roles": ["r"]}, "grant": {"username": "{user.name}"}}, None),
        ({"when": {"roles": ["r"]}, "deny": "No."}, None),
    ],
)
def test_a_rule_without_a_plain_group_cannot_be_tested_with_a_role(
    rule: dict[str, object], role: str | None
) -> None:
    [loaded] = PolicySettings.model_validate({"rules": [rule]}).all_rules
    assert loaded.tested_role == role
