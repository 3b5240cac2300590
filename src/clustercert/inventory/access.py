"""Who can still get into a cluster, what stops them and how fast, and what goes on after they are stopped.

Source of the speeds and of what remains: measurements of kube-apiserver 1.32 and 1.36, in `docs/kubernetes.md`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Literal

from clustercert.manifests import AUTHENTICATED, MASTERS
from clustercert.model import Cluster
from clustercert.store.access import AccessRows, Unknown
from clustercert.store.inventory import Listed, State

# What a worker goes through while others wait for it; that there are more, the report says of itself.
MAX_CREDENTIALS = 2000
MAX_UNKNOWN = 1000

# An API server asks only while somebody shows one of our certificates, and keeps an answer for some seconds: a silent
# night says nothing.
ASKED_WITHIN = timedelta(days=1)

WayName = Literal["webhook", "binding", "admission", "ca", "expiry"]


@dataclass(frozen=True, slots=True)
class Way:
    """A way to keep a credential out.

    Attributes:
        set_up: whether this service has been told to use it in the cluster, and for the webhook, whether the API
            server asked lately; that it does as it is told, only `clustercert kubernetes verify` shows.
        within: how soon it takes effect, a sentence.
        limits: what it doesn't stop, a sentence.
        lacking: what was begun and isn't done, a sentence; None where nothing is known to lack.
    """

    name: WayName
    set_up: bool
    within: str
    limits: str
    lacking: str | None = None


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate that has not ended.

    Attributes:
        groups: what the API server counts the holder into: those of the certificate, the credential group aside, and
            system:authenticated.
        cluster_role: what the credential group is bound to as things are now; None where it does not stand alone.
        gets_in: whether it opens the cluster, as far as this service can know: also a revoked one, where nothing is
            set up that would keep it out.
        stopped_by: the ways that stop it, the quickest first.
    """

    certificate: Listed
    state: State
    groups: tuple[str, ...]
    cluster_role: str | None
    gets_in: bool
    stopped_by: tuple[WayName, ...]


@dataclass(frozen=True, slots=True)
class Holder:
    """A user and their credentials, the longest-lived first. `groups` are those of all of them, sorted."""

    user_id: str
    user_name: str
    groups: tuple[str, ...]
    credentials: tuple[Credential, ...]

    @property
    def first_seen_at(self) -> datetime | None:
        return min(_times(each.certificate.first_seen_at for each in self.credentials), default=None)

    @property
    def last_seen_at(self) -> datetime | None:
        return max(_times(each.certificate.last_seen_at for each in self.credentials), default=None)


@dataclass(frozen=True, slots=True)
class GroupAccess:
    """A Kubernetes group, and how many get in with it."""

    name: str
    users: int
    credentials: int
    last_seen_at: datetime | None


@dataclass(frozen=True, slots=True)
class Report:
    """Who can still get into a cluster.

    Attributes:
        complete: whether all certificates that have not ended are in it.
        unknown: client certificates that the API server saw and that aren't ours.
        remains: what goes on after a credential is stopped, sentences.
    """

    cluster: Cluster
    at: datetime
    complete: bool
    holders: tuple[Holder, ...]
    groups: tuple[GroupAccess, ...]
    unknown: tuple[Unknown, ...]
    ways: tuple[Way, ...]
    remains: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AccessReports:
    """Answers who can still get in."""

    rows: AccessRows
    now: Callable[[], datetime]

    async def report(
        self, cluster: Cluster, *, user_id: str | None, group: str | None, most: int = MAX_CREDENTIALS
    ) -> Report:
        """About everybody, or one user, or the members of a Kubernetes group, or both.

        Goes through at most so many certificates, the longest-lived first.
        """
        now = self.now()
        found = await self.rows.unexpired(cluster.id, now, limit=most + 1, user_id=user_id)
        ways = await self.ways(cluster)
        set_up = {way.name for way in ways if way.set_up}
        roles = cluster.options.credential_roles or {}
        credentials = [_credential(each, now, set_up, roles) for each in found[:most]]
        # A stranger is none of our users, whatever name their certificate has.
        unknown = await self.rows.unknown(cluster.id, limit=MAX_UNKNOWN) if user_id is None else ()
        return Report(
            cluster=cluster,
            at=now,
            complete=len(found) <= most,
            holders=_holders(each for each in credentials if group is None or group in each.groups),
            groups=_groups(each for each in credentials if group is None or group in each.groups),
            unknown=tuple(each for each in unknown if group is None or group in each.groups),
            ways=ways,
            remains=_REMAINS,
        )

    async def ways(self, cluster: Cluster) -> tuple[Way, ...]:
        """What can keep a credential out of a cluster, set up there or not, the quickest first."""
        return _ways(cluster, await self.rows.asked(cluster.id), self.now())


def _credential(listed: Listed, now: datetime, set_up: set[WayName], roles: Mapping[str, str]) -> Credential:
    state = listed.state(now)
    groups = (*listed.groups, AUTHENTICATED)
    own_group = listed.bound_alone
    stopped_by: list[WayName] = ["ca", "expiry"]
    # The API server lets this group pass before it asks any authorizer, and its members can remove the rest.
    if MASTERS not in groups:
        quick: tuple[WayName, ...] = ("webhook", "binding", "admission")
        stopped_by[:0] = [name for name in quick if name in set_up and (own_group or name != "binding")]
    kept_out = state != "live" and bool({"webhook", "binding"} & set(stopped_by))
    return Credential(
        certificate=listed,
        state=state,
        groups=groups,
        cluster_role=roles.get(listed.rule or "") if own_group else None,
        gets_in=not kept_out,
        stopped_by=tuple(stopped_by),
    )


def _holders(credentials: Iterable[Credential]) -> tuple[Holder, ...]:
    """By name and id; `sorted` keeps the longest-lived first."""
    holders = []
    ordered = sorted(credentials, key=lambda each: (each.certificate.user_name, each.certificate.user_id))
    for (name, user_id), own in groupby(
        ordered, lambda each: (each.certificate.user_name, each.certificate.user_id)
    ):
        held = tuple(own)
        groups = tuple(sorted({group for each in held for group in each.groups}))
        holders.append(Holder(user_id, name, groups, held))
    return tuple(holders)


def _groups(credentials: Iterable[Credential]) -> tuple[GroupAccess, ...]:
    """By name, of those that get in."""
    members: dict[str, list[Listed]] = {}
    for each in credentials:
        if each.gets_in:
            for group in set(each.groups):
                members.setdefault(group, []).append(each.certificate)
    return tuple(
        GroupAccess(
            name=group,
            users=len({each.user_id for each in own}),
            credentials=len(own),
            last_seen_at=max(_times(each.last_seen_at for each in own), default=None),
        )
        for group, own in sorted(members.items())
    )


def _times(times: Iterable[datetime | None]) -> Iterable[datetime]:
    return (time for time in times if time is not None)


def _ways(cluster: Cluster, asked: Sequence[datetime | None], now: datetime) -> tuple[Way, ...]:
    options = cluster.options
    last = max(_times(asked), default=None)
    asks = last is not None and now - last <= ASKED_WITHIN
    return (
        Way(
            "webhook",
            set_up=asks,
            lacking=_silence(last) if asked and not asks else None,
            within="Within 1 second plus the webhook's unauthorizedTTL, so 3 seconds as `clustercert kubernetes setup`"
            " writes it.",
            limits="Members of system:masters: the API server never asks the webhook about them. While the webhook"
            " doesn't answer, its failurePolicy decides.",
        ),
        Way(
            "binding",
            # Where new certificates have no binding of their own any more, older ones still do.
            set_up=options.credential_roles is not None,
            within="About 2 seconds, once the API server has let this service remove the certificate's own"
            " ClusterRoleBinding.",
            limits="What the holder bound to themselves meanwhile.",
        ),
        Way(
            "admission",
            set_up=options.admission,
            within="About 2 seconds, once this service has listed the certificate in the cluster.",
            limits="Reading: only writes and connections are refused. Whoever may impersonate others writes on as them,"
            " and whoever may delete a ValidatingAdmissionPolicy can delete this one.",
        ),
        Way(
            "ca",
            set_up=True,
            within="0.1 seconds after the client CA is taken out of the file that --client-ca-file names (replace it"
            " by rename).",
            limits="Nothing new gets in by that CA, good certificates neither: everybody needs another one.",
        ),
        Way(
            "expiry",
            set_up=True,
            within="At the certificate's not_after; the API server looks at each request.",
            limits="Nothing sooner.",
        ),
    )


def _silence(last: datetime | None) -> str:
    since = "never asked" if last is None else f"not asked since {last:%Y-%m-%dT%H:%M:%SZ}"
    return (
        f"A token exists, but the API server has {since}. Give it the files of `clustercert kubernetes setup`, and"
        " prove it with `clustercert kubernetes verify`."
    )


_REMAINS = (
    (
        "A watch that was opened before goes on until its own end, as a rule 30 to 60 minutes later, after revocation,"
        " the CA's removal and expiry alike; exec, attach and port-forward that run may go on too."
    ),
    (
        "A service-account token that the holder minted works until it ends, with whatever was bound to its service"
        " account: look for RoleBindings and ClusterRoleBindings made meanwhile, and delete what should not be there."
    ),
    (
        "Whoever may impersonate users or groups acts under other names; once allowed, such a request says nothing of"
        " the certificate behind it."
    ),
    "Another certificate of the same user is another credential: revoke the user in the cluster to stop all of them.",
    (
        "Credentials that this service didn't issue (other CAs in the bundle, tokens, service accounts) are here only"
        " where the webhook or the audit events showed their certificates."
    ),
)
