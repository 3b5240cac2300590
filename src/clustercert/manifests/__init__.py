"""Every document that an operator gives to a cluster, as values of JSON's kinds and as YAML. Pure: no I/O, no store."""

from collections.abc import Iterable

import yaml

from clustercert.model import JsonObject

MANAGED_BY = {"app.kubernetes.io/managed-by": "clustercert"}
"""The label of everything that is ours in a cluster."""

CREDENTIAL_ID = "authentication.kubernetes.io/credential-id"
"""Where kube-apiserver, from 1.32 on, says which credential a request came with."""

X509_ID = "X509SHA256="
"""How the credential id of a client certificate begins; its fingerprint follows."""

# kube-apiserver takes every authenticated and every anonymous caller for a member of one of these two, so they say
# nothing of who somebody is.
AUTHENTICATED = "system:authenticated"
GROUPS_OF_EVERYBODY = (AUTHENTICATED, "system:unauthenticated")
MASTERS = "system:masters"

OUR_PREFIX = "clustercert:"
"""How the names begin that the service gives to itself, and the groups that it gives beside those of the policy."""


def to_yaml(documents: Iterable[JsonObject]) -> str:
    """The documents as one YAML stream, their fields in the order given."""
    return yaml.safe_dump_all(
        documents, sort_keys=False, default_flow_style=False, width=1_000_000, allow_unicode=True
    )


def commented(comment: str, document: str) -> str:
    """A YAML document below a comment, each line of which begins with a hash."""
    lines = [f"# {line}".rstrip() for line in comment.strip().splitlines()]
    return "\n".join([*lines, document])
