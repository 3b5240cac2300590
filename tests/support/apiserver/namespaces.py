"""The controllers of namespaces in kube-controller-manager, with `--use-service-account-credentials`.

Source: kubernetes, pkg/controller/serviceaccount/serviceaccounts_controller.go, pkg/controller/namespace/deletion,
pkg/controller/certificates/rootcacertpublisher; their users: cmd/kube-controller-manager/names. Their tokens come from
TokenRequest.
"""

import uuid
from collections.abc import Iterator

from support.apiserver import kinds
from support.apiserver.identity import AUTHENTICATED, Identity
from support.apiserver.impersonation import ACCOUNT_PREFIX, account_groups
from support.apiserver.storage import Document


def controller(name: str) -> Identity:
    """The user of a controller."""
    groups = (*account_groups("kube-system"), AUTHENTICATED)
    return Identity(f"{ACCOUNT_PREFIX}kube-system:{name}", groups, f"JTI={uuid.uuid4()}")


NAMESPACE_CONTROLLER = controller("namespace-controller")


def created(namespace: str) -> Iterator[tuple[Identity, kinds.Kind, Document]]:
    """What the controllers create in a new namespace, and as whom."""
    yield (
        controller("service-account-controller"),
        kinds.SERVICE_ACCOUNTS,
        {"metadata": {"name": "default", "namespace": namespace}},
    )
    root_ca: Document = {
        "metadata": {"name": "kube-root-ca.crt", "namespace": namespace},
        "data": {"ca.crt": ""},
    }
    yield controller("root-ca-cert-publisher"), kinds.CONFIG_MAPS, root_ca
