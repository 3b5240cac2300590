"""The options that say how a cluster's credentials are guarded, on top of what was said before."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    # The commands load the nouns only when they are run.
    from clustercert.model import ClusterOptions


WebhookMode = Literal["default", "known-only"]
"""What the webhook answers for an X.509 credential id that the ledger doesn't know."""

ModeOption = Annotated[
    WebhookMode | None,
    typer.Option(
        "--webhook-mode",
        help="What the webhook says of client certificates that were not issued here: no opinion, or denied.",
    ),
]
ExemptOption = Annotated[
    list[str] | None,
    typer.Option(
        "--exempt",
        metavar="PATTERN",
        help="A user or group that known-only spares, such as system:*; any number of times.",
    ),
]
RemoveExemptOption = Annotated[
    list[str] | None, typer.Option("--remove-exempt", metavar="PATTERN", help="Drop an exemption.")
]
ListedMasterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--listed-master",
        metavar="FINGERPRINT",
        help="A certificate in system:masters that you know of and want no alert for; any number of times.",
    ),
]
RemoveListedMasterOption = Annotated[
    list[str] | None,
    typer.Option("--remove-listed-master", metavar="FINGERPRINT", help="Want alerts for it again."),
]
CredentialRoleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--credential-role",
        metavar="RULE=CLUSTERROLE",
        help="Give each certificate of this rule of the policy a group of its own, bound to the ClusterRole until it "
        "is revoked, in the place of the rule's groups; any number of times.",
    ),
]
NoCredentialRolesOption = Annotated[
    bool,
    typer.Option(
        "--no-credential-roles",
        help="Give new certificates the policy's groups again; bindings that there are end as before.",
    ),
]
AdmissionOption = Annotated[
    bool | None,
    typer.Option(
        "--admission/--no-admission",
        help="Keep the revoked ids in the cluster, for its ValidatingAdmissionPolicy.",
    ),
]


@dataclass(frozen=True, slots=True)
class Guarding:
    """What the options say; None and nothing leave what is."""

    mode: WebhookMode | None = None
    exempt: Sequence[str] | None = None
    listed_master: Sequence[str] | None = None
    credential_role: Sequence[str] | None = None
    admission: bool | None = None
    remove_exempt: Sequence[str] | None = None
    remove_listed_master: Sequence[str] | None = None
    no_credential_roles: bool = False

    def roles(self) -> dict[str, str]:
        """The ClusterRole by the policy's rule. Raises typer.BadParameter."""
        pairs = [option.partition("=") for option in self.credential_role or ()]
        if not all(rule and role for rule, _, role in pairs):
            raise typer.BadParameter("write it as RULE=CLUSTERROLE.", param_hint="--credential-role")
        if pairs and self.no_credential_roles:
            raise typer.BadParameter("--credential-role and --no-credential-roles exclude each other.")
        return {rule: role for rule, _, role in pairs}

    def next_step(self, cluster_id: str) -> str | None:
        """What has to be given to the cluster before the options can work, or None."""
        if not self.credential_role and not self.admission:
            return None
        return (
            f"Next: write the manifests with `clustercert kubernetes setup {cluster_id} --out DIR` and apply those "
            "that are for the cluster: the service needs its rights there."
        )

    def on_top_of(self, options: "ClusterOptions") -> "ClusterOptions":
        """The options with what was said, not checked yet. Raises typer.BadParameter."""
        from clustercert.model import ClusterOptions

        said, roles = self.roles(), options.credential_roles
        if said:
            roles = {**(roles or {}), **said}
        elif self.no_credential_roles and roles is not None:
            roles = {}
        admission = self.admission if self.admission is not None else options.admission
        return ClusterOptions(
            mode=self.mode or options.mode,
            exemptions=_changed(options.exemptions, self.exempt, self.remove_exempt),
            listed_masters=_changed(
                options.listed_masters,
                [fingerprint.lower().replace(":", "") for fingerprint in self.listed_master or ()],
                self.remove_listed_master,
            ),
            credential_roles=roles,
            admission=admission,
            # Whoever sets it up again may apply an older policy.
            admission_by_number=options.admission_by_number and admission,
        )


def _changed(
    before: Sequence[str], added: Sequence[str] | None, removed: Sequence[str] | None
) -> tuple[str, ...]:
    """In order and once each."""
    return tuple(item for item in dict.fromkeys([*before, *(added or ())]) if item not in (removed or ()))
