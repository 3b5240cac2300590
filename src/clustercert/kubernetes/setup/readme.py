"""Fills in readme.md, the template for the README.md of a setup: the steps, the flags, and notes for later.

`<!-- step NAME -->` is replaced by the part NAME of the distribution's file in the folder `steps`. A part between
`<!-- if NAME -->` and `<!-- end -->` is written only if the condition NAME is true. The times and the
behavior in the template were measured on kube-apiserver 1.32.13 and 1.36.2.
"""

import re
from collections.abc import Collection, Mapping
from importlib.resources import files as resources

from clustercert.kubernetes.setup.authorization import api_server_flags
from clustercert.kubernetes.setup.distributions import KUBEADM_ADMINISTRATORS
from clustercert.kubernetes.setup.patches import kubeadm_version
from clustercert.kubernetes.setup.values import (
    ADMISSION,
    CERTIFICATE_REQUESTS,
    FOR_CLUSTER,
    FOR_CONTROL_PLANE,
    RBAC,
    SERVICE_ACCESS,
    Setup,
    removed,
)
from clustercert.model.choices import DistributionName

_STEP = re.compile(r"<!-- step (\w+) -->\n")
_OPTIONAL = re.compile(r"<!-- if (\w+) -->\n(.*?)<!-- end -->\n", re.DOTALL)


def readme(setup: Setup, files: Collection[str]) -> str:
    """Return the content of README.md, in Markdown. `files` are the names of the other files."""
    text = chosen_text("readme.md", setup.choices.distribution, _conditions(setup, files))
    copied = [name for name in FOR_CONTROL_PLANE if name in files]
    return text.format(
        name=setup.cluster.name,
        cluster_id=setup.cluster.id,
        distribution=setup.choices.traits.title,
        folder=setup.choices.folder,
        bundle=setup.client_ca_bundle,
        flags="\n".join(f"--{flag}={path}" for flag, path in api_server_flags(setup).items()),
        commands="\n".join(_commands(setup, files)),
        templates=", ".join(f"`{each}`" for each in setup.templates),
        copies="\n".join(f"install -m 0600 {name} {setup.choices.folder}/{name}" for name in copied),
        secret=setup.secret,
        secret_files=" \\\n".join(f"  --from-file={name}" for name in copied),
        kubeadm_version=kubeadm_version(setup),
        exemptions=", ".join(f"`{each}`" for each in setup.cluster.options.exemptions) or "none",
        components=" --exempt ".join(setup.choices.traits.components),
        last_step=5 if setup.choices.audit else 4,
        no_exempt_events="" if setup.choices.audit else " These files send no audit events (`--no-audit`).",
        no_audit="" if setup.choices.audit else " These files don't send audit events (`--no-audit`).",
    )


def chosen_text(template: str, distribution: DistributionName, conditions: Mapping[str, bool]) -> str:
    """Return a template with the parts of a distribution, and the parts whose condition is true."""
    steps = distribution_steps(distribution)
    text = _STEP.sub(lambda step: steps.get(step[1], ""), _template(template))
    return _OPTIONAL.sub(lambda part: part[2] if conditions[part[1]] else "", text)


def distribution_steps(name: DistributionName) -> Mapping[str, str]:
    """Return the parts of README.md that are specific to a distribution, by name.

    The placeholders for values are not replaced yet.
    """
    _, *parts = _STEP.split(_template("steps", f"{name}.md"))
    return {part: text.strip("\n") + "\n" for part, text in zip(parts[::2], parts[1::2], strict=True)}


def _template(*path: str) -> str:
    return resources("clustercert.kubernetes.setup").joinpath(*path).read_text(encoding="utf-8")


def _obsolete(setup: Setup, files: Collection[str]) -> list[str]:
    """Return the names of manifests from earlier setups whose objects may still be in the cluster."""
    return [name for name in setup.previous_files if name not in files]


def _commands(setup: Setup, files: Collection[str]) -> list[str]:
    """Return the commands that delete objects of earlier setups and apply the files for the cluster."""
    # Delete before applying: an obsolete file and a current file may contain the same namespace.
    return [
        *(
            f"kubectl delete --ignore-not-found -f {removed(name)}"
            for name in _obsolete(setup, files)
            if name != SERVICE_ACCESS
        ),
        *(f"kubectl apply -f {name}" for name in FOR_CLUSTER if name in files),
    ]


def _conditions(setup: Setup, files: Collection[str]) -> dict[str, bool]:
    choices, options = setup.choices, setup.cluster.options
    flags, reloads, deny = choices.uses_flags, choices.traits.reloads, choices.failure_policy == "Deny"
    known_only, switched_on = choices.mode == "known-only", options.mode == "known-only"
    # With roles for single certificates, the certificates have none of the policy's groups.
    unbound = RBAC not in files and not options.credential_roles
    applies = bool(_commands(setup, files))
    not_exempt = set(choices.traits.components) - set(options.exemptions) if known_only else set()
    return {
        "applies": applies,
        "applies_nothing": not applies,
        "from_templates": unbound and bool(setup.templates) and not setup.groups,
        "unbound": unbound and bool(setup.groups),
        "binds_nothing": unbound and bool(setup.groups or setup.templates),
        "known_only": known_only,
        "default": not known_only and not flags,
        "default_or_flags": not known_only and not flags and choices.traits.takes_flags,
        "configuration": not flags,
        "reloads": reloads and not flags,
        "reloads_bundle": reloads,
        "restarts": not reloads,
        "two_cas": setup.has_two_client_cas,
        "flags": flags,
        "known_only_on": known_only and switched_on,
        "known_only_off": known_only and not switched_on,
        "cluster_known_only": switched_on and not known_only,
        "pinned": known_only and options.pin_components,
        "reported": known_only and not options.pin_components,
        "components_not_exempt": bool(not_exempt),
        "administrators_not_exempt": KUBEADM_ADMINISTRATORS in not_exempt,
        "deny": deny,
        "deny_reloads": deny and reloads,
        "deny_restarts": deny and not reloads,
        "no_opinion": choices.failure_policy == "NoOpinion" and not flags,
        "audit": choices.audit,
        "audit_reloads": choices.audit and reloads and not flags,
        "admission": ADMISSION in files,
        "bindings": bool(options.credential_roles),
        "in_cluster": SERVICE_ACCESS in files,
        "requests": CERTIFICATE_REQUESTS in files,
        "requests_allowed": CERTIFICATE_REQUESTS not in files and not flags,
        "obsolete": bool(_obsolete(setup, files)),
        "access_obsolete": SERVICE_ACCESS in _obsolete(setup, files),
        "adds_ca": setup.adds_ca,
        "signs_itself": setup.signs_itself,
        "objects": not {SERVICE_ACCESS, CERTIFICATE_REQUESTS}.isdisjoint(files),
    }
