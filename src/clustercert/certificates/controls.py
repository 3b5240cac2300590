"""Controls that stop a revoked credential from being used in a cluster, and the risks that remain.

Source of the times and risks: measurements with kube-apiserver 1.32 and 1.36, in `docs/kubernetes.md`. The API server
caches a token's authentication for 10 seconds: pkg/kubeapiserver/options/authentication.go, `TokenSuccessCacheTTL`.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from clustercert.model.group_roles import CLUSTER_ADMIN, RoleGrant
from clustercert.model.kubernetes import REVOCATION_NOTICED_AFTER, TOKEN_REFUSED_AFTER
from clustercert.model.times import is_recent, rfc3339

if TYPE_CHECKING:
    from clustercert.model import Cluster
    from clustercert.store.clusters.enforcement_state import ClusterContact

ControlName = Literal["account", "webhook", "binding", "admission", "ca", "expiry"]
# Controls that stop a single credential within seconds.
FAST_CONTROLS: tuple[ControlName, ...] = ("account", "webhook", "binding", "admission")


@dataclass(frozen=True, slots=True)
class Control:
    """A way to stop a credential from being used in a cluster.

    Attributes:
        name: `account` is the deletion of a token's bindings and service account.
        set_up: whether this service is configured to use the control; for the webhook, whether the API server called
            the webhook recently, and about every known use. Only `clustercert kubernetes verify` proves that the
            control works.
        lacking: a sentence that says what is missing from an unfinished set-up; None if nothing is known to be missing.
        within: a sentence that says how soon the control takes effect.
        within_seconds: the same time as a number; None if the control does not follow revocations.
        does_not_stop: a sentence that says what the control does not stop.
    """

    name: ControlName
    set_up: bool
    within: str
    does_not_stop: str
    lacking: str | None = None
    within_seconds: int | None = None


_CA = Control(
    "ca",
    set_up=True,
    within="0.1 seconds after the client CA is removed from the file that --client-ca-file names (replace the file by"
    " rename).",
    does_not_stop="Nothing: this stops all certificates from the CA, even valid ones. All users need new certificates.",
)
_EXPIRY = Control(
    "expiry",
    set_up=True,
    within="At the certificate's not_after: the API server checks this time on each request.",
    does_not_stop="Any use before not_after.",
)
_TOKEN_EXPIRY = Control(
    "expiry",
    set_up=True,
    within="At not_after, at the latest, this service deletes the token's bindings and account. The token itself"
    " expires at not_after, but at the earliest 10 minutes after its issue.",
    does_not_stop="Any use before not_after.",
)
ACCOUNT_WITHIN = (
    "The token loses its rights in about 2 seconds, while this service reaches the API server to delete the token's"
    " bindings. At most 10 seconds after the service account is deleted, the API server refuses the token itself. This"
    " needs no webhook."
)
"""How fast the revocation of a token takes effect."""
_HOLDERS_IN_NAMESPACES = (
    "Holders of a role that can start workloads, create tokens, read Secrets or impersonate accounts in a"
    " namespace can keep the rights of the service accounts in that namespace."
)


def controls_of(cluster: "Cluster", contact: "ClusterContact", now: datetime) -> tuple[Control, ...]:
    """Return all controls of the cluster's kind of credential, fastest first, also those that are not set up."""
    if cluster.credential_kind == "token":
        account = Control(
            "account",
            set_up=True,
            within=ACCOUNT_WITHIN,
            does_not_stop=" ".join(_kept_by_holders(cluster)),
            within_seconds=TOKEN_REFUSED_AFTER,
        )
        return account, _TOKEN_EXPIRY
    binding = Control(
        "binding",
        # Also true for an empty mapping: new certificates get no bindings, but older certificates may have bindings.
        set_up=cluster.options.credential_roles is not None,
        within="About 2 seconds, while this service reaches the API server to delete the certificate's"
        " ClusterRoleBinding.",
        does_not_stop="Roles that the holder has bound to themselves.",
        within_seconds=2,
    )
    admission = Control(
        "admission",
        set_up=cluster.options.admission,
        within="About 2 seconds, while this service reaches the API server to list the certificate.",
        does_not_stop="Reading: the policy refuses only writes and connections. The policy does not stop users who may"
        " impersonate others, or delete the policy.",
        within_seconds=2,
    )
    return (_webhook(cluster, contact, now), binding, admission, _CA, _EXPIRY)


def _webhook(cluster: "Cluster", contact: "ClusterContact", now: datetime) -> Control:
    cached = cluster.options.unauthorized_ttl_seconds
    return Control(
        "webhook",
        set_up=is_recent(contact.asked_at, now) and contact.state != "unreviewed",
        lacking=None
        if contact.asked_at is not None or not contact.has_webhook_token
        else "A webhook token exists, but the API server has never called the webhook. Install the files that"
        " `clustercert kubernetes setup` wrote, and check them with `clustercert kubernetes verify`.",
        within=f"Within {REVOCATION_NOTICED_AFTER + cached} seconds: this service notices a revocation within"
        f" {REVOCATION_NOTICED_AFTER} second, and the registered unauthorizedTTL of the webhook is {cached} seconds.",
        does_not_stop="Members of system:masters: the API server never calls the webhook for these users. While the"
        " webhook does not answer, its failurePolicy decides.",
        within_seconds=REVOCATION_NOTICED_AFTER + cached,
    )


RESIDUAL_RISKS = (
    (
        "An open watch continues until its own time-out, usually 30 to 60 minutes, even after a revocation, the"
        " removal of the CA or the certificate's expiry. Running exec, attach and port-forward sessions may continue"
        " too."
    ),
    (
        "A service-account token that the holder created is valid until it expires, with all rights of its service"
        " account. Look for RoleBindings and ClusterRoleBindings that the holder created, and delete them."
    ),
    (
        "Users who may impersonate other users or groups can act under the names of these. The authorizer"
        " does not see the certificate behind an impersonated request."
    ),
    (
        "A certificate from the cluster's own certificates API, which the holder requested and approved, is valid"
        " until it expires, a year by default. Find approvals by the event cluster_certificates.approved, or in the"
        " API server's audit log: verbs update and patch of certificatesigningrequests/approval. The cluster itself"
        " can't revoke such a certificate: remove the permissions of its user name and groups."
    ),
    "The user's other certificates stay valid: to stop all of them, revoke the user in the cluster.",
    (
        "Credentials from other issuers (other CAs in the bundle, tokens, service accounts) are listed here only if"
        " the webhook or the audit events reported their certificates."
    ),
)


def residual_risks(cluster: "Cluster") -> tuple[str, ...]:
    """Return sentences about access that can continue after a credential for the cluster was stopped."""
    if cluster.credential_kind == "certificate":
        return RESIDUAL_RISKS
    return (
        (
            "An open watch continues until its own time-out, usually 30 to 60 minutes, even after a revocation or the"
            " token's expiry. Running exec, attach and port-forward sessions may continue too."
        ),
        *_kept_by_holders(cluster),
        (
            "Users who may impersonate the service accounts in clustercert-users can act as these accounts until the"
            " accounts are deleted. `clustercert kubernetes verify` names such users."
        ),
        (
            "While this service does not run or does not reach the API server, it deletes no bindings and accounts. A"
            " revoked token then works until the token expires."
        ),
        (
            "Bindings and tokens that people created in the cluster themselves are not listed here, and this service"
            " deletes none of them. Look for RoleBindings and ClusterRoleBindings that the holder created."
        ),
        "The user's other credentials stay valid: to stop all of them, revoke the user in the cluster.",
    )


def _kept_by_holders(cluster: "Cluster") -> tuple[str, ...]:
    """Return sentences about what holders of the mapped roles can keep after their token was revoked."""
    roles = cluster.options.group_roles
    admins = sorted(
        group for group, texts in roles.items() if any(map(_is_cluster_admin, map(RoleGrant.parse, texts)))
    )
    if not admins:
        return (_HOLDERS_IN_NAMESPACES,)
    return (
        _HOLDERS_IN_NAMESPACES,
        f"Holders of the role cluster-admin ({', '.join(admins)}) can create access that no revocation ends.",
    )


def _is_cluster_admin(role: RoleGrant) -> bool:
    return (role.kind, role.name) == ("ClusterRole", CLUSTER_ADMIN)


def use_not_seen(cluster: "Cluster", contact: "ClusterContact", now: datetime) -> str | None:
    """Return why use after a revocation is not seen, or `None` if the API server sent audit events recently."""
    if is_recent(contact.events_at, now):
        return None
    if cluster.credential_kind == "token":
        return (
            "Uses of tokens are not seen: the API server sends this service no audit events. If you can get the"
            " cluster's audit log, read it with `clustercert kubernetes import-audit-log`."
        )
    if not contact.has_webhook_token:
        reason = "the cluster has no webhook token, with which its API server could send audit events"
    elif contact.events_at is None:
        reason = "the API server has sent no audit events so far with the cluster's webhook tokens"
    else:
        reason = f"the API server has sent no audit events since {rfc3339(contact.events_at)}"
    return (
        f"Use after a revocation is not seen: {reason}. Set up the cluster's audit webhook with the files that"
        " `clustercert kubernetes setup` writes. An API server sends audit events about every 30 seconds."
    )
