"""Compares the stored exemptions of clusters with the policy, whose templates may have changed since."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from clustercert.model.errors import Conflict
from clustercert.policy.exemptions import exempted_template, unprefixed_templates


class StoredExemptions(Protocol):
    """Reads the exemptions of clusters."""

    async def custom_exemptions(self) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
        """Return id, name and patterns of each cluster whose exemptions are not the default. Raises Unavailable."""


@dataclass(frozen=True, slots=True)
class ExemptedTemplate:
    """A cluster's exemption that could exempt a group that a template of the policy gives."""

    cluster_id: str
    cluster_name: str
    pattern: str
    template: str

    def __str__(self) -> str:
        return f"{self.cluster_name} ({self.pattern} for {self.template})"


async def exempted_templates(
    stored: StoredExemptions, policy_groups: Collection[str]
) -> tuple[ExemptedTemplate, ...]:
    """Return the exemptions that the commands `cluster add` and `update` would refuse now. Raises Unavailable."""
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
    """Raise Conflict if a cluster's exemption matches a template of the next policy but none of the current one."""
    known = {(each.cluster_id, each.pattern) for each in await exempted_templates(stored, before)}
    found = await exempted_templates(stored, after)
    added = [each for each in found if (each.cluster_id, each.pattern) not in known]
    if added:
        raise Conflict(
            f"The cluster {added[0].cluster_name} exempts {added[0].pattern}, which could exempt a group that the"
            f" policy's template {added[0].template} gives. Let the template begin with a prefix, such as"
            " team:{group}, or remove the exemption with `clustercert cluster update --remove-exempt`."
        )
