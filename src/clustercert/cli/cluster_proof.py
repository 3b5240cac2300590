"""Whether a cluster does what is promised of it, seen with two throw-away certificates at its own API server.

Both are issued as any other is, for a user that nobody is, and revoked at the end whatever happens.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

from clustercert.certificate import der_pem
from clustercert.cli.cluster_probe import Denied, Failed, Probe, Right
from clustercert.errors import ClustercertError
from clustercert.keypair import key_pem
from clustercert.kubeapi import ClientIdentity, opened
from clustercert.manifests import MASTERS, X509_ID
from clustercert.model import Ask, Caller, Cluster, Domain, Issued, User
from clustercert.revocation import Grounds

if TYPE_CHECKING:
    from clustercert.cli.session import Operator

Means = Literal["webhook", "binding", "admission"]
"""By what a revocation takes effect; see `docs/kubernetes.md`."""

USER = "clustercert:verify"
NOTE = "clustercert kubernetes verify"
# A little more than the least that the policy takes.
LIFETIME = timedelta(minutes=20)
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be proved.

    Attributes:
        role: of the policy's rule.
        rights: of its groups.
        means: by what a revocation should take effect.
        seconds: how long that may take.
    """

    role: str
    rights: tuple[Right, ...]
    means: Means
    address: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Passed:
    """What a check came to that found all as it should be.

    Attributes:
        seconds: how long it took, where that is the question.
    """

    detail: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was to be looked at.

    Attributes:
        advice: what to do about it; empty where nothing is.
    """

    check: str
    result: Literal["ok", "failed", "skipped"]
    detail: str
    seconds: float | None = None
    advice: str = ""


class Proof:
    """Makes the checks, one after the other."""

    def __init__(self, operator: "Operator", cluster: Cluster, wanted: Wanted) -> None:
        self._operator = operator
        self._cluster = cluster
        self._wanted = wanted
        self._issued: list[Issued] = []
        self._probes: list[Probe] = []

    async def run(self) -> Sequence[Check]:
        """Every check; those behind one that failed are skipped. Raises ClustercertError where the store fails."""
        checks: list[Check] = []
        async with AsyncExitStack() as stack:
            steps: dict[str, Callable[[], Awaitable[Passed]]] = {
                "issue": lambda: self._issue_two(stack),
                "authenticate": self._authenticate,
                "authorize": self._authorize,
                "revoke": self._revoke_one,
                "other certificate": self._use_the_other,
            }
            for name, step in steps.items():
                if checks and checks[-1].result != "ok":
                    checks.append(Check(name, "skipped", "the one before it failed"))
                else:
                    checks.append(await _tried(name, step))
        return checks

    async def _issue_two(self, stack: AsyncExitStack) -> Passed:
        """Two certificates of the same identity, and the API server asked with each, until the stack is unwound."""
        for _ in range(2):
            issued = await self._issue()
            stack.push_async_callback(self._revoke, issued)
            identity = _identity(issued)
            api = await stack.enter_async_context(
                opened(self._wanted.address, self._cluster.server_ca_pem, identity)
            )
            self._issued.append(issued)
            self._probes.append(Probe(api))
        return Passed(f"two for {USER} in {', '.join(self._issued[0].grant.groups)}")

    async def _authenticate(self) -> Passed:
        issued = self._issued[0]
        seen = await self._probes[0].who_am_i()
        if seen.username != USER or not seen.groups >= set(issued.grant.groups):
            raise Failed(
                f"it is taken for {seen.username} in {', '.join(sorted(seen.groups))}",
                "Something on the way rewrites identities, or another server answers at this address.",
            )
        if not seen.credential_ids:
            raise Failed(
                "the API server doesn't say which certificate a request came with",
                "Revoking a certificate takes Kubernetes 1.32 or newer.",
            )
        if seen.credential_ids != (f"{X509_ID}{issued.fingerprint}",):
            raise Failed(
                f"it is taken for the credential {', '.join(seen.credential_ids)}",
                "Something on the way shows a certificate of its own: give the API server's own address.",
            )
        return Passed("accepted, and told apart by its fingerprint")

    async def _authorize(self) -> Passed:
        rights = self._wanted.rights
        if missing := [str(right) for right in rights if not await self._probes[0].may(right)]:
            raise Failed(
                f"may not {', '.join(missing)}",
                "Apply the output of `clustercert kubernetes rbac`, or say with --can what the group may do.",
            )
        if not rights:
            return Passed("nothing was asked: say --can VERB:RESOURCE")
        return Passed(f"may {', '.join(str(right) for right in rights)}")

    async def _revoke_one(self) -> Passed:
        """Revoke the first certificate while it is in use, and wait for its end."""
        means, issued, probe = self._wanted.means, self._issued[0], self._probes[0]
        if means == "webhook" and MASTERS in issued.grant.groups:
            raise Failed(
                f"members of {MASTERS} pass before any webhook is asked",
                f"Take {MASTERS} out of the policy, and bind a group of your own to cluster-admin.",
            )
        if means == "binding" and not self._wanted.rights:
            raise Failed("no right is known that could be lost", "Say one with --can VERB:RESOURCE.")
        if await self._stopped(probe):
            raise Failed(
                "what should be stopped is refused already",
                "An admission policy stops writes alone: choose a rule that may make namespaces, with --rule.",
            )
        await self._revoke(issued)
        begun = time.monotonic()
        while (waited := time.monotonic() - begun) < self._wanted.seconds:
            if await self._stopped(probe):
                return Passed(_BY[means], round(time.monotonic() - begun, 2))
            await asyncio.sleep(POLL_SECONDS)
        raise Failed(f"still accepted {waited:.0f} seconds after it was revoked", _ADVICE[means])

    async def _use_the_other(self) -> Passed:
        if await self._stopped(self._probes[1]):
            raise Failed(
                "the user's other certificate is refused too",
                "See `clustercert certificate list` for what else is revoked.",
            )
        return Passed("the user's other certificate still works")

    async def _stopped(self, probe: Probe) -> bool:
        """Whether what a revocation should stop is refused. Raises Failed."""
        try:
            match self._wanted.means:
                case "binding":
                    return not await probe.may(self._wanted.rights[0])
                case "admission":
                    await probe.try_to_write()
                case "webhook":
                    await probe.who_am_i()
        except Denied:
            return True
        return False

    async def _issue(self) -> Issued:
        project_id = self._cluster.project_id
        caller = Caller(
            user=User(id=USER, name=USER, domain=Domain(id="", name="")),
            roles={project_id: (self._wanted.role,)},
            method="cli",
            origin=self._operator.origin,
        )
        ask = Ask(expire_at=datetime.now(UTC).replace(microsecond=0) + LIFETIME, clip=True, reason=NOTE)
        try:
            return await self._operator.parts.issuance.issue(caller, project_id, self._cluster.id, ask)
        except ClustercertError as error:
            raise Failed(error.message, "Nothing can be issued for this cluster as it is.") from error

    async def _revoke(self, issued: Issued) -> None:
        revoking = self._operator.parts.revoking
        await revoking.one(
            await revoking.find(issued.fingerprint),
            Grounds("cessationOfOperation", NOTE),
            actor=self._operator.actor,
            origin=self._operator.origin,
        )


async def _tried(name: str, step: Callable[[], Awaitable[Passed]]) -> Check:
    try:
        passed = await step()
    except Failed as failed:
        return Check(name, "failed", failed.message, advice=failed.advice)
    return Check(name, "ok", passed.detail, passed.seconds)


def _identity(issued: Issued) -> ClientIdentity:
    if issued.private_key is None:
        raise RuntimeError("a certificate was issued without its key")
    return ClientIdentity(der_pem(issued.leaf_der), key_pem(issued.private_key))


_BY: dict[Means, str] = {
    "webhook": "refused, by the authorization webhook",
    "binding": "may nothing any more, by the end of its binding",
    "admission": "may not write any more, by the admission policy; it still reads",
}
_ADVICE: dict[Means, str] = {
    "webhook": "See that the API server has the --authorization-config of `clustercert kubernetes setup`, that it "
    "reaches this service (apiserver_authorization_webhook_evaluations_total), and that unauthorizedTTL is short.",
    "binding": "See that the service runs and reaches the API server: its log says what it couldn't unbind.",
    "admission": "See that the service runs and reaches the API server, and apply admission.yaml and "
    "service-access.yaml of `clustercert kubernetes setup`.",
}
