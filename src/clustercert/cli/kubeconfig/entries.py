"""A cluster's entries in a kubeconfig: names, contents, and the extension that marks the entries that `merge` wrote."""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, Literal

from clustercert.cli.kubeconfig.document import CURRENT, LISTS, KubeconfigDocument
from clustercert.cli.options import CommandError, UsageError
from clustercert.file_names import is_plain
from clustercert.model import JsonObject
from clustercert.model.kubeconfigs import (
    EXTENSIONS,
    ID_DIGITS,
    NOUNS,
    VERIFIED,
    ClusterRef,
    address_warning,
    cluster_addresses,
    entries_of,
    first_address,
    marked_entry,
    plugin_user,
)

# The fields that `merge` replaces. `merge` keeps fields that users added, such as a namespace or a proxy.
_OWN_FIELDS = {
    "clusters": {"server", "certificate-authority-data", "insecure-skip-tls-verify", "extensions"},
    "contexts": {"cluster", "user", "extensions"},
}
_FIELDS = ("profile", "domain", "project", "cluster", "id", "user")
Kind = Literal["exec", "embedded", "files"]


@dataclass(frozen=True, slots=True)
class Merged:
    """A context that `merge` wrote.

    Attributes:
        user: the content of the kubeconfig's user entry; empty if the entry is missing.
    """

    context: str
    ref: ClusterRef
    server: str
    user: Mapping[str, Any]

    @property
    def kind(self) -> Kind:
        if "exec" in self.user:
            return "exec"
        return "embedded" if self.user.keys() & {"client-certificate-data", "token"} else "files"


def parse_template(template: str) -> list[tuple[str, str | None]]:
    """Split a template into pairs: a literal text, and the field that follows the text. Raises UsageError."""
    try:
        parts = list(Formatter().parse(template))
        if any(field not in (None, *_FIELDS) or spec or how for _, field, spec, how in parts):
            raise ValueError
    except ValueError:
        fields = ", ".join(f"{{{field}}}" for field in _FIELDS)
        raise UsageError(
            f"{template!r} is not a template for names. A template can contain {fields}."
        ) from None
    return [(text, field) for text, field, _, _ in parts]


def context_name(template: str, ref: ClusterRef, user: str) -> str:
    """Fill in a template such as `{project}-{cluster}`. Raises UsageError."""
    values = {
        "profile": ref.profile,
        "domain": ref.domain,
        "project": ref.project,
        "cluster": ref.cluster,
        "id": ref.cluster_id[:ID_DIGITS],
        "user": user,
    }
    name = "".join(text + (values[field] if field else "") for text, field in parse_template(template))
    check_name(name)
    return name


def check_name(name: str) -> None:
    """Raise UsageError if a text can't be the name of a context."""
    if not name or " " in name or not name.isprintable():
        raise UsageError(
            f"{name!r} is not a name for a context: it is empty, or has spaces or control characters. Choose a name "
            "with --context-name."
        )


def put(
    config: KubeconfigDocument, name: str, ref: ClusterRef, address: JsonObject, user: JsonObject
) -> None:
    """Add or replace a context with its cluster entry and user entry. New entries have the context's name."""
    names = _entry_names(config, name, ref)
    contents: dict[str, JsonObject] = {
        "clusters": address,
        "users": user,
        "contexts": {NOUNS[field]: names[field] for field in ("clusters", "users")},
    }
    for field, content in contents.items():
        present = config.entries(field).get(names[field], {}).get(NOUNS[field]) or {}
        own = _OWN_FIELDS.get(field)
        kept = {key: value for key, value in present.items() if key not in own} if own else {}
        config.put(field, marked_entry(field, names[field], ref, content, kept))


def _entry_names(config: KubeconfigDocument, context: str, ref: ClusterRef) -> dict[str, str]:
    """Return the names of the entries of a context, by list.

    If the user renamed the context, its cluster and user still have the old name.
    """
    present = config.entries("contexts").get(context, {}).get("context") or {}
    names = dict.fromkeys(LISTS, context)
    for field in ("clusters", "users"):
        used = str(present.get(NOUNS[field]))
        found = owner(config, field, used)
        if isinstance(found, ClusterRef) and found.identity == ref.identity:
            names[field] = used
    return names


def owner(config: KubeconfigDocument, field: str, name: str) -> ClusterRef | Literal["other"] | None:
    """Return the cluster of an entry that `merge` wrote.

    Returns `None` if there is no entry, or "other" if another program wrote the entry.
    """
    entry = config.entries(field).get(name)
    return None if entry is None else (_ref(field, entry) or "other")


def check_owner(config: KubeconfigDocument, path: Path, name: str, ref: ClusterRef) -> None:
    """Raise CommandError if an entry with this name belongs to another program, cluster or login."""
    for noun, entry_name in _entry_names(config, name, ref).items():
        found = owner(config, noun, entry_name)
        if found == "other":
            raise CommandError(
                f"{path} has another entry named {entry_name} in {noun}. Choose a name with --context-name."
            )
        if found is not None and found.identity != ref.identity:
            raise CommandError(
                f"{path} has {entry_name} already, as the context for the cluster {found.shown_name} with the login"
                f" of {found.login} (profile {found.profile}). Choose another name with --context-name."
            )


def merged(config: KubeconfigDocument) -> list[Merged]:
    """Return the contexts that `merge` wrote."""
    clusters, users = config.entries("clusters"), config.entries("users")
    found = []
    for name, entry in config.entries("contexts").items():
        ref = _ref("contexts", entry)
        if ref is not None:
            context = entry["context"]
            cluster = clusters.get(context.get("cluster"), {}).get("cluster") or {}
            user = users.get(context.get("user"), {}).get("user") or {}
            found.append(Merged(name, ref, str(cluster.get("server", "")), user))
    return found


def remove(config: KubeconfigDocument, contexts: set[str]) -> None:
    """Remove contexts that `merge` wrote.

    Also removes the cluster entries and user entries of the contexts, if `merge` wrote these entries and no other
    context uses them.
    """
    present = config.entries("contexts")
    removed = {name for name in contexts if owner(config, "contexts", name) not in (None, "other")}
    for field in ("clusters", "users"):
        noun = NOUNS[field]
        used = {
            (entry.get("context") or {}).get(noun) for name, entry in present.items() if name not in removed
        }
        for name in {present[each]["context"].get(noun) for each in removed} - used:
            if owner(config, field, name) not in (None, "other"):
                config.remove(field, name)
    for name in removed:
        config.remove("contexts", name)
    if config.current in removed:
        config.value[CURRENT] = ""


def listed_addresses(cluster: JsonObject) -> dict[str, JsonObject]:
    """Return the addresses of a cluster in the service's list of clusters. See `cluster_addresses`."""
    external = cluster["external_url"]
    return cluster_addresses(
        str(cluster["internal_url"]), str(external) if external else None, str(cluster["server_ca"]).encode()
    )


def verified_address(
    addresses: Mapping[str, JsonObject], *, internal: bool, insecure: bool, only: str | None = None
) -> JsonObject:
    """Choose an address of the API server.

    Raises CommandError if kubectl can't check the API server's certificate at any address.

    Args:
        addresses: the addresses, with the names of CCE's contexts as keys.
        only: the name of the context to choose.
        internal: whether to prefer the private address.
        insecure: whether to accept an address without TLS, or without a check of the API server's certificate.
    """
    order = list(reversed(VERIFIED)) if internal else list(VERIFIED)
    if insecure:
        order.insert(int(internal), "external")
    if only is not None:
        order = [only]
    if (address := first_address(addresses, order, insecure=insecure)) is None:
        raise CommandError(
            "The cluster has no address whose certificate kubectl can check. Ask an operator for such an address, or"
            " skip the check with --insecure, if the network is protected in another way and the credential is a"
            " certificate."
        )
    return address


def check_insecure(cluster: JsonObject, *, insecure: bool) -> None:
    """Raise UsageError if --insecure is given for a cluster in the service's list whose credentials are tokens."""
    if insecure and cluster.get("credential") == "token":
        raise UsageError(
            f"The credentials of {cluster['name']} are tokens. A server whose certificate kubectl does not check could"
            " steal the tokens. Leave out --insecure."
        )


def current_address_warning(document: JsonObject) -> str | None:
    """Return the warning for the address of the current context."""
    contexts = {each["name"]: each["context"]["cluster"] for each in entries_of(document, "contexts")}
    used = contexts.get(document["current-context"])
    for each in entries_of(document, "clusters"):
        if each["name"] == used:
            return address_warning(each["cluster"])
    return None


def exec_user(ref: ClusterRef, options: list[str]) -> JsonObject:
    """Return a user entry that gets certificates from the exec plugin on this machine."""
    return plugin_user(ref, plugin_command(), options)


def plugin_command() -> list[str]:
    """Return the exec plugin's command with an absolute path, because graphical programs have a minimal PATH."""
    # Don't resolve symbolic links: a link survives an upgrade, but its target may not.
    for folder in (Path(sys.argv[0]).parent, Path(sys.executable).parent):
        if (script := folder.absolute() / "kubectl-clustercert").is_file():
            return [str(script)]
    if found := shutil.which("kubectl-clustercert"):
        return [str(Path(found).absolute())]
    # -P keeps Python from importing modules from the current folder.
    return [sys.executable, "-P", "-m", "clustercert"]


def _ref(field: str, entry: Mapping[str, Any]) -> ClusterRef | None:
    """Return the cluster that an entry's extension names, or `None` if `merge` did not write the entry."""
    noun, name = NOUNS[field], EXTENSIONS[field]
    content = entry.get(noun)
    extensions = content.get("extensions") if isinstance(content, dict) else None
    for each in extensions if isinstance(extensions, list) else ():
        if isinstance(each, dict) and each.get("name") == name and isinstance(each.get("extension"), dict):
            values = [each["extension"].get(key) for key in ClusterRef.__slots__]
            if all(isinstance(value, str) for value in values):
                ref = ClusterRef(*values)
                # Other programs may write this extension. Check the ids, because `unmerge` deletes files whose names
                # contain the ids.
                return ref if all(map(is_plain, ref.identity)) else None
    return None
