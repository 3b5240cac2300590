"""Command-line options for how a cluster enforces revocations."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.options import parse_pairs
from clustercert.cli.output import note
from clustercert.model.choices import WebhookMode

if TYPE_CHECKING:
    from clustercert.model import ClusterOptions
    from clustercert.policy.rule_settings import PolicySettings


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
            metavar="PATTERN", help="User or group exempt from known-only, like system:*. Repeatable."
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

    def parse_roles(self) -> dict[str, str]:
        """Parse `--credential-role` into the ClusterRole for each rule. Raises typer.BadParameter."""
        return parse_pairs(self.credential_role, "RULE=CLUSTERROLE", "--credential-role")

    def check_rules(self, policy: "PolicySettings") -> None:
        """Raise typer.BadParameter if --credential-role names a rule that the policy lacks or names by position."""
        from clustercert.policy.cluster_options import credential_rule_problem

        if problem := credential_rule_problem(self.parse_roles().keys(), policy):
            raise typer.BadParameter(problem, param_hint="--credential-role")

    def check_exemptions(
        self, policy: "PolicySettings", before: "ClusterOptions", after: "ClusterOptions"
    ) -> None:
        """Raise typer.BadParameter if the change could exempt a group that a template of the policy gives."""
        from clustercert.policy.cluster_options import effective_exemptions, exemption_problem

        if problem := exemption_problem(effective_exemptions(before, after), policy):
            raise typer.BadParameter(problem, param_hint="--exempt")

    def note_next_step(self, cluster_id: str) -> None:
        """Print a note if the cluster needs manifests before the options take effect."""
        if self.credential_role or self.admission:
            note(
                f"Next: run `clustercert kubernetes setup {cluster_id} --out DIR` and apply the manifests for the "
                "cluster. They give the service the permissions that it needs there."
            )

    def apply_to(self, before: "ClusterOptions") -> "ClusterOptions":
        """Return the cluster's options with these options applied. Raises typer.BadParameter for a malformed option."""
        from clustercert.model import ClusterOptions

        admission = before.admission if self.admission is None else self.admission
        roles = self.parse_roles()
        listed = [each.lower().replace(":", "") for each in self.listed_master or ()]
        return ClusterOptions(
            mode=self.webhook_mode or before.mode,
            exemptions=tuple(dict.fromkeys([*before.exemptions, *(self.exempt or ())])),
            listed_masters=tuple(dict.fromkeys([*before.listed_masters, *listed])),
            credential_roles={**(before.credential_roles or {}), **roles}
            if roles
            else before.credential_roles,
            admission=admission,
            # Reset while admission is off: an older policy may be in use when admission is switched on again.
            admission_by_number=before.admission_by_number and admission,
        )


@dataclass(frozen=True, slots=True)
class EnforcementChangeOptions(EnforcementOptions):
    """The options that change how a cluster enforces revocations. An option that is `None` changes nothing."""

    remove_exempt: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Remove an exemption. Repeatable.")
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
        if self.credential_role and self.no_credential_roles:
            raise typer.BadParameter("Give only one of --credential-role and --no-credential-roles.")

    def apply_to(self, before: "ClusterOptions") -> "ClusterOptions":
        """Return the cluster's options with these options applied. Raises typer.BadParameter for a malformed option."""
        after = EnforcementOptions.apply_to(self, before)
        roles = after.credential_roles
        return replace(
            after,
            exemptions=_without(after.exemptions, self.remove_exempt),
            listed_masters=_without(after.listed_masters, self.remove_listed_master),
            # Empty, not `None`, so that the bindings for earlier certificates are still removed once those expire.
            credential_roles={} if self.no_credential_roles and roles is not None else roles,
        )


def _without(items: Sequence[str], removed: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(item for item in items if item not in (removed or ()))
