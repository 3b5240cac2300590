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
from clustercert.cli.altered_copy import altered_copy
from clustercert.cli.cluster_probe import Denied, Failed, NotAuthenticated, Probe, Right
from clustercert.errors import ClustercertError
from clustercert.keypair import accepted_key, key_pem, key_type_of
from clustercert.kubeapi import ClientIdentity, opened
from clustercert.manifests import MASTERS, X509_ID
from clustercert.manifests.admission import reads_numbers
from clustercert.model import Ask, Caller, Cluster, Domain, Issued, User, credential_group
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
        tried: whether there was anything to look at; the detail says why not.
    """

    detail: str
    seconds: float | None = None
    tried: bool = True


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
        self._tells_hash = False

    async def run(self) -> Sequence[Check]:
        """Every check; those behind one that failed are skipped. Raises ClustercertError where the store fails."""
        checks: list[Check] = []
        async with AsyncExitStack() as stack:
            steps: dict[str, Callable[[], Awaitable[Passed]]] = {
                "issue": lambda: self._issue_two(stack),
                "authenticate": self._authenticate,
                "authorize": self._authorize,
                "revoke": self._revoke_one,
                "altered copy": lambda: self._show_copies(stack),
                "other certificate": self._use_the_other,
            }
            for name, step in steps.items():
                if any(check.result == "failed" for check in checks):
                    checks.append(Check(name, "skipped", "one before it failed"))
                else:
                    checks.append(await _tried(name, step))
        return checks

    async def _issue_two(self, stack: AsyncExitStack) -> Passed:
        """Two certificates of the same identity, and the API server asked with each, until the stack is unwound."""
        for _ in range(2):
            issued = await self._issue()
            stack.push_async_callback(self._revoke, issued)
            self._issued.append(issued)
            self._probes.append(await self._open(stack, issued, issued.leaf_der))
        groups = self._issued[0].grant.groups
        return Passed(f"two for {USER} in {', '.join(groups) or 'a credential group each'}")

    async def _open(self, stack: AsyncExitStack, issued: Issued, leaf_der: bytes) -> Probe:
        """The API server, asked with an encoding of a certificate, until the stack is unwound."""
        identity = _identity(issued, leaf_der)
        api = opened(self._wanted.address, self._cluster.server_ca_pem, identity)
        return Probe(await stack.enter_async_context(api))

    async def _authenticate(self) -> Passed:
        issued = self._issued[0]
        seen = await self._probes[0].who_am_i()
        groups = {*issued.grant.groups, credential_group(issued.credential_number)}
        if seen.username != USER or not seen.groups >= groups:
            raise Failed(
                f"it is taken for {seen.username} in {', '.join(sorted(seen.groups))}",
                "Something on the way rewrites identities, or another server answers at this address.",
            )
        if not seen.credential_ids:
            return Passed("accepted, and told apart by its credential group; this API server tells no hash")
        if seen.credential_ids != (f"{X509_ID}{issued.fingerprint}",):
            raise Failed(
                f"it is taken for the credential {', '.join(seen.credential_ids)}",
                "Something on the way shows a certificate of its own: give the API server's own address.",
            )
        self._tells_hash = True
        return Passed("accepted, and told apart by its credential group")

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
        seconds = await self._seconds_until(lambda: self._stopped(probe))
        if seconds is None:
            raise Failed(
                f"still accepted {self._wanted.seconds:.0f} seconds after it was revoked", _ADVICE[means]
            )
        return Passed(_BY[means], seconds)

    async def _seconds_until(self, holds: Callable[[], Awaitable[bool]]) -> float | None:
        """How long it took until something held; None where it did not in the time that there is."""
        begun = time.monotonic()
        while time.monotonic() - begun < self._wanted.seconds:
            if await holds():
                return round(time.monotonic() - begun, 2)
            await asyncio.sleep(POLL_SECONDS)
        return None

    async def _show_copies(self, stack: AsyncExitStack) -> Passed:
        """Use an altered copy of the revoked certificate; with the webhook, one of the other certificate too."""
        means, issued = self._wanted.means, self._issued[0]
        copy_der = altered_copy(issued.leaf_der)
        if copy_der is None:
            policy = await self._look_at_policy(None)
            key_type = key_type_of(accepted_key(self._cluster.client_ca.certificate.public_key()))
            said = f"not tried: a signature of the client CA's key ({key_type}) has no second form"
            return Passed(said + policy, tried=False)
        copy = await self._open(stack, issued, copy_der)
        if await self._seconds_until(lambda: self._copy_stopped(copy)) is None:
            raise Failed(
                f"a copy with another signature is accepted after {self._wanted.seconds:.0f} seconds",
                _ADVICE_FOR_COPIES[means],
            )
        # A copy of a good certificate is refused for its hash alone.
        if means == "webhook" and self._tells_hash:
            await self._show_copy_of_other(stack)
        return Passed("refused with another signature too" + await self._look_at_policy(copy))

    async def _show_copy_of_other(self, stack: AsyncExitStack) -> None:
        issued = self._issued[1]
        copy = await self._open(stack, issued, altered_copy(issued.leaf_der) or issued.leaf_der)
        if await self._seconds_until(lambda: self._copy_stopped(copy)) is None:
            raise Failed(
                "a copy of the user's other certificate with another signature is accepted",
                _ADVICE_FOR_COPIES["webhook"],
            )

    async def _copy_stopped(self, probe: Probe) -> bool:
        """As `_stopped`; an API server that does not even accept such a signature will do."""
        try:
            return await self._stopped(probe)
        except NotAuthenticated:
            return True

    async def _look_at_policy(self, copy: Probe | None) -> str:
        """What is to be said of an admission policy that may read hashes alone, and record that it does not.

        Raises Failed where nothing else stops altered copies.
        """
        options = self._cluster.options
        if not options.admission or options.admission_by_number:
            return ""
        if copy is None or not await _refused_by_policy(copy):
            try:
                current = reads_numbers(await self._probes[1].admission_policy())
            except Failed:
                return "; hashes go on being written into the cluster: its admission policy could not be read"
            if not current and copy is None and self._wanted.means == "admission":
                raise Failed(
                    "the cluster's admission policy is an older one", _ADVICE_FOR_COPIES["admission"]
                )
            if not current:
                return "; hashes go on being written into the cluster: its admission policy is an older one"
        await self._operator.parts.clusters.note_admission_by_number(self._cluster, **self._operator.who)
        return (
            "; the admission policy reads credential numbers, so no hashes are written beside them any more"
        )

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
            origin=self._operator.who["origin"],
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
            **self._operator.who,
        )


async def _tried(name: str, step: Callable[[], Awaitable[Passed]]) -> Check:
    try:
        passed = await step()
    except Failed as failed:
        return Check(name, "failed", failed.message, advice=failed.advice)
    return Check(name, "ok" if passed.tried else "skipped", passed.detail, passed.seconds)


async def _refused_by_policy(probe: Probe) -> bool:
    """Whether the admission policy refuses what a probe writes, and nobody before it does. Raises Failed."""
    try:
        await probe.try_to_write()
    except Denied as denied:
        return denied.by_admission_policy
    except NotAuthenticated:
        pass
    return False


def _identity(issued: Issued, leaf_der: bytes) -> ClientIdentity:
    if issued.private_key is None:
        raise RuntimeError("a certificate was issued without its key")
    return ClientIdentity(der_pem(leaf_der), key_pem(issued.private_key))


_BY: dict[Means, str] = {
    "webhook": "refused, by the authorization webhook",
    "binding": "may nothing any more, by the end of its binding",
    "admission": "may not write any more, by the admission policy; it still reads",
}
_ADVICE: dict[Means, str] = {
    "webhook": "See that the API server has the --authorization-config of `clustercert kubernetes setup`, that the "
    "service runs and is reached by https, under the CA of webhook.kubeconfig, with the token in it (the API server's "
    "log and apiserver_authorization_webhook_evaluations_total say so), and that unauthorizedTTL is short.",
    "binding": "See that the service runs and reaches the API server: its log says what it couldn't unbind.",
    "admission": "See that the service runs and reaches the API server, and apply admission.yaml and "
    "service-access.yaml of `clustercert kubernetes setup`.",
}
_OLDER_SERVICE = (
    "A service of an older version answers or writes for this cluster. Upgrade every replica, then run "
    "`clustercert kubernetes setup` again."
)
_ADVICE_FOR_COPIES: dict[Means, str] = {
    "webhook": _OLDER_SERVICE,
    "binding": _OLDER_SERVICE,
    "admission": "The policy in the cluster reads hashes alone, and a copy has another hash. Write the manifests with "
    "`clustercert kubernetes setup` again, and apply admission.yaml and service-access.yaml.",
}
