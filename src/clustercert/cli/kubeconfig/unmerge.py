"""`clustercert kubeconfig unmerge`, `list` and `allowlist`: the entries that `merge` wrote."""

import base64
import contextlib
import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from clustercert.cli.credential import cache
from clustercert.cli.credential.certificate_files import MAX_CERTIFICATE_BYTES, CertificateFile
from clustercert.cli.kubeconfig import entries, files
from clustercert.cli.kubeconfig.entries import Merged
from clustercert.cli.kubeconfig.merge import KubeconfigOption
from clustercert.cli.options import UnknownName
from clustercert.cli.output import Output, OutputOption, print_note, show_list, with_domain, write_out
from clustercert.cli.session import warn_in_client
from clustercert.secure_file import read_regular_file

_COLUMNS = ("current", "context", "cluster", "project", "profile", "credential", "expires")


def unmerge(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME…", help="Contexts or clusters, by name.")
    ] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All contexts that `merge` wrote.")] = False,
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Remove the entries of your kubeconfig that `merge` wrote, and delete their cached certificates."""
    if bool(names) == every:
        raise typer.BadParameter("Name contexts or clusters, or give --all.")
    warn_in_client(os.environ)
    left = set(names or ())
    found = False
    for path in files.loading_order(kubeconfig, os.environ):
        config = files.load(path)
        removed = [each for each in entries.merged(config) if every or _names(each) & set(names or ())]
        left -= {name for each in removed for name in _names(each)}
        if removed:
            found = True
            contexts = {each.context for each in removed}
            files.change(path, partial(entries.remove, contexts=contexts))
            for each in removed:
                _forget(each)
                print_note(f"Removed the context {each.context} from {path}")
            if any(each.kind == "embedded" for each in removed):
                print_note(
                    f"{files.backup_of(path)} still has private keys. Delete that file if you do not need it."
                )
            if config.current in contexts:
                print_note(
                    "There is no current context now. Choose one with `kubectl config use-context NAME`."
                )
    if left:
        raise UnknownName(
            f"`merge` wrote no such context: {', '.join(sorted(left))}. See `clustercert kubeconfig list`."
        )
    if not found:
        print_note("`merge` wrote no contexts, so there is nothing to remove.")


def list_merged(kubeconfig: KubeconfigOption = None, output: OutputOption = Output.TABLE) -> None:
    """List the contexts that `merge` wrote."""
    warn_in_client(os.environ)
    rows = []
    seen: set[str] = set()
    paths = files.loading_order(kubeconfig, os.environ)
    configs = {path: files.load(path) for path in paths}
    current = next((config.current for config in configs.values() if config.current), None)
    for path, config in configs.items():
        for each in entries.merged(config):
            if each.context not in seen:
                rows.append(_row(each, path, current))
            seen.add(each.context)
    show_list(rows, output, columns=with_domain(_COLUMNS, rows), name="context")


def allowlist() -> None:
    """Print the lines that allow the exec plugin in kubectl's preferences (kuberc).

    You need these lines only if ~/.kube/kuberc has a credentialPluginPolicy.
    """
    command = entries.plugin_command()[0]
    write_out(
        "credentialPluginPolicy: Allowlist\n"
        "credentialPluginAllowlist:\n"
        f"- command: {command}  # kubectl 1.36 and newer\n"
        f"# - name: {command}  # kubectl 1.35\n"
    )


def _names(each: Merged) -> set[str]:
    return {each.context, each.ref.cluster, each.ref.cluster_id}


def _row(each: Merged, path: Path, current: str | None) -> dict[str, object]:
    return {
        "current": "*" if each.context == current else None,
        "context": each.context,
        "cluster": each.ref.cluster,
        "project": each.ref.project,
        "domain": each.ref.domain,
        "profile": each.ref.profile,
        "credential": each.kind,
        "expires": _expiry(each),
        "server": each.server,
        "cluster_id": each.ref.cluster_id,
        "project_id": each.ref.project_id,
        "file": str(path),
    }


def _expiry(each: Merged) -> object:
    """Return the certificate's time of expiry, or `None` if the certificate is missing, too large or unreadable."""
    from cryptography import x509

    data = each.user.get("client-certificate-data")
    file = each.user.get("client-certificate")
    if not isinstance(data or file, str):
        return None
    with contextlib.suppress(ValueError, OSError, TypeError):
        pem = base64.b64decode(data) if data else read_regular_file(Path(str(file)), MAX_CERTIFICATE_BYTES)
        return x509.load_pem_x509_certificate(pem).not_valid_after_utc
    return None


def _forget(each: Merged) -> None:
    """Delete the cached certificates and keys of a context."""
    if each.kind == "files":
        CertificateFile(*each.ref.identity).delete()
    path = cache.path_of(*each.ref.identity)
    if path is not None:
        with contextlib.suppress(OSError):
            Path(path).unlink()
