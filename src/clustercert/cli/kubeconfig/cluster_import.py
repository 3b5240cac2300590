"""Reads the address, the CA and, for an administrator's commands, the user's credential from a kubeconfig.

Unlike kubectl, this module never runs a program that a kubeconfig names (`exec`, `auth-provider`).
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clustercert.cli.options import CommandError
from clustercert.cli.yaml_io import in_messages, parse, read_input, read_regular

# The maximum size of a kubeconfig: enough for several hundred clusters.
MAX_BYTES = 1024 * 1024
MAX_CA_BYTES = 64 * 1024
# Fields that change how kubectl reaches the API server. These fields are not imported, because issued kubeconfigs don't
# have them.
_SKIPPED = ("tls-server-name", "proxy-url")
_MAX_CREDENTIAL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class KubeconfigCredential:
    """The credential of a kubeconfig's user: a client certificate with its key, a bearer token, or both.

    Attributes:
        chain_pem, key_pem: `None` if there is no client certificate.
    """

    chain_pem: bytes | None = None
    key_pem: bytes | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ImportedCluster:
    """A cluster from a kubeconfig.

    Attributes:
        ca_pem: the CA of the API server's certificate; `None` if the caller did not need the CA.
        skipped_fields: fields that change how kubectl reaches the cluster, and that were not imported.
        credential: the user's credential; `None` if the caller did not need the credential.
    """

    context: str
    server: str
    ca_pem: bytes | None
    skipped_fields: tuple[str, ...]
    credential: KubeconfigCredential | None = None


def read(
    path: Path, context: str | None, *, need_ca: bool, follow_files: bool, need_credential: bool = False
) -> ImportedCluster:
    """Read the cluster of a context, by default the current context. The path `-` is standard input.

    Raises CommandError.

    Args:
        follow_files: whether to read the files that the kubeconfig names, such as `certificate-authority`.
        need_credential: whether to read the credential of the context's user.
    """
    content = read_input(path, MAX_BYTES)
    path = in_messages(path)
    documents = parse(content, f"{path}")
    config = _mapping(documents[0] if len(documents) == 1 else None, f"{path}")
    chosen = context if context is not None else config.get("current-context")
    if not isinstance(chosen, str) or not chosen:
        raise CommandError(f"{path} has no current context. Choose one with --context: {_names(config)}.")
    entry = _entry(config, "contexts", chosen, "context")
    cluster = _entry(config, "clusters", str(entry.get("cluster")), "cluster")
    server = cluster.get("server")
    if not isinstance(server, str):
        raise CommandError(f"The cluster of the context {chosen} in {path} has no server address.")
    return ImportedCluster(
        context=chosen,
        server=server.removesuffix("/"),
        ca_pem=_ca(cluster, path, follow_files=follow_files) if need_ca else None,
        skipped_fields=tuple(each for each in _SKIPPED if cluster.get(each)),
        credential=_credential(config, str(entry.get("user")), path, follow_files=follow_files)
        if need_credential
        else None,
    )


def _credential(
    config: Mapping[str, object], name: str, path: Path, *, follow_files: bool
) -> KubeconfigCredential:
    """Read the credential of a user. Raises CommandError, without parts of the credential in the message."""
    user = _entry(config, "users", name, "user")
    if unusable := next((each for each in _UNUSABLE if user.get(each)), None):
        raise CommandError(f"The user {name} in {path} {_UNUSABLE[unusable]}. {WITHOUT_CREDENTIAL}")
    values = {
        each: _content(user, each, path, follow_files=follow_files)
        for each in ("client-certificate", "client-key")
    }
    chain_pem, key_pem = values["client-certificate"], values["client-key"]
    if (chain_pem is None) != (key_pem is None):
        raise CommandError(
            f"The user {name} in {path} has only one of client certificate and key. Correct the file."
        )
    if key_pem is not None and b"ENCRYPTED" in key_pem:
        raise CommandError(f"The key of the user {name} in {path} is encrypted. {WITHOUT_CREDENTIAL}")
    token = user.get("token")
    if file := user.get("tokenFile"):
        token = _named_file(str(file), path, follow_files=follow_files).decode("ascii", "replace").strip()
    if chain_pem is None and not token:
        raise CommandError(
            f"The user {name} in {path} has no client certificate and no token. {WITHOUT_CREDENTIAL}"
        )
    return KubeconfigCredential(chain_pem, key_pem, str(token) if token else None)


# Why a user's credential can't be used, by a field of the user.
_UNUSABLE = {
    "exec": "logs in with a program (exec), which clustercert does not run",
    "auth-provider": "logs in with a program (auth-provider), which clustercert does not run",
    "username": "logs in with a password, which Kubernetes no longer accepts",
    "as": "impersonates another user",
}
WITHOUT_CREDENTIAL = (
    "Name a kubeconfig with a client certificate or a token. Or write the objects with --out FILE, and let kubectl "
    "apply them."
)


def _content(user: Mapping[str, object], name: str, path: Path, *, follow_files: bool) -> bytes | None:
    """Return the PEM text in a field `NAME-data`, or in the file that the field `NAME` names.

    Returns `None` if both fields are missing.
    """
    data, file = user.get(f"{name}-data"), user.get(name)
    if isinstance(data, str) and data:
        return _decoded(data, f"{name}-data", path)
    if isinstance(file, str) and file:
        return _named_file(file, path, follow_files=follow_files)
    return None


def _named_file(file: str, path: Path, *, follow_files: bool) -> bytes:
    if not follow_files:
        raise CommandError(f"{path} names the file {file}. Allow reading that file with --follow-files.")
    # As in kubectl, a path is relative to the kubeconfig's folder.
    return read_regular(path.parent / file, _MAX_CREDENTIAL_BYTES)


def _decoded(text: str, name: str, path: Path) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise CommandError(f"{name} in {path} is not base64.") from None


def _ca(cluster: Mapping[str, object], path: Path, *, follow_files: bool) -> bytes:
    data, file = cluster.get("certificate-authority-data"), cluster.get("certificate-authority")
    if isinstance(data, str) and data:
        return _decoded(data, "certificate-authority-data", path)
    if isinstance(file, str) and file:
        if not follow_files:
            raise CommandError(
                f"{path} has no CA but names the file {file}. Allow reading that file with --follow-files, or "
                "name the CA with --server-ca."
            )
        # As in kubectl, a path is relative to the kubeconfig's folder.
        return read_regular(path.parent / file, MAX_CA_BYTES)
    if cluster.get("insecure-skip-tls-verify"):
        raise CommandError(
            f"{path} disables verification of the API server's certificate. Specify the CA with --server-ca."
        )
    raise CommandError(f"{path} has no CA for the API server. Specify the CA with --server-ca.")


def _mapping(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise CommandError(f"{where} is not a YAML mapping. Check the kubeconfig.")
    return value


def _entry(config: Mapping[str, object], field: str, name: str, noun: str) -> Mapping[str, object]:
    """Find the entry with the given name in a list of `{name, context}`, `{name, cluster}` or `{name, user}`."""
    for entry in _entries(config, field):
        if entry.get("name") == name:
            return _mapping(entry.get(noun), f"The {noun} {name}")
    raise CommandError(f"There is no {noun} named {name} in the file. The file's contexts: {_names(config)}.")


def _entries(config: Mapping[str, object], field: str) -> list[Mapping[str, object]]:
    entries = config.get(field)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _names(config: Mapping[str, object]) -> str:
    return ", ".join(str(entry.get("name")) for entry in _entries(config, "contexts")[:20]) or "none"
