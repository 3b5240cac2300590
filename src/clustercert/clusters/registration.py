"""Use case: register clusters and change them."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol
from urllib.parse import urlsplit

from clustercert.model import ClusterOptions
from clustercert.model.clusters import Registration, cluster_properties
from clustercert.model.errors import Conflict, InvalidRequest
from clustercert.model.group_roles import parse_group_roles
from clustercert.model.kubernetes import TOKEN_SIGNER
from clustercert.model.times import checked_labels
from clustercert.pki.certificates import chain_pem, parse_certificates
from clustercert.policy.templates import exempted_template, is_plain_text, unprefixed_templates


class StoredExemptions(Protocol):
    """Reads the exemptions of clusters."""

    async def custom_exemptions(self) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
        """Return id, name and patterns of each cluster whose exemptions are not the default. Raises Unavailable."""


@dataclass(frozen=True, slots=True)
class ExemptedTemplate:
    """An exemption of a cluster that could match a group that a template in the policy grants."""

    cluster_id: str
    cluster_name: str
    pattern: str
    template: str

    def __str__(self) -> str:
        return f"{self.cluster_name} ({self.pattern} for {self.template})"


async def exempted_templates(
    stored: StoredExemptions, policy_groups: Collection[str]
) -> tuple[ExemptedTemplate, ...]:
    """Return the exemptions that `cluster add` and `cluster update` would refuse now. Raises Unavailable."""
    if not unprefixed_templates(policy_groups):
        return ()
    return tuple(
        ExemptedTemplate(cluster_id, name, pattern, template)
        for cluster_id, name, patterns in await stored.custom_exemptions()
        for pattern in patterns
        if (template := exempted_template(pattern, policy_groups)) is not None
    )


async def refuse_new_exempted_templates(
    stored: StoredExemptions, before: Collection[str], after: Collection[str]
) -> None:
    """Raise Conflict if a cluster's exemption matches a template of the next policy, but none of the current policy."""
    known = {(each.cluster_id, each.pattern) for each in await exempted_templates(stored, before)}
    found = await exempted_templates(stored, after)
    added = [each for each in found if (each.cluster_id, each.pattern) not in known]
    if added:
        raise Conflict(
            f"The cluster {added[0].cluster_name} exempts {added[0].pattern}, which could exempt a group that the"
            f" policy's template {added[0].template} gives. Let the template begin with a prefix, such as"
            " team:{group}, or remove the exemption with `clustercert cluster update --remove-exempt`."
        )


MAX_SAN_URLS = 16
MAX_API_SERVERS = 32
MAX_URL = 512
MAX_VERSION = 64
MAX_EXEMPTIONS = 64
MAX_LISTED_MASTERS = 64
MAX_PINS = 256
MAX_CREDENTIAL_ROLES = 64

# The CCE API reference, "Creating a Cluster", requires names of 4 to 128 lower-case letters, digits and hyphens that
# begin with a letter. This pattern also allows other names, because existing clusters may have them.
MAX_NAME = 128
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
# Matches ids, with and without hyphens. A name must not look like an id, because commands and policy rules accept a
# cluster's name or id.
_LIKE_AN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}", re.IGNORECASE)
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
# Kubernetes accepts any path segment as the name of a role.
_CLUSTER_ROLE = re.compile(r"(?!\.{1,2}$)[^/%]{1,253}")
# Allows only the characters in Kubernetes' own names of users and groups. Project admins choose exemptions, and the
# exemptions are written into a README.md whose instructions an operator follows.
_EXEMPTION = re.compile(r"[A-Za-z0-9:._@/-]{1,252}\*?")
# The path of Rancher's proxy. The proxy accepts only Rancher's tokens, and calls the API server with its own identity.
_RANCHER_PROXY = re.compile(r"/k8s/clusters/[^/]+/?$")


@dataclass(frozen=True, slots=True)
class ClusterLimits:
    """Limits that keep a project from filling the database.

    Attributes:
        clusters: maximum number of clusters in a project.
        cas: maximum number of CAs for a cluster's API server.
        ca_kib: maximum size of a cluster's CAs in PEM, in KiB.
    """

    clusters: int = 10_000
    cas: int = 8
    ca_kib: int = 64


def new_registration(fields: Mapping[str, Any], before: ClusterOptions | None = None) -> Registration:
    """Convert fields of the API to a registration.

    Args:
        before: the cluster's current options; `None` for a new cluster.
    """
    values: dict[str, Any] = {"name": fields["name"]}
    options: dict[str, Any] = {}
    for each in cluster_properties():
        value, (*owner, attribute) = fields[each.name], each.path
        if isinstance(value, dict):
            value = {name: tuple(item) if isinstance(item, list) else item for name, item in value.items()}
        if owner:
            options[attribute] = tuple(dict.fromkeys(value)) if isinstance(value, list) else value
        else:
            values[attribute] = tuple(value) if isinstance(value, list) else value
    values["server_ca_pem"] = values["server_ca_pem"].encode("ascii", "replace")
    # If the cluster had roles, use an empty mapping instead of `None`, so that old bindings are still removed.
    if not options["credential_roles"] and (before is None or before.credential_roles is None):
        options["credential_roles"] = None
    return Registration(**values, options=ClusterOptions(**options))


def checked(registration: Registration, limits: ClusterLimits) -> Registration:
    """Return the validated registration, safe to write into a kubeconfig. Raises InvalidRequest."""
    _check(registration)
    _check_options(registration.options)
    _check_group_roles(registration)
    return replace(registration, server_ca_pem=_checked_cas(registration.server_ca_pem, limits))


def check_new_name(name: str) -> None:
    """Raise InvalidRequest if a new name looks like an id. Existing clusters may keep such a name."""
    if _LIKE_AN_ID.fullmatch(name):
        raise InvalidRequest(f"name: {name} looks like an id. Choose another name.")


def check_url(url: str) -> None:
    """Raise InvalidRequest if the URL is not a valid API server address."""
    try:
        parts = urlsplit(url)
        has_valid_port = parts.port is None or parts.port > 0
    except ValueError:
        has_valid_port = False
    if (
        not has_valid_port
        or not url.isascii()
        or not is_plain_text(url)
        or len(url) > MAX_URL
        or parts.scheme != "https"
        or not parts.hostname
        or parts.username is not None
        or parts.query
        or parts.fragment
        or " " in url
    ):
        raise InvalidRequest(
            f"{url!r} is not a valid API server address. Write it like https://10.0.0.5:6443."
        )
    if _RANCHER_PROXY.search(parts.path):
        raise InvalidRequest(
            f"{url!r} is the address of Rancher's proxy, which accepts no client certificates. Use the API server's"
            " own address: an authorized cluster endpoint of Rancher, or https://NODE:6443."
        )


def _check_urls(field_name: str, *urls: str) -> None:
    """Raise InvalidRequest, with the name of the field, if one of the URLs is not a valid API server address."""
    for url in urls:
        try:
            check_url(url)
        except InvalidRequest as error:
            raise InvalidRequest(f"{field_name}: {error.message}") from error


def _check(registration: Registration) -> None:
    """Raise InvalidRequest if a value of the registration is invalid. Does not check the CAs and the options."""
    if not _NAME.fullmatch(registration.name):
        raise InvalidRequest(
            f"name: {registration.name[:MAX_NAME]!r} can't name a cluster. Write 1 to {MAX_NAME} letters, digits,"
            " dots, hyphens or underscores. Begin and end with a letter or digit."
        )
    if len(registration.san_urls) > MAX_SAN_URLS:
        raise InvalidRequest(f"san_urls: a cluster can have at most {MAX_SAN_URLS} additional addresses.")
    _check_urls("internal_url", registration.internal_url)
    if registration.external_url:
        _check_urls("external_url", registration.external_url)
    _check_urls("san_urls", *registration.san_urls)
    if len(registration.api_servers) > MAX_API_SERVERS:
        raise InvalidRequest(f"api_servers: a cluster can have at most {MAX_API_SERVERS} API servers.")
    _check_urls("api_servers", *registration.api_servers)
    if not is_plain_text(registration.version) or len(registration.version) > MAX_VERSION:
        raise InvalidRequest("version: write it like v1.32.")
    checked_labels(registration.labels)


def _checked_cas(pem: bytes, limits: ClusterLimits) -> bytes:
    """Validate the CAs, and return their PEM blocks without the text around them. Raises InvalidRequest."""
    if b"PRIVATE KEY" in pem:
        raise InvalidRequest("server_ca: it must contain certificates only, and no private key.")
    advice = "Send only the CAs that lead to the API server's certificate."
    if len(pem) > limits.ca_kib * 1024:
        raise InvalidRequest(f"server_ca: {len(pem)} bytes are more than {limits.ca_kib} KiB. {advice}")
    try:
        cas = parse_certificates(pem, limits.cas)
    except InvalidRequest as error:
        raise InvalidRequest(f"server_ca: {error.message} {advice}") from error
    return chain_pem(cas)


def _check_options(options: ClusterOptions) -> None:
    """Raise InvalidRequest if a cluster's options are invalid."""
    if options.mode not in ("default", "known-only"):
        raise InvalidRequest("webhook_mode: it must be default or known-only.")
    if len(options.exemptions) > MAX_EXEMPTIONS:
        raise InvalidRequest(f"exemptions: a cluster can have at most {MAX_EXEMPTIONS}.")
    for pattern in options.exemptions:
        if not _EXEMPTION.fullmatch(pattern):
            raise InvalidRequest(
                f"exemptions: {pattern!r} is not valid. Write a user or a group with letters, digits and :._@/- only,"
                " or a prefix of a name, followed by an asterisk."
            )
    _check_fingerprints("listed_masters", options.listed_masters, MAX_LISTED_MASTERS)
    _check_fingerprints("pins", options.pins, MAX_PINS)
    if options.pin_components and not options.pins:
        raise InvalidRequest(
            "pin_components: without pins, known-only would deny every component of the control plane. Pin the"
            " certificates of the components first."
        )
    _check_roles(options.credential_roles or {})
    if options.discover_api_servers and not options.admission and options.credential_roles is None:
        raise InvalidRequest(
            "discover_api_servers: the service has no access to this cluster, so the service can't read the addresses."
            " Set this field to false and list the addresses in api_servers, or set up admission or credential_roles."
        )


def _check_group_roles(registration: Registration) -> None:
    """Raise InvalidRequest if the roles of groups, or options beside them, are invalid."""
    options = registration.options
    if registration.signer != TOKEN_SIGNER:
        if options.group_roles or options.allow_cluster_admin:
            raise InvalidRequest(
                "group_roles: only a cluster whose credentials are tokens (signer token) can have roles for groups."
            )
        return
    without_webhook = {
        "webhook_mode": options.mode != "default",
        "credential_roles": options.credential_roles is not None,
        "admission": options.admission,
        "discover_api_servers": options.discover_api_servers,
        "api_servers": bool(registration.api_servers),
        "pins": bool(options.pins),
        "pin_components": options.pin_components,
        "listed_masters": bool(options.listed_masters),
    }
    if given := next((name for name, is_given in without_webhook.items() if is_given), None):
        raise InvalidRequest(
            f"{given}: a cluster whose credentials are tokens (signer token) has no webhook and no client CA. Leave"
            " this field out."
        )
    try:
        parse_group_roles(options.group_roles, allow_cluster_admin=options.allow_cluster_admin)
    except ValueError as error:
        raise InvalidRequest(f"group_roles: {error}") from error


def _check_fingerprints(field_name: str, fingerprints: Collection[str], most: int) -> None:
    """Raise InvalidRequest, with the name of the field, if there are too many fingerprints or one is malformed."""
    if len(fingerprints) > most:
        raise InvalidRequest(f"{field_name}: a cluster can have at most {most} fingerprints in this field.")
    for text in fingerprints:
        if not _FINGERPRINT.fullmatch(text):
            raise InvalidRequest(
                f"{field_name}: {text!r} is not a SHA-256 fingerprint of 64 lower-case hex digits."
            )


def _check_roles(roles: Mapping[str, str]) -> None:
    """Raise InvalidRequest if `ClusterOptions.credential_roles` is invalid."""
    if len(roles) > MAX_CREDENTIAL_ROLES:
        raise InvalidRequest(
            f"credential_roles: a cluster can have at most {MAX_CREDENTIAL_ROLES} ClusterRoles for credentials."
        )
    for rule, role in roles.items():
        if not _CLUSTER_ROLE.fullmatch(role) or not is_plain_text(role) or not is_plain_text(rule):
            raise InvalidRequest(
                f"credential_roles: {rule!r}={role!r} has an invalid rule or ClusterRole name."
            )
