"""The group that names a certificate, and what a cluster with bindings makes of a grant."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.model import (
    ClusterOptions,
    credential_group,
    credential_groups,
    credential_number,
    is_credential_number,
)
from clustercert.model.errors import Forbidden
from clustercert.pki.leaf import MAX_NAME, new_serial
from clustercert.policy.cluster_grant import cluster_grant
from support.samples import cluster, grant


@given(st.one_of(st.integers(0, 2**160 - 1), st.integers(0, 300)))
def test_a_credential_number_has_40_digits_and_fits_into_a_group(serial: int) -> None:
    number = credential_number(serial)
    assert (len(number), int(number, 16), number) == (40, serial, number.lower())
    assert is_credential_number(number)
    group = credential_group(number)
    assert group == f"clustercert:credential:{number}"
    assert len(group.encode()) == 63 <= MAX_NAME
    assert credential_groups(["a", group, "clustercert:admins"]) == [group]


def test_a_new_serial_is_its_own_number() -> None:
    """Its first digits are the time, so that the serial in hex is as long as the number."""
    assert all(f"{serial:x}" == credential_number(serial) for serial in (new_serial() for _ in range(100)))


@pytest.mark.parametrize(
    "text", ["", "0" * 39, "0" * 41, "A" * 40, "g" * 40, "0" * 40 + "\n", "٣" * 40, "0x" + "0" * 38]
)
def test_a_malformed_number_is_rejected_but_its_group_has_the_prefix(text: str) -> None:
    assert not is_credential_number(text)
    group = f"clustercert:credential:{text}"
    assert credential_groups([group]) == [group]


def with_roles(roles: dict[str, str] | None) -> ClusterOptions:
    return ClusterOptions(credential_roles=roles)


@pytest.mark.parametrize("roles", [None, {}])
def test_without_bindings_the_grant_keeps_its_groups(roles: dict[str, str] | None) -> None:
    guarded = replace(cluster(), options=with_roles(roles))
    assert cluster_grant(grant(), guarded) == grant()


def test_with_bindings_a_certificate_has_only_its_credential_group() -> None:
    guarded = replace(cluster(), options=with_roles({"admin": "cluster-admin"}))
    assert cluster_grant(grant(), guarded) == replace(grant(), groups=())
    several = replace(grant(), rule="member", rules=("member", "admin", "reader"))
    assert cluster_grant(several, guarded) == replace(several, rule="admin", groups=())
    other = replace(grant(), rule="member", rules=("member",), trace={"rule": "member"})
    with pytest.raises(Forbidden, match="no ClusterRole for the rule member") as refused:
        cluster_grant(other, guarded)
    assert refused.value.trace == {"rule": "member"}
