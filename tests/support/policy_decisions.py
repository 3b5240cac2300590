"""Decisions of the policy of the samples."""

from datetime import datetime, timedelta

from clustercert.model import Grant, IssueRequest
from clustercert.policy.decision import Policy
from support.samples import (
    NOW,
    POLICY,
    caller,
    cluster,
)

CLUSTER = cluster()


DAY = timedelta(days=1)


def decide(ask: IssueRequest, *roles: str, policy: Policy = POLICY, now: datetime = NOW) -> Grant:
    return policy.decide(caller(*(roles or ("admin",))), CLUSTER, ask, now)
