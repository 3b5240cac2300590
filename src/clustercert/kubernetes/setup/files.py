"""Generates the files that an operator copies to a control plane or applies to a cluster."""

from collections.abc import Iterable

from clustercert.kubernetes.setup import admission, rbac
from clustercert.kubernetes.setup.authorization import (
    api_server_flags,
    authorization_comment,
    authorization_configuration,
    webhook_kubeconfig,
)
from clustercert.kubernetes.setup.certificate_requests import certificate_requests
from clustercert.kubernetes.setup.documents import commented, to_yaml
from clustercert.kubernetes.setup.readme import readme
from clustercert.kubernetes.setup.values import (
    ADMISSION,
    AUDIT_POLICY,
    AUDIT_WEBHOOK,
    AUTHORIZATION,
    CERTIFICATE_REQUESTS,
    CLIENT_CA,
    KUBEADM,
    RBAC,
    README,
    SERVICE_ACCESS,
    SERVICE_ACCOUNTS,
    WEBHOOK,
    Setup,
)
from clustercert.model import JsonObject
from clustercert.model.kubernetes import MASTERS

_AUDIT_COMMENT = """\
clustercert reads from the audit events which client certificates are used. Only audit events show certificates of
system:masters, uses of a revoked certificate that the API server allowed, and approvals in the cluster's own
certificates API. If the API server has an audit policy already, keep it, and make sure that it logs these requests at
Metadata or a higher level, and approvals at RequestResponse."""
_KUBEADM_COMMENT = """\
Merge this into kubeadm's ClusterConfiguration: see README.md. In kubeadm.k8s.io/v1beta3 extraArgs is a map: write
`client-ca-file: …` instead of `- name: client-ca-file` and `value: …`."""
_KUBEADM_V1BETA3_COMMENT = "Merge this into kubeadm's ClusterConfiguration: see README.md."
_CLIENT_CA_COMMENT = """\
The client CAs of the cluster {name}. Add them to the file that the API server's --client-ca-file names. Never remove
the other CAs from that file: nodes and the control plane authenticate with certificates from the other CAs.
"""


def files(setup: Setup) -> dict[str, str]:
    """Return the content of each file, by name. Only files that end in .kubeconfig contain the token."""
    options, choices = setup.cluster.options, setup.choices
    roles = (options.credential_roles or {}).values()
    written = {
        CLIENT_CA: commented(
            _CLIENT_CA_COMMENT.format(name=setup.cluster.name), setup.client_cas_pem.decode()
        ),
        WEBHOOK: _kubeconfig(setup, "authorize"),
        RBAC: _rbac(setup),
        KUBEADM: commented(
            _KUBEADM_V1BETA3_COMMENT if choices.uses_flags else _KUBEADM_COMMENT,
            to_yaml([kubeadm_patch(setup)]),
        ),
    }
    if not choices.uses_flags:
        written[AUTHORIZATION] = commented(
            authorization_comment(setup), to_yaml([authorization_configuration(setup)])
        )
    if choices.audit:
        written[AUDIT_POLICY] = commented(_AUDIT_COMMENT, to_yaml([audit_policy(setup.groups)]))
        written[AUDIT_WEBHOOK] = _kubeconfig(setup, "audit-events")
    if options.admission:
        written[ADMISSION] = to_yaml(admission.admission())
    if choices.certificate_requests and not choices.uses_flags:
        written[CERTIFICATE_REQUESTS] = to_yaml(certificate_requests())
    if options.admission or roles:
        storage = () if options.admission else admission.storage()
        written[SERVICE_ACCESS] = to_yaml([*storage, *rbac.service_access(roles)])
    if choices.service_accounts != "none":
        asks = choices.service_accounts == "review"
        written[SERVICE_ACCOUNTS] = to_yaml(rbac.token_review_access() if asks else rbac.issuer_keys_access())
    written[README] = readme(setup, written)
    return written


def kubeadm_patch(setup: Setup) -> JsonObject:
    """Return the part to merge into kubeadm's ClusterConfiguration."""
    # v1beta4, where the arguments are a list, needs kubeadm 1.31 or newer.
    is_older, flags = setup.choices.uses_flags, api_server_flags(setup)
    arguments = [{"name": flag, "value": path} for flag, path in flags.items()]
    return {
        "apiVersion": f"kubeadm.k8s.io/{'v1beta3' if is_older else 'v1beta4'}",
        "kind": "ClusterConfiguration",
        "apiServer": {
            "extraArgs": dict(flags) if is_older else arguments,
            # Mount the folder: a single mounted file keeps its old content after a new file is renamed over it.
            "extraVolumes": [
                {
                    "name": "clustercert",
                    "hostPath": setup.choices.control_plane_dir,
                    "mountPath": setup.choices.control_plane_dir,
                    "readOnly": True,
                    "pathType": "Directory",
                }
            ],
        },
    }


def audit_policy(groups: Iterable[str]) -> JsonObject:
    """Return a minimal audit policy that logs all use of client certificates except the cluster's own traffic.

    The first matching rule applies. So requests from members of system:masters and of `groups` are logged, even if the
    members are in other groups too.
    """
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {
                # Log the responses, because they contain the signer, and distinguish an approval from a denial.
                "level": "RequestResponse",
                "verbs": ["update", "patch"],
                "resources": [
                    {"group": "certificates.k8s.io", "resources": ["certificatesigningrequests/approval"]}
                ],
            },
            {"level": "Metadata", "userGroups": list(dict.fromkeys([MASTERS, *groups]))},
            {
                "level": "None",
                "userGroups": ["system:nodes", "system:serviceaccounts", "system:unauthenticated"],
            },
            {"level": "Metadata"},
        ],
    }


def _kubeconfig(setup: Setup, endpoint: str) -> str:
    url = f"{setup.choices.webhook_url}/clustercert/v1/kubernetes/clusters/{setup.cluster.id}/{endpoint}"
    return webhook_kubeconfig(url, setup.choices.webhook_ca, setup.token, setup.client)


def _rbac(setup: Setup) -> str:
    documents = to_yaml(rbac.bindings(setup.choices.bind)) if setup.choices.bind else ""
    if not setup.unbound:
        return documents
    groups = ", ".join(setup.unbound)
    return commented(
        f"Not bound here: {groups}. Bind them yourself, or use --bind GROUP=CLUSTERROLE.", documents
    )
