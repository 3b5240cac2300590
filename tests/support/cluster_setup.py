"""The values in the files of `kubernetes setup`."""

from dataclasses import replace
from typing import Any

from clustercert.kubernetes.setup.choices import GivenChoices, SetupChoices
from clustercert.kubernetes.setup.values import Setup
from clustercert.model import ClusterOptions
from clustercert.pki.certificates import chain_pem
from support import samples

_OF_SETUP = {"groups", "templates", "client", "previous_files", "previous_authorization"}


def cluster_setup(options: ClusterOptions | None = None, **changes: Any) -> Setup:
    """The values for a cluster with these options, with changed choices or other values."""
    cluster = replace(samples.cluster(), options=options or ClusterOptions())
    choices = {
        "cluster_id": cluster.id,
        "mode": "default",
        "unauthorized_ttl": "2s",
        "webhook_url": "https://clustercert.example.com",
        "bind": {"clustercert:admins": "cluster-admin"},
        **{name: value for name, value in changes.items() if name not in _OF_SETUP},
    }
    others: dict[str, Any] = {
        "groups": ("clustercert:admins", 'odd "group" \\ é', "auditors"),
        "templates": (),
        **{name: value for name, value in changes.items() if name in _OF_SETUP},
    }
    return Setup(
        cluster=cluster,
        client_cas_pem=chain_pem((cluster.client_ca.ca_certificate,)),
        choices=SetupChoices.model_validate(choices),
        given=GivenChoices.model_validate(choices),
        token="ccw_secret",
        **others,
    )
