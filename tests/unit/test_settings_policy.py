"""Which names the settings let a policy give."""

import pytest
from pydantic import ValidationError

from clustercert.settings import PolicySettings


@pytest.mark.parametrize(
    "name", ["clustercert:credential:", "clustercert:credential:" + "0" * 40, "clustercert:credential:admins"]
)
@pytest.mark.parametrize("allowed", [True, False])
def test_no_rule_gives_a_credential_group(name: str, allowed: bool) -> None:
    said = {"rules": [{"role": "admin", "groups": ["ours", name]}]}
    with pytest.raises(ValidationError, match="only clustercert's own credential groups do"):
        PolicySettings.model_validate(said | {"allow_system": [name] if allowed else []})


def test_no_rule_gives_the_services_own_group() -> None:
    with pytest.raises(ValidationError, match="a name that this service uses itself"):
        PolicySettings.model_validate({"rules": [{"role": "admin", "groups": ["clustercert:service"]}]})
