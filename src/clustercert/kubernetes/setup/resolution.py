"""Determines the values in the files, from the options, the folder's `setup.toml` and the defaults, in that order."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from clustercert.kubernetes.setup.choices import (
    FIRST_WITH_HASHES,
    GivenChoices,
    SetupChoices,
    SetupError,
    checked_service_url,
)
from clustercert.kubernetes.setup.distributions import UNSUPPORTED
from clustercert.kubernetes.setup.folder import ExistingSetup, SetupFolder
from clustercert.kubernetes.setup.rbac import DEFAULT_BINDINGS
from clustercert.kubernetes.setup.values import Setup, WebhookClient
from clustercert.model import Cluster
from clustercert.model.errors import InvalidRequest
from clustercert.pki.certificates import parse_certificates
from clustercert.policy.decision import Policy
from clustercert.policy.rules import groups_and_templates
from clustercert.policy.templates import is_template
from clustercert.policy.toml_tables import problem_text


def bound_roles(
    groups: Sequence[str], given: Mapping[str, str], previous: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the ClusterRole for each group to bind. Raises InvalidRequest.

    Args:
        given: bindings from the option --bind, which take precedence over other bindings.
        previous: bindings to use instead of the defaults.
    """
    if unknown := given.keys() - set(groups):
        raise InvalidRequest(f"--bind: No policy rule grants the group {', '.join(sorted(unknown))}.")
    if previous is None:
        previous = {group: DEFAULT_BINDINGS[group] for group in groups if group in DEFAULT_BINDINGS}
    return {**previous, **given}


@dataclass(frozen=True, slots=True)
class Resolver:
    """Determines the values in the files of one folder.

    Attributes:
        public_urls: the settings for the address of this service, and their values. The first value takes precedence.
        private_ca_pem: the private CA of this service's certificate; `None` if no private CA is known. This CA is used
            if neither an option nor the folder names a CA.
        requires_client: whether the webhook requires a client certificate from API servers.
        given: the options of the command, by their names in `SetupChoices`.
        given_client: the API server's client certificate and key from the options. Keep the key secret.
        folder, existing: the folder, and its content before this run.
    """

    policy: Policy
    public_urls: Mapping[str, str | None]
    private_ca_pem: str | None
    requires_client: bool
    given: Mapping[str, Any]
    given_client: WebhookClient | None
    folder: SetupFolder
    existing: ExistingSetup

    def check(self) -> None:
        """Check the values that do not depend on the cluster. Raises SetupError or InvalidRequest."""
        if reason := UNSUPPORTED.get(self.given.get("distribution", "")):
            raise SetupError(reason)
        try:
            GivenChoices.model_validate({"cluster_id": "", "bind": {}, **self.given})
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            name = str(fault["loc"][0]).replace("_", "-")
            raise InvalidRequest(f"--{name}: {problem_text(fault, GivenChoices)}") from error
        self._service_url()
        bound_roles(self.policy.groups, self.given.get("bind", {}))

    def setup(self, cluster: Cluster, client_cas_pem: bytes, *, signs_itself: bool = False) -> Setup:
        """Return the values in the files. The token is empty if the folder has no token.

        Raises SetupError or InvalidRequest.
        """
        policy, given = self.policy, self._given_choices(cluster)
        choices = SetupChoices.model_validate(
            self._defaults(cluster) | given.given() | {"webhook_url": self._service_url()}
        )
        self._check_version(choices)
        return Setup(
            cluster=cluster,
            client_cas_pem=client_cas_pem,
            choices=choices,
            given=given,
            groups=policy.groups,
            templates=tuple(sorted(filter(is_template, groups_and_templates(policy.rules)))),
            token=self.existing.token,
            client=self._client(),
            signs_itself=signs_itself,
            previous_files=self.existing.files,
            previous_authorization=self.existing.authorization,
        )

    def _given_choices(self, cluster: Cluster) -> GivenChoices:
        """Return the options that were given in this run or in earlier runs. Raises SetupError or InvalidRequest."""
        before = self.existing.choices
        if before is not None:
            before.require_cluster(cluster.id, self.folder.path)
        previous = before.bind if before is not None else None
        bind = bound_roles(self.policy.groups, self.given.get("bind", {}), previous)
        stored = before.given() if before is not None else {"cluster_id": cluster.id}
        return GivenChoices.model_validate({**stored, **self.given, "bind": bind})

    def kept(self, cluster: Cluster, choices: SetupChoices) -> Iterator[str]:
        """Yield the values that are kept from the folder and differ from the defaults, in the form of options."""
        before, defaults = self.existing.choices, self._defaults(cluster)
        if before is None:
            return
        for name, value in before.given().items():
            if name not in ("cluster_id", "bind", "written", *self.given) and value != defaults[name]:
                yield _as_option(name, value)
        for group, role in before.bind.items():
            if choices.bind[group] == role != defaults["bind"].get(group):
                yield f"--bind {group}={role}"
        for group in defaults["bind"]:
            if group not in choices.bind:
                yield f"no --bind {group}=ROLE, so this group has no rights in the cluster"
        if self.given_client is None and self.existing.client is not None:
            yield "--webhook-client-certificate"

    def _defaults(self, cluster: Cluster) -> dict[str, Any]:
        options = cluster.options
        constant = {
            name: field.get_default(call_default_factory=True)
            for name, field in SetupChoices.model_fields.items()
            if not field.is_required()
        }
        return constant | {
            "cluster_id": cluster.id,
            "mode": options.mode,
            "unauthorized_ttl": f"{options.unauthorized_ttl_seconds}s",
            "webhook_url": next(filter(None, self.public_urls.values()), None),
            "webhook_ca": self.private_ca_pem,
            "bind": bound_roles(self.policy.groups, {}),
        }

    def _service_url(self) -> str:
        """Return the address at which the API server calls this service. Raises SetupError or InvalidRequest."""
        if "webhook_url" in self.given:
            return str(self.given["webhook_url"])
        if (before := self.existing.choices) is not None and before.webhook_url is not None:
            return before.webhook_url
        for setting, url in self.public_urls.items():
            if url is not None:
                try:
                    return checked_service_url(url)
                except ValueError as error:
                    raise SetupError(f"{setting}: {error}") from error
        raise InvalidRequest(
            "Give the address at which the control plane reaches this service with --webhook-url, or set "
            f"{' or '.join(self.public_urls)}."
        )

    def _check_version(self, choices: SetupChoices) -> None:
        """Raise SetupError if a choice needs a newer version of Kubernetes."""
        if choices.minor is None:
            return
        if choices.mode == "known-only" and choices.minor < FIRST_WITH_HASHES:
            raise SetupError(
                f"Mode known-only needs Kubernetes 1.32 or newer, not {choices.kubernetes_version}. After an upgrade, "
                "add --kubernetes-version 1.32. Until then, use --mode default, and change the cluster's mode with "
                "`clustercert cluster update CLUSTER --webhook-mode default`."
            )
        if choices.uses_flags:
            if not choices.traits.takes_flags:
                raise SetupError(
                    f"--distribution {choices.distribution} needs Kubernetes 1.30 or newer, not "
                    f"{choices.kubernetes_version}."
                )
            for option, is_chosen in (
                ("--failure-policy Deny", choices.failure_policy == "Deny"),
                ("--timeout", "timeout" in self.given),
                ("--deny-certificate-requests", self.given.get("certificate_requests") is True),
            ):
                if is_chosen:
                    raise SetupError(f"{option} is not possible before Kubernetes 1.30.")

    def _client(self) -> WebhookClient | None:
        client = self.given_client or self.existing.client
        if client is None and self.requires_client:
            raise SetupError(
                "webhook.client_ca is set, so an API server can't connect without a client certificate. "
                "Give a certificate with --webhook-client-certificate and --webhook-client-key."
            )
        return client


def _as_option(name: str, value: object) -> str:
    match name:
        case "audit":
            return "--audit" if value else "--no-audit"
        case "certificate_requests":
            return "--deny-certificate-requests" if value else "--allow-certificate-requests"
        case "webhook_ca":
            names = (each.subject.rfc4514_string() for each in parse_certificates(str(value).encode()))
            return f"--webhook-ca ({', '.join(names)})"
        case _:
            return f"--{name.replace('_', '-')} {value}"
