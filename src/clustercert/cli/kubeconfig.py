"""`clustercert kubeconfig`: a kubeconfig from a running service, as one of its users."""

import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clustercert.cli import lifetime, os_environment, profile
from clustercert.cli.login import PlainHttpOption
from clustercert.cli.output import Output, answer, document, note
from clustercert.cli.profile import DEFAULT_PROFILE, Profile
from clustercert.errors import ClustercertError
from clustercert.private_file import write_private

if TYPE_CHECKING:
    # Only whoever gets a kubeconfig loads the HTTP client.
    from clustercert.client import Client
    from clustercert.model import JsonObject

app = typer.Typer(name="kubeconfig", help="Kubeconfigs from a running service.", no_args_is_help=True)

_STANDARD_OUTPUT = Path("-")
# One for each further address of a cluster, which the API tells of in kubeconfigs alone.
_SAN_CONTEXT = re.compile(r"customSAN-[0-9]+", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


KubeconfigOutput = Literal["yaml", "json"]
"""The forms of a kubeconfig; kubectl reads both."""


class KubeconfigError(ClustercertError):
    """The kubeconfig can't be had or kept; the message says why."""


@dataclass(frozen=True, slots=True)
class _File:
    """Where the kubeconfig goes: a file, or None for standard output."""

    path: Path | None

    @classmethod
    def of(cls, out: Path | None, *, force: bool) -> "_File":
        """Looked at before a certificate is issued that would have nowhere to go. Raises KubeconfigError."""
        if out is None or out == _STANDARD_OUTPUT:
            return cls(None)
        if out.exists() and not force:
            raise KubeconfigError(
                f"The file {out} exists already. Name another one, or add --force to replace it."
            )
        if not out.resolve().parent.is_dir():
            raise KubeconfigError(f"There is no folder for {out}. Make it first.")
        return cls(out)

    def write(self, text: str) -> None:
        if self.path is None:
            answer(text)
            return
        try:
            write_private(self.path, text)
        except OSError as error:
            raise KubeconfigError(f"The file {self.path} can't be written: {error.strerror}.") from error


@app.callback()
def kubeconfig() -> None:
    """Kubeconfigs from a running service, for the user that `login` or the variables OS_AUTH_URL etc. say."""


@app.command()
def get(
    cluster: Annotated[str, typer.Argument(metavar="CLUSTER", help="The cluster, by name or id.")],
    duration: Annotated[
        int | None,
        typer.Option(metavar="DAYS", min=-1, max=1825, help="Whole days, or -1 for the longest allowed."),
    ] = None,
    expires_in: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="From now, like 30m or 8h. [default: 8h, or less if that is all there is]"
        ),
    ] = None,
    expire_at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Until then: 2027-01-31T18:00:00Z.")
    ] = None,
    local_key: Annotated[
        bool, typer.Option("--local-key", help="Make the private key here: the service never has it.")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="What for; kept in the service's audit log.")] = None,
    context: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Make this the current context, such as externalTLSVerify."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write a file of mode 0600 instead of standard output.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")] = False,
    output: Annotated[KubeconfigOutput, typer.Option("--output", "-o", help="The form.")] = "yaml",
    profile_name: Annotated[
        str | None,
        typer.Option("--profile", envvar="CLUSTERCERT_PROFILE", metavar="NAME", help="As whom; see login."),
    ] = None,
    plain_http: PlainHttpOption = False,
) -> None:
    """Get a kubeconfig with a new certificate for a cluster.

    Without --profile the variables of OpenStack's clients count, if OS_AUTH_URL is among them: OS_USERNAME,
    OS_PASSWORD, OS_PROJECT_NAME, OS_USER_DOMAIN_NAME, OS_TOKEN, OS_ACCESS_KEY, OS_SECRET_KEY, OS_CACERT.
    """
    from clustercert.cli.obtained import LocalKey, vetted

    wish = lifetime.wished(duration, expires_in, expire_at, datetime.now(UTC))
    file = _File.of(out, force=force)
    key = LocalKey() if local_key else None
    asking = _Asking(wish, key.csr_pem() if key else None, reason, context)
    whose = _whose(profile_name, plain_http=plain_http)
    with whose.explained(), whose.client() as client:
        obtained = vetted(asking.kubeconfig(client, whose.project_id, cluster), key)
    if context in obtained.contexts:
        obtained.document["current-context"] = context
    file.write(document(obtained.document, Output(output)))
    note(
        f"For {whose.user} ({obtained.username}) with the groups {', '.join(obtained.groups) or 'none'}, valid until "
        f"{obtained.not_after:%Y-%m-%d %H:%M:%S} UTC"
    )
    if context is not None and context not in obtained.contexts:
        # What was issued is not thrown away for it.
        raise KubeconfigError(
            f"The kubeconfig was issued and is good, but has no context {context}: its current one is "
            f"{obtained.document['current-context']}. It has: {', '.join(obtained.contexts)}."
        )


def _whose(profile_name: str | None, *, plain_http: bool) -> Profile:
    if profile_name is None and os_environment.is_set(os.environ):
        return os_environment.log_in(os.environ, plain_http=plain_http)
    return profile.load(profile_name or DEFAULT_PROFILE, os.environ)


@dataclass(frozen=True, slots=True)
class _Asking:
    """What is asked for."""

    wish: lifetime.Lifetime
    csr_pem: str | None
    reason: str | None
    context: str | None

    def kubeconfig(self, client: "Client", project_id: str, cluster: str) -> "JsonObject":
        """The service's answer. Raises ClientError or KubeconfigError."""
        from clustercert.client import LONGEST, Wish
        from clustercert.client.wire import Refused

        cluster_id = cluster if _UUID.fullmatch(cluster) else _found(client, project_id, cluster)
        if self.context is not None and not _SAN_CONTEXT.fullmatch(self.context):
            _check_context(self.context, client.contexts(project_id, cluster_id))
        wish = Wish(self.wish.duration, self.wish.expire_at, self.csr_pem, self.reason)
        try:
            return client.kubeconfig(project_id, cluster_id, wish)
        except Refused as error:
            if error.http_status != 403 or wish.expire_at is None:  # noqa: PLR2004 - the status of "too long"
                raise
            # What was wished may be more than the policy allows. A little less is better than nothing, if it's little.
            if wish.expire_at - client.longest(project_id, cluster_id) > self.wish.may_lose:
                raise
        return client.kubeconfig(project_id, cluster_id, Wish(LONGEST, None, self.csr_pem, self.reason))


def _found(client: "Client", project_id: str, name: str) -> str:
    found = [cluster.id for cluster in client.clusters(project_id) if cluster.name == name]
    if not found:
        raise KubeconfigError(f"There is no cluster {name} in your project.")
    return found[0]


def _check_context(wanted: str, contexts: tuple[str, ...]) -> None:
    """Before a certificate is issued in vain."""
    if wanted not in contexts:
        raise KubeconfigError(
            f"The kubeconfigs of this cluster have no context {wanted}. They have: {', '.join(contexts)}; and"
            " customSAN-0 and so on, where the cluster has further addresses."
        )
