"""Command-line options for how a cluster enforces revocations."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, cast

import typer

from clustercert.cli.options import parse_pairs
from clustercert.cli.output import note
from clustercert.model.choices import MAX_TTL_SECONDS, WebhookMode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clustercert.model import JsonObject


@dataclass(frozen=True, slots=True)
class EnforcementOptions:
    """The options for how a new cluster enforces revocations. `None` means the default."""

    webhook_mode: Annotated[
        WebhookMode | None,
        typer.Option(
            help="Webhook's response for certificates from other issuers: no opinion (default), or denied."
        ),
    ] = None
    exempt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="User or group exempt from known-only, like kubeadm:cluster-admins. Repeatable.",
        ),
    ] = None
    pin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FINGERPRINT",
            help="Certificate with an exempt name, such as a component's, that raises no alert. Repeatable.",
        ),
    ] = None
    pin_components: Annotated[
        bool | None,
        typer.Option(
            "--pin-components/--no-pin-components",
            help="In known-only, deny certificates with exempt names that are not pinned. Pin each certificate before "
            "its renewal.",
        ),
    ] = None
    listed_master: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FINGERPRINT", help="Certificate in system:masters that raises no alert. Repeatable."
        ),
    ] = None
    credential_role: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE=CLUSTERROLE",
            help="Give each certificate from this policy rule its own group instead of the rule's groups. The group is "
            "bound to the ClusterRole until the certificate is revoked. Repeatable.",
        ),
    ] = None
    admission: Annotated[
        bool | None,
        typer.Option(
            "--admission/--no-admission",
            help="Keep the ids of revoked certificates in the cluster, for its ValidatingAdmissionPolicy.",
        ),
    ] = None
    unauthorized_ttl: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_TTL_SECONDS,
            metavar="SECONDS",
            help="How long the API server caches the webhook's denials. Later uses of revoked certificates are "
            "reported.",
        ),
    ] = None

    def __post_init__(self) -> None:
        self.parse_roles()

    def parse_roles(self) -> dict[str, str]:
        """Parse `--credential-role` into the ClusterRole for each rule. Raises typer.BadParameter."""
        return parse_pairs(self.credential_role, "RULE=CLUSTERROLE", "--credential-role")

    def note_next_step(self, cluster_id: object) -> None:
        """Print a note if the cluster needs manifests before the options take effect."""
        if self.admission is False:
            note(
                f"Next: run `clustercert kubernetes setup {cluster_id} --out DIR --force` in the folder of the earlier "
                "run, and follow step 1 of its README.md, which deletes the policy from the cluster."
            )
        if self.pin_components is not None:
            note(
                f"Next: run `clustercert kubernetes setup {cluster_id} --out DIR --force`, and copy "
                "authorization-config.yaml to the control plane. It says which certificates the API server asks about."
            )
        if self.credential_role or self.admission:
            note(
                f"Next: run `clustercert kubernetes setup {cluster_id} --out DIR` and apply the manifests for the "
                "cluster. They give the service the permissions that it needs there."
            )

    def changes(self, before: "JsonObject") -> "JsonObject":
        """Return the fields of the API to change, given the cluster's current ones, if there is one."""
        from clustercert.model import ClusterOptions

        listed, pins = _fingerprints(self.listed_master), _fingerprints(self.pin)
        roles = self.parse_roles()
        fields: JsonObject = {}
        if self.webhook_mode is not None:
            fields["webhook_mode"] = self.webhook_mode
        if self.exempt:
            current = _strings(before.get("exemptions", ClusterOptions().exemptions))
            fields["exemptions"] = list(dict.fromkeys([*current, *self.exempt]))
        if pins:
            current = _strings(before.get("pins", []))
            fields["pins"] = list(dict.fromkeys([*current, *pins]))
        if self.pin_components is not None:
            fields["pin_components"] = self.pin_components
        if listed:
            current = _strings(before.get("listed_masters", []))
            fields["listed_masters"] = list(dict.fromkeys([*current, *listed]))
        if roles:
            fields["credential_roles"] = {
                **cast("Mapping[str, str]", before.get("credential_roles", {})),
                **roles,
            }
        if self.admission is not None:
            fields["admission"] = self.admission
        if self.unauthorized_ttl is not None:
            fields["unauthorized_ttl_seconds"] = self.unauthorized_ttl
        return fields


@dataclass(frozen=True, slots=True)
class EnforcementChangeOptions(EnforcementOptions):
    """The options that change how a cluster enforces revocations. An option that is `None` changes nothing."""

    remove_exempt: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Remove an exemption. Repeatable.")
    ] = None
    remove_pin: Annotated[
        list[str] | None, typer.Option(metavar="FINGERPRINT", help="Remove a pin. Repeatable.")
    ] = None
    remove_listed_master: Annotated[
        list[str] | None,
        typer.Option(metavar="FINGERPRINT", help="Raise alerts for this certificate again. Repeatable."),
    ] = None
    no_credential_roles: Annotated[
        bool,
        typer.Option(
            "--no-credential-roles",
            help="Give new certificates the policy's groups again. Bindings stay until their certificates end.",
        ),
    ] = False

    def __post_init__(self) -> None:
        EnforcementOptions.__post_init__(self)
        if self.credential_role and self.no_credential_roles:
            raise typer.BadParameter("Give only one of --credential-role and --no-credential-roles.")

    def changes(self, before: "JsonObject") -> "JsonObject":
        """Return the fields of the API to change, given the cluster's current ones."""
        fields = EnforcementOptions.changes(self, before)
        for field, removed in (
            ("exemptions", self.remove_exempt),
            ("pins", _fingerprints(self.remove_pin)),
            ("listed_masters", self.remove_listed_master),
        ):
            if removed:
                current = _strings(fields.get(field, before[field]))
                fields[field] = [each for each in current if each not in removed]
        if self.no_credential_roles:
            fields["credential_roles"] = {}
        return fields


def _fingerprints(given: "Sequence[str] | None") -> list[str]:
    """Return the fingerprints as the service writes them, without colons and in lower case."""
    return [each.lower().replace(":", "") for each in given or ()]


def _strings(value: object) -> list[str]:
    return cast("list[str]", value)
