"""`clustercert kubeconfig unmerge`: removes merged entries."""

import contextlib
import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from clustercert.cli.credential import cache
from clustercert.cli.credential.certificate_files import CertificateFile
from clustercert.cli.kubeconfig import entries, files
from clustercert.cli.kubeconfig.contexts import KubeconfigOption, matching
from clustercert.cli.kubeconfig.entries import Merged
from clustercert.cli.options import InvalidOption, UnknownName
from clustercert.cli.session import warn_in_client
from clustercert.cli.terminal.output import print_note


def unmerge(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="CONTEXT…", help="Contexts or clusters, by name.")
    ] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All contexts that `merge` wrote.")] = False,
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Remove entries that `merge` wrote from your kubeconfig, and delete the cached certificates.

    Examples:
        clustercert kubeconfig unmerge prod
        clustercert kubeconfig unmerge --all
    """
    if bool(names) == every:
        raise InvalidOption("Name contexts or clusters, or give --all.")
    warn_in_client(os.environ)
    configs = {path: files.load(path) for path in files.loading_order(kubeconfig, os.environ)}
    merged = [each for config in configs.values() for each in entries.merged(config)]
    by_name = {name: matching(name, merged) for name in names or ()}
    chosen = {each.context for found in by_name.values() for each in found}
    found = False
    for path, config in configs.items():
        removed = [each for each in entries.merged(config) if every or each.context in chosen]
        if removed:
            found = True
            contexts = {each.context for each in removed}
            files.change(path, partial(entries.remove, contexts=contexts))
            for each in removed:
                _forget(each)
                print_note(f"Removed the context {each.context} from {path}")
            if any(each.kind == "embedded" for each in removed):
                print_note(
                    f"{files.backup_of(path)} still has private keys or tokens. Delete that file if you do not need it."
                )
            if config.current in contexts:
                print_note(
                    "There is no current context now. Choose one with `kubectl config use-context NAME`."
                )
    if left := {name for name, each in by_name.items() if not each}:
        raise UnknownName(
            f"`merge` wrote no such context: {', '.join(sorted(left))}. See `clustercert kubeconfig list`."
        )
    if not found:
        print_note("`merge` wrote no contexts, so there is nothing to remove.")


def _forget(each: Merged) -> None:
    """Delete the cached certificates and keys of a context, and the mark of an access request."""
    if each.kind == "files":
        is_token = "tokenFile" in each.user
        CertificateFile(*each.ref.identity, kind="token" if is_token else "certificate").delete()
    path = cache.path_of(*each.ref.identity)
    if path is not None:
        for name in (path, cache.mark_path(path)):
            with contextlib.suppress(OSError):
                Path(name).unlink()
