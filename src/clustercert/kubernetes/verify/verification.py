"""Verifies that issuing, permissions and revocation work, by using two temporary certificates at the API server."""

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Literal

from clustercert.kubernetes.verify.certificates import TemporaryCertificates, VerifiedService, altered_copy
from clustercert.kubernetes.verify.diagnosis import WebhookDiagnosis, webhook_problem
from clustercert.kubernetes.verify.expectation import ADVICE, COPY_ADVICE, Expectation
from clustercert.kubernetes.verify.probe import CheckFailed, NoDecision, Probe
from clustercert.kubernetes.verify.signing import signing_limits, signing_rate, system_names_refused
from clustercert.model import Cluster, Issued, credential_group, utc_now
from clustercert.model.choices import RevocationControl
from clustercert.model.kubernetes import MASTERS, X509_ID
from clustercert.pki.keys import accepted_key, key_type_of

# After this time, a webhook that does not answer is reported instead of waiting for it. API servers cache an earlier
# answer for a few seconds.
_UNANSWERED_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Passed:
    """The outcome of a check that found no fault.

    Attributes:
        seconds: how long the revocation took to become effective; `None` if not measured.
        skipped: true if the check was not possible; `detail` says why.
    """

    detail: str
    seconds: float | None = None
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check. A failed check has advice about how to correct the fault."""

    check: str
    result: Literal["ok", "failed", "skipped"]
    seconds: float | None
    detail: str
    advice: str = ""


class ClusterVerification:
    """Runs the checks of a cluster, in order.

    Attributes:
        notes: sentences for the operator, after `run`.
    """

    def __init__(self, service: VerifiedService, cluster: Cluster, expected: Expectation) -> None:
        self._service = service
        self._cluster = cluster
        self._expected = expected
        self._issued: list[Issued] = []
        self._probes: list[Probe] = []
        self._tells_hash = False
        self.notes: list[str] = []

    def webhook_problem(self) -> str | None:
        """Return why the webhook does not answer this process, if the verification tests the webhook. Else `None`."""
        if self._expected.control != "webhook":
            return None
        return webhook_problem(self._service, self._cluster)

    async def run(self, report: Callable[[int, int], object]) -> Sequence[CheckResult]:
        """Run all checks and return their results. After a failure, the remaining checks are skipped.

        Always revokes the certificates at the end. Raises ClustercertError if the store fails.

        Args:
            report: called before each check, with the number of checks that are done, and of all checks.
        """
        results: list[CheckResult] = []
        async with AsyncExitStack() as stack:
            certificates = TemporaryCertificates(self._service, self._cluster, self._expected.address, stack)
            diagnosis = WebhookDiagnosis(self._service, self._cluster, certificates, utc_now())
            checks: dict[str, Callable[[], Awaitable[Passed]]] = {}
            if certificates.signer.profile == "kubernetes":
                checks["sign"] = lambda: _passed(signing_limits(certificates))
                checks["system names"] = lambda: _passed(system_names_refused(certificates))
            if self._expected.measures_rate:
                checks["rate"] = lambda: _passed(signing_rate(certificates))
            checks |= {
                "issue": lambda: self._issue_two(certificates),
                "authenticate": lambda: self._authenticate(diagnosis),
                "authorize": self._authorize,
                "revoke": lambda: self._revoke_one(diagnosis),
                "altered copy": lambda: self._use_copies(certificates),
                "other certificate": self._use_other,
            }
            if self._expected.control == "webhook" and self._cluster.options.mode == "known-only":
                checks["unknown certificate"] = lambda: self._use_unknown(certificates)
            for name, check in checks.items():
                report(len(results), len(checks))
                if any(result.result == "failed" for result in results):
                    results.append(CheckResult(name, "skipped", None, "an earlier check failed"))
                else:
                    results.append(await check_result(name, check))
        return results

    async def _issue_two(self, certificates: TemporaryCertificates) -> Passed:
        """Issue two certificates for the same identity, and connect with each certificate."""
        for _ in range(2):
            issued = await certificates.issue(self._expected.role)
            self._issued.append(issued)
            self._probes.append(await certificates.open(issued))
        grant = self._issued[0].grant
        groups = ", ".join(grant.groups) or "one credential group each"
        return Passed(f"two certificates for {grant.username} in {groups}")

    async def _authenticate(self, diagnosis: WebhookDiagnosis) -> Passed:
        issued = self._issued[0]
        try:
            identity = await self._probes[0].who_am_i()
        except NoDecision as failed:
            raise CheckFailed(failed.message, await diagnosis.why_undecided()) from failed
        groups = {*issued.grant.groups, credential_group(issued.credential_number)}
        if identity.username != issued.grant.username or not identity.groups >= groups:
            raise CheckFailed(
                f"the cluster accepted the certificate as user {identity.username} "
                f"(groups: {', '.join(sorted(identity.groups))})",
                "A proxy may rewrite identities, or another server may use this address: give the API server's own"
                " address.",
            )
        if not identity.credential_ids:
            return Passed("accepted, and recognized by its credential group; this API server sends no hash")
        if identity.credential_ids != (f"{X509_ID}{issued.fingerprint}",):
            raise CheckFailed(
                f"the cluster accepted the certificate with the id {', '.join(identity.credential_ids)}",
                "A proxy may present its own certificate: give the API server's own address.",
            )
        self._tells_hash = True
        return Passed("accepted, and recognized by its credential group")

    async def _authorize(self) -> Passed:
        if self._expected.role is None:
            return Passed("no rule of the policy needs only a role", skipped=True)
        permissions = self._expected.permissions
        if missing := [str(each) for each in permissions if not await self._probes[0].is_allowed(each)]:
            raise CheckFailed(
                f"the certificate's user lacks permission to: {', '.join(missing)}",
                "Apply rbac.yaml of `clustercert kubernetes setup`, or name the group's permissions with --can.",
            )
        if not permissions:
            return Passed("no permission was tested: give --can VERB:RESOURCE")
        return Passed(f"may {', '.join(str(each) for each in permissions)}")

    async def _revoke_one(self, diagnosis: WebhookDiagnosis) -> Passed:
        """Revoke the first certificate, and wait until the cluster refuses the certificate."""
        control, issued, probe = self._expected.control, self._issued[0], self._probes[0]
        if control == "webhook" and MASTERS in issued.grant.groups:
            raise CheckFailed(
                f"members of {MASTERS} are authorized before any webhook is called",
                f"Remove {MASTERS} from the policy, and bind a group of your own to cluster-admin.",
            )
        if control == "binding" and not self._expected.permissions:
            raise CheckFailed("there is no known permission to test", "Give one with --can VERB:RESOURCE.")
        if await self._expected.is_refused(probe):
            raise CheckFailed(
                "the certificate was refused before it was revoked",
                "An admission policy stops only writes: choose a rule that may create namespaces, with --rule.",
            )
        await self._service.revoke(issued)
        start, limit = time.monotonic(), self._expected.seconds
        waited = min(limit, _UNANSWERED_SECONDS) if control == "webhook" else limit
        seconds = await self._expected.seconds_until_refused(probe, start, waited)
        if seconds is None and waited < limit and not await diagnosis.is_unanswered(probe):
            seconds, waited = await self._expected.seconds_until_refused(probe, start, limit), limit
        if seconds is None:
            advice = (
                ADVICE[control]
                if control != "webhook"
                else await diagnosis.why_accepted(probe, self._probes[1])
            )
            raise CheckFailed(
                f"the certificate was still accepted {waited:.0f} seconds after it was revoked",
                advice,
            )
        return Passed(_REFUSED_BY[control], seconds)

    async def _use_copies(self, certificates: TemporaryCertificates) -> Passed:
        """Check that the cluster rejects an altered copy of the revoked certificate.

        If the webhook enforces revocations, check an altered copy of the valid certificate too.
        """
        copy_der = altered_copy(self._issued[0].leaf_der)
        if copy_der is None:
            key_type = key_type_of(accepted_key(self._cluster.client_ca.ca_certificate.public_key()))
            return Passed(
                f"not tried: a signature of the client CA's key ({key_type}) has no second form", skipped=True
            )
        copy = await certificates.open(self._issued[0], copy_der)
        await self._expected.require_refused(
            copy,
            f"a copy with a different signature is accepted after {self._expected.seconds:.0f} seconds",
            COPY_ADVICE,
        )
        # The user's other certificate is not revoked, so the webhook can recognize the copy only by the hash.
        if self._expected.control == "webhook" and self._tells_hash:
            other = self._issued[1]
            await self._expected.require_refused(
                await certificates.open(other, altered_copy(other.leaf_der)),
                "a copy of the user's other certificate with a different signature is accepted",
                COPY_ADVICE,
            )
        return Passed("refused with a different signature too")

    async def _use_other(self) -> Passed:
        if await self._expected.is_refused(self._probes[1]):
            raise CheckFailed(
                "the user's other certificate is refused too",
                "See `clustercert certificate list` for other revocations.",
            )
        return Passed("the user's other certificate still works")

    async def _use_unknown(self, certificates: TemporaryCertificates) -> Passed:
        """Check that the mode known-only denies a certificate from the client CA that is not in the ledger."""
        advice = (
            "Write the files again with `clustercert kubernetes setup --force --mode known-only`, and copy"
            " authorization-config.yaml to every API server."
            if self._tells_hash
            else "Mode known-only needs Kubernetes 1.32 or newer. Upgrade, or use the mode default."
        )
        if not certificates.signs_without_number:
            return Passed(
                "not tried: the cluster signs no certificate without a credential number", skipped=True
            )
        unknown = await certificates.open_without_number()
        fault = "a certificate without a credential number, signed by the client CA, is accepted in mode known-only"
        await self._expected.require_refused(unknown, fault, advice)
        return Passed("a certificate of the client CA that is not in the ledger is refused")


async def _passed(detail: Awaitable[str]) -> Passed:
    return Passed(await detail)


async def check_result(name: str, check: Callable[[], Awaitable[Passed]]) -> CheckResult:
    """Run a check, and return its result. A `CheckFailed` is a result too."""
    try:
        passed = await check()
    except CheckFailed as failed:
        return CheckResult(name, "failed", None, failed.message, failed.advice)
    return CheckResult(name, "skipped" if passed.skipped else "ok", passed.seconds, passed.detail)


_REFUSED_BY: dict[RevocationControl, str] = {
    "webhook": "refused, by the authorization webhook",
    "binding": "all permissions lost, because its binding was deleted",
    "admission": "writes refused, by the admission policy; reads still work",
}
