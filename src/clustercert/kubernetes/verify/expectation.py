"""The behavior that `clustercert kubernetes verify` expects from an API server, and the checks for it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from clustercert.kubernetes.setup.resolution import bound_roles
from clustercert.kubernetes.verify.probe import (
    ROLE_PERMISSIONS,
    CheckFailed,
    Denied,
    NotAuthenticated,
    Permission,
    Probe,
)
from clustercert.model import Cluster, ClusterOptions
from clustercert.model.choices import RevocationControl
from clustercert.model.errors import InvalidRequest
from clustercert.policy.rule_settings import PolicySettings, RuleSettings

POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Expectation:
    """The expected behavior of a cluster.

    Attributes:
        role: the role of the policy rule to test; None for certificates without groups.
        permissions: the permissions that the rule's groups should have.
        control: the mechanism that should enforce a revocation.
        address: the API server's address.
        seconds: how long a revocation may take to become effective.
        measures_rate: whether to measure how many certificates the signer signs.
    """

    role: str | None
    permissions: tuple[Permission, ...]
    control: RevocationControl
    address: str
    seconds: float
    measures_rate: bool = False

    async def is_refused(self, probe: Probe) -> bool:
        """Whether the API server refuses a certificate. Raises CheckFailed."""
        try:
            match self.control:
                case "binding":
                    return not await probe.is_allowed(self.permissions[0])
                case "admission":
                    await probe.dry_run_write()
                case "webhook":
                    await probe.who_am_i()
        except Denied:
            return True
        return False

    async def seconds_until_refused(self, probe: Probe, start: float, limit: float) -> float | None:
        """Measure the seconds until a revoked certificate is refused. Returns `None` after the time limit.

        Args:
            start: when the certificate was revoked, in seconds of `time.monotonic`.
            limit: how many seconds after the start to give up.
        """
        return await self._seconds_until(lambda: self.is_refused(probe), start, limit)

    async def require_refused(self, probe: Probe, fault: str, advice: str) -> None:
        """Raise CheckFailed unless a certificate is refused within the time limit."""
        if (
            await self._seconds_until(lambda: self._is_rejected(probe), time.monotonic(), self.seconds)
            is None
        ):
            raise CheckFailed(fault, advice)

    async def _is_rejected(self, probe: Probe) -> bool:
        try:
            return await self.is_refused(probe)
        except NotAuthenticated:
            # Some API servers reject the signature of an altered copy, which also counts as a refusal.
            return True

    @staticmethod
    async def _seconds_until(
        holds: Callable[[], Awaitable[bool]], start: float, limit: float
    ) -> float | None:
        """Measure the seconds until a condition holds. Returns `None` after the time limit."""
        while time.monotonic() - start < limit:
            if await holds():
                return round(time.monotonic() - start, 2)
            await asyncio.sleep(POLL_SECONDS)
        return None


def expect(
    policy: PolicySettings,
    cluster: Cluster,
    *,
    rule: str | None,
    bind: Mapping[str, str],
    can: Sequence[str] | None,
    namespace: str,
    address: str | None,
    wait: float,
    by: RevocationControl | None,
    measure_rate: bool = False,
) -> Expectation:
    """Return how the cluster is expected to behave. Raises InvalidRequest if an option is invalid.

    Args:
        rule: the policy rule to test; by default the first rule that needs only a role.
        bind: the ClusterRoles of groups, which take precedence over the defaults.
        can: permissions to test, such as `list:pods`; by default a permission of each bound ClusterRole.
        namespace: the namespace of the permissions in `can`.
        address: the API server's address; by default the cluster's internal address.
        wait: how many seconds a revocation may take to become effective.
        by: the mechanism to test; by default binding if the cluster uses bindings, else admission if the cluster uses
            the admission policy, else webhook.
        measure_rate: whether to measure how many certificates the signer signs.
    """
    control = by or _default_control(cluster.options)
    address = address or cluster.internal_url
    tested = _find_rule(rule, policy.all_rules)
    if tested is None:
        if control != "webhook" or can:
            raise InvalidRequest(
                "No rule of the policy needs only a role, so the certificates have no groups, and test only the "
                "webhook. Use --by webhook without --can, or add a rule that needs only a role, and name it with "
                "--rule."
            )
        return Expectation(None, (), control, address, wait, measure_rate)
    role = (cluster.options.credential_roles or {}).get(tested.name)
    bound = bound_roles(policy.policy().groups, bind)
    roles = [role] if role else [bound[group] for group in tested.granted_groups if group in bound]
    given = tuple(_parse_permission(each, namespace) for each in can or ())
    return Expectation(
        role=tested.tested_role,
        permissions=given or tuple(ROLE_PERMISSIONS[each] for each in roles if each in ROLE_PERMISSIONS),
        control=control,
        address=address,
        seconds=wait,
        measures_rate=measure_rate,
    )


def _find_rule(name: str | None, rules: Sequence[RuleSettings]) -> RuleSettings | None:
    """Return the policy rule with this name, or without a name the first rule that needs only a role (or `None`)."""
    if not rules:
        raise InvalidRequest("--rule: The policy has no rule.")
    if name is None:
        return next((each for each in rules if each.tested_role is not None), None)
    found = next((each for each in rules if each.name == name), None)
    if found is None:
        raise InvalidRequest(
            f"--rule: The policy has no rule {name}. Its rules are {', '.join(each.name for each in rules)}."
        )
    if found.tested_role is None:
        raise InvalidRequest(
            f"--rule: The rule {found.name} can't be tested: it denies or offers, has conditions besides a role, or "
            "grants only groups from templates. Choose another rule."
        )
    return found


def _parse_permission(text: str, namespace: str) -> Permission:
    verb, colon, resource = text.partition(":")
    plural, _, api_group = resource.partition(".")
    if not (verb and colon and plural):
        raise InvalidRequest(
            f"--can: {text!r} is not valid. Write it like list:pods or create:deployments.apps."
        )
    return Permission(verb, plural, api_group, namespace)


def _default_control(options: ClusterOptions) -> RevocationControl:
    if options.credential_roles:
        return "binding"
    return "admission" if options.admission else "webhook"


ADVICE: dict[Literal["binding", "admission"], str] = {
    "binding": "Check that the service runs and reaches the API server. Its log names bindings that were not deleted.",
    "admission": "Check that the service runs and reaches the API server. Apply admission.yaml and service-access.yaml "
    "of `clustercert kubernetes setup`.",
}
COPY_ADVICE = (
    "The cluster does not recognize certificates in the same way as this service. Run `clustercert kubernetes setup` "
    "again, and follow its README.md."
)
