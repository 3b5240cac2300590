"""Kubeconfigs, without secrets, that get certificates from the exec plugin `clustercert credential`."""

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from clustercert.model import JsonObject

# The kinds of entries in a kubeconfig, and the field in which an entry has its content.
NOUNS = {"clusters": "cluster", "users": "user", "contexts": "context"}
# The extension that names the cluster and login of an entry. kubectl sends the extension of a cluster to exec plugins
# with `provideClusterInfo`.
EXTENSIONS = {
    "clusters": "client.authentication.k8s.io/exec",
    "users": "clustercert",
    "contexts": "clustercert",
}
# The addresses whose certificate kubectl can check, the preferred one first. The names are the names of CCE's contexts.
VERIFIED = ("externalTLSVerify", "internal")
# The template for names in separate files. The names are unique, because kubectl uses only the first context if two
# files in KUBECONFIG have a context of the same name.
FILE_TEMPLATE = "{profile}-{cluster}-{id}"
# The length of `{id}`: the first digits of the cluster's id.
ID_DIGITS = 8


@dataclass(frozen=True, slots=True)
class ClusterRef:
    """A cluster that a login can reach. `project`, `domain` and `cluster` are names.

    Attributes:
        login: the user who was logged in, as DOMAIN/NAME. Another user can log in with the same profile later.
    """

    profile: str
    project_id: str
    project: str
    domain: str
    cluster_id: str
    cluster: str
    login: str

    @classmethod
    def parse(cls, profile: str, login: str, cluster: JsonObject) -> "ClusterRef":
        """Return the reference to a cluster in the service's list of clusters."""
        project_id, project, domain, cluster_id, name = (
            str(cluster[field]) for field in ("project_id", "project", "domain", "id", "name")
        )
        return cls(profile, project_id, project, domain, cluster_id, name, login)

    @property
    def shown_name(self) -> str:
        return f"{self.domain}/{self.project}/{self.cluster}"

    @property
    def identity(self) -> tuple[str, str, str]:
        return self.profile, self.project_id, self.cluster_id


def exec_kubeconfig(ref: ClusterRef, address: JsonObject, command: Sequence[str]) -> JsonObject:
    """Return a kubeconfig with one context, which gets certificates from the exec plugin.

    Args:
        command: the exec plugin's command, see `plugin_user`.
    """
    name = FILE_TEMPLATE.format(profile=ref.profile, cluster=ref.cluster, id=ref.cluster_id[:ID_DIGITS])
    contents: dict[str, JsonObject] = {
        "clusters": address,
        "users": plugin_user(ref, command),
        "contexts": {"cluster": name, "user": name},
    }
    lists = {field: [marked_entry(field, name, ref, content)] for field, content in contents.items()}
    return {"kind": "Config", "apiVersion": "v1", **lists, "current-context": name}


def one_context(name: str, address: JsonObject, user: JsonObject) -> JsonObject:
    """Return a kubeconfig with one context. Its cluster, user and context have the same name."""
    return {
        "kind": "Config",
        "apiVersion": "v1",
        "clusters": [{"name": name, "cluster": address}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }


def marked_entry(
    field: str, name: str, ref: ClusterRef, content: JsonObject, other: Mapping[str, object] | None = None
) -> JsonObject:
    """Return an entry of a kubeconfig, with the extension that names its cluster and login.

    Args:
        field: the list of the entry: `clusters`, `users` or `contexts`.
        other: further fields of the entry's content.
    """
    mark = {"name": EXTENSIONS[field], "extension": asdict(ref)}
    return {"name": name, NOUNS[field]: {**content, "extensions": [mark], **(other or {})}}


def plugin_user(ref: ClusterRef, command: Sequence[str], options: Sequence[str] = ()) -> JsonObject:
    """Return the content of a user entry that gets certificates from the exec plugin.

    Args:
        command: a program and the arguments before `credential`.
        options: further options of `clustercert credential`.
    """
    program, *arguments = command
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": program,
            "args": [
                *arguments,
                *("credential", ref.cluster_id, "--profile", ref.profile, "--project", ref.project_id),
                *("--user", ref.login),
                *options,
            ],
            "interactiveMode": "Never",
            "provideClusterInfo": False,
            "installHint": "Install clustercert on this machine. The operator of the service has its wheel.",
        }
    }


def cluster_addresses(
    internal_url: str, external_url: str | None, server_ca_pem: bytes
) -> dict[str, JsonObject]:
    """Return the addresses of a cluster. The keys are the names of the contexts in a kubeconfig from CCE."""
    ca = b64encode(server_ca_pem).decode()
    addresses: dict[str, JsonObject] = {
        "internal": {"server": internal_url, "certificate-authority-data": ca}
    }
    if external_url is not None:
        addresses["external"] = {"server": external_url, "insecure-skip-tls-verify": True}
        addresses["externalTLSVerify"] = {"server": external_url, "certificate-authority-data": ca}
    return addresses


def issued_addresses(kubeconfig: JsonObject) -> dict[str, JsonObject]:
    """Return the addresses of the cluster in a kubeconfig from the service. The keys are the names of the contexts."""
    clusters = {each["name"]: each["cluster"] for each in entries_of(kubeconfig, "clusters")}
    return {
        each["name"]: clusters.get(each["context"]["cluster"], {})
        for each in entries_of(kubeconfig, "contexts")
    }


def entries_of(kubeconfig: JsonObject, field: str) -> list[dict[str, Any]]:
    """Return the entries of a list in a kubeconfig, or no entries if the value is not a list."""
    found = kubeconfig[field]
    return found if isinstance(found, list) else []


def first_address(
    addresses: Mapping[str, JsonObject], names: Iterable[str], *, insecure: bool = False
) -> JsonObject | None:
    """Return the first of the named addresses at which kubectl checks the API server's certificate, or None.

    Args:
        insecure: whether to accept an address without TLS, or without a check of the API server's certificate.
    """
    for name in names:
        address = addresses.get(name, {})
        if address.get("server") and (insecure or address_warning(address) is None):
            return address
    return None


def address_warning(address: Mapping[str, Any]) -> str | None:
    """Return a warning if kubectl does not check the API server's certificate at this address."""
    server = str(address["server"])
    if not server.lower().startswith("https://"):
        return f"Warning: kubectl will send everything to {server} unencrypted."
    if address.get("insecure-skip-tls-verify"):
        return f"Warning: kubectl will not check the certificate of {server}."
    return None
