"""`clustercert kubeconfig list` and `use`: the contexts that `merge` wrote."""

import base64
import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.credential import cache
from clustercert.cli.credential.access_request import shown_id
from clustercert.cli.credential.certificate_files import MAX_CERTIFICATE_BYTES
from clustercert.cli.kubeconfig import entries, files
from clustercert.cli.kubeconfig.document import CURRENT, KubeconfigDocument
from clustercert.cli.kubeconfig.entries import Merged
from clustercert.cli.login import profile
from clustercert.cli.login.profile import Profile
from clustercert.cli.lookup import reachable_clusters
from clustercert.cli.options import UnknownName, did_you_mean
from clustercert.cli.session import warn_in_client
from clustercert.cli.terminal.output import Output, OutputOption, print_note, show_list, with_domain
from clustercert.cli.terminal.prompts import choose
from clustercert.model.errors import ClustercertError, InvalidRequest
from clustercert.model.kubeconfigs import ClusterRef
from clustercert.secure_file import read_regular_file

if TYPE_CHECKING:
    from datetime import datetime

    from cryptography import x509

KubeconfigOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Kubeconfig. [default: from KUBECONFIG, or ~/.kube/config]", show_default=False
    ),
]
_COLUMNS = ("current", "context", "cluster", "project", "profile", "credential", "expires")
# Columns that a table has only if a row has a value.
_OPTIONAL = ("needs_login", "access_request")
_MAX_NAMES = 20


def list_merged(
    kubeconfig: KubeconfigOption = None,
    check_ca: Annotated[
        bool,
        typer.Option(
            "--check-ca",
            help="Ask the services which certificates are from a client CA that is being replaced.",
        ),
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the contexts that `merge` wrote.

    Examples:
        clustercert kubeconfig list
    """
    warn_in_client(os.environ)
    listed: list[tuple[Merged, dict[str, object]]] = []
    seen: set[str] = set()
    paths = files.loading_order(kubeconfig, os.environ)
    configs = {path: files.load(path) for path in paths}
    current = next((config.current for config in configs.values() if config.current), None)
    profiles = profile.saved_profiles(os.environ)
    for path, config in configs.items():
        for each in entries.merged(config):
            if each.context not in seen:
                listed.append((each, row_of_context(each, path, current, profiles)))
            seen.add(each.context)
    rows = [row for _, row in listed]
    if not check_ca:
        show_contexts(rows, output)
        return
    signing = _signing_cas({each.ref.profile for each, _ in listed})
    for each, row in listed:
        row["client_ca"] = _state_of_ca(each, signing)
    show_contexts(rows, output, "client_ca")


def _signing_cas(profiles: Iterable[str]) -> dict[tuple[str, str], object]:
    """Return the key identifiers of the current signing CAs, by profile and cluster id.

    Prints a note for each login that can't be used.
    """
    found: dict[tuple[str, str], object] = {}
    for name in sorted(profiles):
        try:
            login = profile.load(name, os.environ)
            with login.explain_rejection(), login.client() as client:
                clusters = reachable_clusters(client)
        except ClustercertError as error:
            print_note(f"Could not check the contexts of the profile {name}: {error.message}")
            continue
        found |= {(name, str(each["id"])): each.get("client_ca_key_id") for each in clusters}
    return found


def _state_of_ca(each: Merged, signing: Mapping[tuple[str, str], object]) -> str | None:
    """Return whether a certificate's CA still signs.

    Returns `None` if this is not known, or if the plugin renews the certificate itself.
    """
    from clustercert.pki.certificates import issuer_key_id

    signing_key = signing.get((each.ref.profile, each.ref.cluster_id))
    leaf = _certificate(each)
    own_key = None if leaf is None else issuer_key_id(leaf)
    if signing_key is None or own_key is None:
        return None
    return "current" if own_key == signing_key else "being replaced"


def use(
    name: Annotated[
        str,
        typer.Argument(
            metavar="CONTEXT", help="Context or cluster, by name or a part of the name, or a project."
        ),
    ],
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Switch to a context that `merge` wrote. If several contexts match, asks which one.

    Examples:
        clustercert kubeconfig use prod
    """
    warn_in_client(os.environ)
    paths = files.loading_order(kubeconfig, os.environ)
    found: dict[str, Merged] = {}
    for path in paths:
        for each in entries.merged(files.load(path)):
            found.setdefault(each.context, each)
    chosen = _chosen(name, list(found.values()))
    # Like kubectl, change the first file that exists, because the current context in that file takes precedence.
    files.change(files.default_target(paths), partial(_put_current, name=chosen.context))
    print_note(f"Switched to the context {_described(chosen)}")
    profiles = profile.saved_profiles(os.environ)
    if _needs_login(chosen, profiles):
        from clustercert.cli.credential.needed_login import needed_login

        saved = profiles[chosen.ref.profile]
        print_note(
            f"{saved.shown_user} is logged in at {saved.url} (profile {chosen.ref.profile}). "
            f"{needed_login(saved, chosen.ref.login, chosen.ref.shown_name)}"
        )


def _put_current(config: KubeconfigDocument, name: str) -> None:
    config.value[CURRENT] = name


def _chosen(name: str, merged: Sequence[Merged]) -> Merged:
    """Return the context that the user means by `name`.

    `name` can be one of `matching`, or a part of the context's or cluster's name, or of the names of its project and
    domain, in this order of precedence. If several contexts match, asks the user. Raises UnknownName if no context
    matches, or CommandError if there is no terminal to ask.
    """
    matches = (
        matching(name, merged)
        or [each for each in merged if name.lower() in f"{each.context} {each.ref.cluster}".lower()]
        or [each for each in merged if name.lower() in each.ref.shown_name.lower()]
    )
    if not matches:
        similar = did_you_mean(name, {text for each in merged for text in (each.context, each.ref.cluster)})
        raise UnknownName(
            f"`merge` wrote no context {name}.{similar} Add clusters with `clustercert kubeconfig merge`, or see "
            "`clustercert kubeconfig list`."
        )
    if len(matches) == 1:
        return matches[0]
    listed = ", ".join(each.context for each in matches[:_MAX_NAMES])
    more = f" and {len(matches) - _MAX_NAMES} more" if len(matches) > _MAX_NAMES else ""
    number = choose(
        [_described(each) for each in matches[:_MAX_NAMES]],
        f"Several contexts match {name}: {listed}{more}. Give more of the name.",
    )
    return matches[number]


def _described(each: Merged) -> str:
    return f"{each.context}: the cluster {each.ref.shown_name} at {each.server}, as {each.ref.login}"


def _needs_login(each: Merged, profiles: Mapping[str, Profile]) -> bool:
    """Whether kubectl gets no certificates for a context, because its profile has the login of another user."""
    saved = profiles.get(each.ref.profile)
    return saved is not None and each.kind != "embedded" and saved.shown_user != each.ref.login


def show_contexts(rows: "Sequence[dict[str, object]]", output: Output, *more: str) -> None:
    """Print rows that `row_of_context` returned. A table also has the columns `more`."""
    more = (*(each for each in _OPTIONAL if any(row[each] is not None for row in rows)), *more)
    show_list(rows, output, columns=with_domain((*_COLUMNS, *more), rows), name="context", keep=more)


def matching(name: str, merged: Sequence[Merged]) -> list[Merged]:
    """Return the contexts that a name means: the context of this name, or else all contexts of clusters with this name.

    A cluster can be named by its name, PROJECT/CLUSTER, DOMAIN/PROJECT/CLUSTER or id.
    """
    return [each for each in merged if each.context == name] or [
        each for each in merged if name in _names_of_cluster(each.ref)
    ]


def _names_of_cluster(ref: ClusterRef) -> set[str]:
    return {ref.cluster, f"{ref.project}/{ref.cluster}", ref.shown_name, ref.cluster_id}


def row_of_context(
    each: Merged, path: Path, current: str | None, profiles: Mapping[str, Profile]
) -> dict[str, object]:
    """Return a table row for a context.

    Args:
        current: the name of the current context.
        profiles: the saved profiles, to find out whether the context needs the login of another user.
    """
    return {
        "current": "*" if each.context == current else None,
        "context": each.context,
        "cluster": each.ref.cluster,
        "project": each.ref.project,
        "domain": each.ref.domain,
        "profile": each.ref.profile,
        "login": each.ref.login,
        "needs_login": each.ref.login if _needs_login(each, profiles) else None,
        "credential": each.kind,
        "expires": _expiry(each),
        "access_request": _access_request(each),
        "server": each.server,
        "cluster_id": each.ref.cluster_id,
        "project_id": each.ref.project_id,
        "file": str(path),
    }


def _expiry(each: Merged) -> object:
    if each.user.keys() & {"token", "tokenFile"}:
        return _token_expiry(each)
    leaf = _certificate(each)
    return None if leaf is None else leaf.not_valid_after_utc


def _token_expiry(each: Merged) -> "datetime | None":
    """Return when a context's token ends, or `None` if the token is missing or unreadable.

    The service ends a short credential before its token expires. Only the files of `merge --files` have this time.
    """
    from clustercert.cli.credential.certificate_files import CertificateFile
    from clustercert.issuance.signers.account_tokens import MAX_TOKEN_BYTES, parse_token

    file = CertificateFile(*each.ref.identity, kind="token")
    if each.user.get("tokenFile") == str(file.path) and (end := file.ends_at()) is not None:
        return end
    with contextlib.suppress(InvalidRequest, OSError, TypeError):
        text = each.user.get("token")
        content = (
            str(text).encode()
            if text
            else read_regular_file(Path(str(each.user["tokenFile"])), MAX_TOKEN_BYTES)
        )
        return parse_token(content).expires_at
    return None


def _access_request(each: Merged) -> str | None:
    """Return the first digits of the id of the access request that kubectl uses in a context, or `None`."""
    path = cache.path_of(*each.ref.identity)
    mark = cache.read_mark(path) if path is not None and each.kind == "exec" else None
    return shown_id(mark.request) if mark is not None and mark.user == each.ref.login else None


def _certificate(each: Merged) -> "x509.Certificate | None":
    """Return a context's certificate, or `None` if the certificate is missing, too large or unreadable."""
    from cryptography import x509

    data = each.user.get("client-certificate-data")
    file = each.user.get("client-certificate")
    if not isinstance(data or file, str):
        return None
    with contextlib.suppress(ValueError, OSError, TypeError):
        pem = base64.b64decode(data) if data else read_regular_file(Path(str(file)), MAX_CERTIFICATE_BYTES)
        return x509.load_pem_x509_certificate(pem)
    return None
