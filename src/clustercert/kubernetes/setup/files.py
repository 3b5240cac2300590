"""Generates the files that an operator copies to a control plane or applies to a cluster."""

from clustercert.kubernetes.setup import admission, rbac
from clustercert.kubernetes.setup.audit_policy import audit_policy
from clustercert.kubernetes.setup.authorization import (
    authorization_comment,
    authorization_configuration,
    webhook_kubeconfig,
)
from clustercert.kubernetes.setup.certificate_requests import certificate_requests
from clustercert.kubernetes.setup.documents import commented, to_yaml
from clustercert.kubernetes.setup.patches import patches
from clustercert.kubernetes.setup.readme import readme
from clustercert.kubernetes.setup.signer_access import signer_access
from clustercert.kubernetes.setup.values import (
    ADMISSION,
    AUDIT_EVENTS,
    AUDIT_POLICY,
    AUDIT_WEBHOOK,
    AUTHORIZATION,
    AUTHORIZE,
    CERTIFICATE_REQUESTS,
    CLIENT_CA,
    FOR_CONTROL_PLANE,
    RBAC,
    README,
    SERVICE_ACCESS,
    SERVICE_ACCOUNTS,
    SIGNER_ACCESS,
    WEBHOOK,
    Setup,
    webhook_path,
)

_AUDIT_COMMENT = """\
clustercert reads from the audit events which client certificates are used. Only audit events show certificates of
system:masters, uses of a revoked certificate that the API server allowed, and approvals in the cluster's own
certificates API. If the API server already has an audit policy, keep that policy, and make sure that it logs these
requests at Metadata or a higher level, and approvals at RequestResponse."""
_CLIENT_CA_COMMENT = """\
The client CAs of the cluster {name}. Add them to the file that the API server's --client-ca-file names. Never remove
the other CAs from that file: nodes and the control plane authenticate with certificates from the other CAs.
"""


def files(setup: Setup) -> dict[str, str]:
    """Return the content of each file, by name. Only kubeconfigs and `talos-files.yaml` contain the token."""
    options, choices = setup.cluster.options, setup.choices
    roles = (options.credential_roles or {}).values()
    written = {}
    if setup.adds_ca:
        comment = _CLIENT_CA_COMMENT.format(name=setup.cluster.name)
        written[CLIENT_CA] = commented(comment, setup.client_cas_pem.decode())
    written[WEBHOOK] = _kubeconfig(setup, AUTHORIZE)
    if choices.bind:
        written[RBAC] = _rbac(setup)
    if not choices.uses_flags:
        written[AUTHORIZATION] = commented(
            authorization_comment(setup), to_yaml([authorization_configuration(setup)])
        )
    if choices.audit:
        written[AUDIT_POLICY] = commented(_AUDIT_COMMENT, to_yaml([audit_policy(setup.groups)]))
        written[AUDIT_WEBHOOK] = _kubeconfig(setup, AUDIT_EVENTS)
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
    if setup.signs_itself:
        written[SIGNER_ACCESS] = to_yaml(signer_access())
    written |= patches(setup, {name: written[name] for name in FOR_CONTROL_PLANE if name in written})
    written[README] = readme(setup, written)
    return written


def _kubeconfig(setup: Setup, endpoint: str) -> str:
    url = f"{setup.choices.webhook_url}{webhook_path(setup.cluster.id, endpoint)}"
    return webhook_kubeconfig(url, setup.choices.webhook_ca, setup.token, setup.client)


def _rbac(setup: Setup) -> str:
    documents = to_yaml(rbac.bindings(setup.choices.bind))
    if not setup.unbound:
        return documents
    groups = ", ".join(setup.unbound)
    return commented(
        f"Not bound here: {groups}. Bind them yourself, or use --bind GROUP=CLUSTERROLE.", documents
    )
