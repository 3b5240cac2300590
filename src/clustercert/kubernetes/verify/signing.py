"""Checks of a cluster that signs itself: whether it signs, for how long, how fast, and what it refuses."""

import asyncio
import time
from datetime import timedelta
from http import HTTPStatus

from clustercert.kube_api import ApiServerRefused, KubeApi
from clustercert.kubernetes.verify.certificates import NOT_ISSUED, TemporaryCertificates
from clustercert.kubernetes.verify.probe import CheckFailed
from clustercert.model.errors import ClustercertError
from clustercert.model.kubernetes import CLIENT_SIGNER, NEVER_SIGNS

SIGN_SECONDS = 5.0
# The measurement ends after this time, or after this number of certificates.
RATE_SECONDS = 5.0
MOST_MEASURED = 200
AT_ONCE = 32

# No role is bound to this group.
SYSTEM_GROUP = "system:clustercert-verify"
# A ValidatingAdmissionPolicy refuses with the status of its `reason`.
_REFUSALS = frozenset({HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY})
_POLICY_ADVICE = (
    "Apply the ValidatingAdmissionPolicy clustercert-signer and its binding:"
    " `clustercert kubernetes signer-access | kubectl apply -f -`."
)
_HOUR, _DAY = 3600, 86400


async def signing_limits(certificates: TemporaryCertificates) -> str:
    """Let the cluster sign a certificate for the longest lifetime. Returns how long it is valid. Raises CheckFailed."""
    started = time.monotonic()
    try:
        async with asyncio.timeout(SIGN_SECONDS):
            lifetime = await certificates.longest_lifetime()
    except TimeoutError as error:
        raise CheckFailed(
            f"the cluster did not sign a certificate within {SIGN_SECONDS:g} seconds",
            await _why_unsigned(certificates),
        ) from error
    except ClustercertError as error:
        raise CheckFailed(error.message, NOT_ISSUED) from error
    return f"signed in {time.monotonic() - started:.2f} s, for at most {_about(lifetime)}"


async def system_names_refused(certificates: TemporaryCertificates) -> str:
    """Check that the cluster signs no certificate with a group of Kubernetes itself. Raises CheckFailed.

    Only the admission policy of the signer's account refuses such certificates. The group gives no rights, and the key
    of the certificate is thrown away.
    """
    try:
        async with asyncio.timeout(SIGN_SECONDS):
            await certificates.sign_unrecorded(SYSTEM_GROUP)
    except TimeoutError as error:
        raise CheckFailed(
            f"the cluster neither signed nor refused a certificate within {SIGN_SECONDS:g} seconds",
            _POLICY_ADVICE,
        ) from error
    except ClustercertError as error:
        refused = error if isinstance(error, ApiServerRefused) else error.__cause__
        if isinstance(refused, ApiServerRefused) and refused.http_status in _REFUSALS:
            return "a certificate with a group that begins with system: is refused"
        raise CheckFailed(error.message, NOT_ISSUED) from error
    raise CheckFailed(
        f"the cluster signed a certificate with the group {SYSTEM_GROUP}: its signer account may get certificates of"
        " system:nodes, and so may a thief of the account's token",
        _POLICY_ADVICE,
    )


async def signing_rate(certificates: TemporaryCertificates) -> str:
    """Let the signer sign as many certificates as it can in a few seconds. Returns the rate. Raises CheckFailed.

    The certificates are not recorded, have no groups, and their key is thrown away.
    """
    started, ended, signed = time.monotonic(), 0.0, 0

    async def sign_until_the_end() -> None:
        nonlocal ended, signed
        while signed < MOST_MEASURED and time.monotonic() - started < RATE_SECONDS:
            await certificates.sign_unrecorded()
            signed, ended = signed + 1, time.monotonic()

    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(AT_ONCE):
                tasks.create_task(sign_until_the_end())
    except* ClustercertError as failures:
        raise CheckFailed(_first(failures).message, NOT_ISSUED) from failures
    return f"{signed / (ended - started):.0f} certificates a second ({signed} signed, {AT_ONCE} at once)"


def _first(failures: BaseExceptionGroup[ClustercertError]) -> ClustercertError:
    failure = failures.exceptions[0]
    return failure if isinstance(failure, ClustercertError) else _first(failure)


async def _why_unsigned(certificates: TemporaryCertificates) -> str:
    advice = f"Check that the cluster's kube-controller-manager runs, and signs for {CLIENT_SIGNER}."
    try:
        async with KubeApi(certificates.address, certificates.cluster.server_ca_pem, None) as api:
            version = str((await api.get("/version")).get("gitVersion", ""))
    except ClustercertError:
        return advice
    for part, name in NEVER_SIGNS.items():
        if part in version:
            return f"This is {name} ({version}), which never signs client certificates. Use another signer."
    return advice


def _about(lifetime: timedelta) -> str:
    """Round a lifetime: the cluster back-dates certificates, and this service asks for slightly less."""
    seconds = lifetime.total_seconds()
    for unit, size in (("days", _DAY), ("hours", _HOUR)):
        if seconds > 2 * size:
            return f"{round(seconds / size)} {unit}"
    return f"{round(seconds / 60)} minutes"
