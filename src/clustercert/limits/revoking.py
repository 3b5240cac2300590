"""Limits how often callers revoke certificates."""

import time
from collections.abc import Callable

from clustercert.limits.rates import PROJECT_REVOCATIONS, REVOCATIONS, Rate, TokenBuckets
from clustercert.model.errors import TooManyRequests
from clustercert.observability import metrics
from clustercert.policy.lifetime import waiting_time


class RevocationRates:
    """Limits the revocations of each caller, and of other users' certificates in each project, in this process."""

    def __init__(
        self,
        caller: Rate = REVOCATIONS,
        project: Rate = PROJECT_REVOCATIONS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._callers = TokenBuckets(caller, clock=clock)
        self._projects = TokenBuckets(project, clock=clock)

    def count(self, user_id: str, project_id: str | None) -> None:
        """Count a revocation. Raises TooManyRequests.

        Args:
            project_id: the project in which an admin revokes other users' certificates; None if callers revoke their
                own certificates, so that members can't use up the revocations of their project's admins.
        """
        if seconds := self._callers.seconds_until_token(user_id):
            raise _refused("revocations", "You sent too many revocations.", seconds)
        if project_id is not None:
            if seconds := self._projects.seconds_until_token(project_id):
                raise _refused(
                    "project_revocations", "The admins of this project sent too many revocations.", seconds
                )
            self._projects.add(project_id, -1)
        self._callers.add(user_id, -1)


def _refused(limit: str, problem: str, seconds: int) -> TooManyRequests:
    metrics.LIMITED.labels(limit).inc()
    return TooManyRequests(
        f"{problem} Try again in {waiting_time(seconds)}, or ask an operator, who has no limit. To revoke all"
        " certificates of a cluster, one request is enough.",
        retry_after=seconds,
    )
