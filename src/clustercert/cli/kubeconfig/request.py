"""Requests a credential for a cluster: a token, or a certificate with a key from this machine or the service."""

from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import unquote

from clustercert.cli.kubeconfig.validation import (
    LocalKey,
    ValidatedKubeconfig,
    validated_kubeconfig,
    validated_token,
)
from clustercert.cli.options import LifetimeOptions
from clustercert.client.connection import ApiError
from clustercert.model.choices import CredentialKind
from clustercert.model.times import parse_rfc3339, rfc3339
from clustercert.policy.lifetime import SHORTEN

if TYPE_CHECKING:
    from clustercert.client import Client, IssueOptions
    from clustercert.client.connection import ApiResponse
    from clustercert.model import JsonObject

_ACCESS_REQUEST = "X-Clustercert-Access-Request"
_LEFT_OUT = "X-Clustercert-Left-Out"
_NOT_AFTER = "X-Clustercert-Not-After"


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """A request for a credential for a cluster.

    Attributes:
        local_key: whether to create the private key on this machine. A token has no key.
        access_request: the id of the access request whose groups the credential has. A credential that would outlive
            the access request is shortened.
        kind: the kind of the cluster's credentials, or `None` if it is not known. Then a certificate is requested
            first, and a token if the service answers that the cluster has tokens.
    """

    project_id: str
    cluster_id: str
    lifetime: LifetimeOptions
    local_key: bool = True
    reason: str | None = None
    access_request: str | None = None
    kind: CredentialKind | None = None

    def send(self, client: "Client") -> ValidatedKubeconfig:
        """Request the credential, and return the validated kubeconfig. Raises ClientError or CommandError."""
        options = replace(
            self.lifetime.issue_options(), reason=self.reason, access_request=self.access_request
        )
        if self.access_request is not None and options.expires_in is not None:
            options = replace(options, shorten=True)
        try:
            found, response = self._obtain(client, options)
        except ApiError as error:
            raise self._refusal(error) from error
        is_used = (
            self.access_request is not None and response.headers.get(_ACCESS_REQUEST) == self.access_request
        )
        return replace(found, access_request=self.access_request) if is_used else found

    def _obtain(self, client: "Client", options: "IssueOptions") -> "tuple[ValidatedKubeconfig, ApiResponse]":
        if self.kind == "token":
            return self._token(client, options)
        key = LocalKey() if self.local_key else None
        try:
            response = client.issue(
                self.project_id, self.cluster_id, replace(options, csr=key.csr_pem() if key else None)
            )
        except ApiError as error:
            if (
                self.kind is None
                and error.http_status == HTTPStatus.CONFLICT
                and credential_kind(client, self.cluster_id) == "token"
            ):
                return self._token(client, options)
            raise
        return validated_kubeconfig(response.body, key), response

    def _token(self, client: "Client", options: "IssueOptions") -> "tuple[ValidatedKubeconfig, ApiResponse]":
        response = client.issue(self.project_id, self.cluster_id, replace(options, credential="token"))
        with client.check_format():
            not_after = parse_rfc3339(response.headers.get(_NOT_AFTER, ""))
        groups = groups_in(response.headers.get(_LEFT_OUT, ""))
        return replace(validated_token(response.body, not_after), left_out=groups), response

    def _refusal(self, error: ApiError) -> ApiError:
        """Return the error with advice: options instead of API fields, and the command that explains a refusal."""
        if self.lifetime.expires_in is not None:
            advice = "Give a shorter --expires-in, or leave it out."
        else:
            advice = "Request a shorter lifetime, or --duration -1 for the longest allowed."
        message = error.message.replace(SHORTEN, advice)
        if self.lifetime.expire_at is not None and message.startswith("expire_at: "):
            message = message.replace("expire_at", "--expire-at", 1)
        if error.http_status == HTTPStatus.FORBIDDEN:
            request = f" --request {self.access_request}" if self.access_request is not None else ""
            message += f" `clustercert explain {self.cluster_id}{request}` shows the reason."
        return ApiError(message, error.http_status)


def groups_in(header: str) -> tuple[str, ...]:
    """Return the names of groups in a header of the service: percent-encoded, and separated by commas."""
    return tuple(map(unquote, header.split(","))) if header else ()


def credential_kind(client: "Client", cluster_id: str) -> CredentialKind:
    """Return the kind of a cluster's credentials. Raises ClientError."""
    for each in client.list_all("/clusters", "clusters", name=cluster_id):
        if each["id"] == cluster_id:
            return kind_of(each)
    return "certificate"


def kind_of(cluster: "JsonObject") -> CredentialKind:
    """Return the kind of the credentials of a cluster in the service's list.

    A service that has no tokens does not name a kind.
    """
    return "token" if cluster.get("credential") == "token" else "certificate"


def token_notes(kubeconfig: ValidatedKubeconfig) -> list[str]:
    """Return what the user should know about a new token: the groups that it lacks, and if it outlives its access."""
    notes = []
    if kubeconfig.left_out:
        notes.append(
            f"The token lacks the groups {', '.join(kubeconfig.left_out)}, which have no role in this cluster."
        )
    expires_at = kubeconfig.token_expires_at
    if expires_at is not None and expires_at > kubeconfig.not_after:
        notes.append(
            f"The service ends the token at {rfc3339(kubeconfig.not_after)}; if the service is down then, the token "
            f"works until {rfc3339(expires_at)}."
        )
    return notes
