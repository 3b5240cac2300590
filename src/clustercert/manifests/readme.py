"""The README.md of a set-up: the order of the steps, the exact flags, and what goes wrong.

Times and behaviour were measured on kube-apiserver 1.32.13 and 1.36.2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from clustercert.manifests.authorization import Asking, FailurePolicy, Mode
from clustercert.manifests.control_plane import Placed


@dataclass(frozen=True, slots=True)
class Told:
    """What a README says.

    Attributes:
        name, cluster_id: of the cluster.
        cluster_mode: how the service judges certificates that it doesn't know, whatever the files ask.
        admission: whether there is an admission policy.
        in_the_cluster: those for kubectl, in order.
        on_the_control_plane: those for every control-plane node.
    """

    name: str
    cluster_id: str
    cluster_mode: Mode
    asking: Asking
    placed: Placed
    admission: bool
    in_the_cluster: Sequence[str]
    on_the_control_plane: Sequence[str]


def readme(told: Told) -> str:
    """Markdown."""
    sections = [
        _head(told),
        _apply(told),
        _copy(told),
        _flags(told),
        _mode(told),
        _prove(told),
        _change(told),
        _warnings(told),
    ]
    return "\n".join(section.strip() + "\n" for section in sections if section)


def _head(told: Told) -> str:
    return f"""
# Cluster {told.name} ({told.cluster_id})

What its control plane needs so that certificates of clustercert are accepted, and refused once they are revoked. The
files that end in `.kubeconfig` hold a secret, the token by which the API server asks; keep them at mode 0600.

{_releases(told.asking)}
"""


def _releases(asking: Asking) -> str:
    if asking.mode == "known-only":
        return (
            "Mode known-only takes Kubernetes 1.32 or newer: older API servers don't say that a request came with a\n"
            "client certificate."
        )
    older = (
        f"\nCertificates from before the credential group, alive until {_minute(asking.unnumbered_until)}, can't be\n"
        "revoked there: only API servers from 1.32 on say which certificate a request came with."
        if asking.unnumbered_until is not None
        else ""
    )
    return f"""\
It takes Kubernetes 1.32 or newer. On 1.30 and 1.31 (by Kubernetes' documentation, not tried) write
`apiVersion: apiserver.config.k8s.io/v1beta1` into `authorization-config.yaml`, on 1.29 `v1alpha1`, which needs the
feature gate StructuredAuthorizationConfiguration. `clustercert kubernetes setup` keeps what you write there.{older}"""


def _minute(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"


def _apply(told: Told) -> str:
    commands = "\n".join(f"kubectl apply -f {name}" for name in told.in_the_cluster)
    return f"""
## 1. In the cluster

```console
{commands}
```
"""


def _copy(told: Told) -> str:
    folder, bundle = told.placed.folder, told.placed.client_cas
    copies = "\n".join(f"install -m 0600 {name} {folder}/{name}" for name in told.on_the_control_plane)
    return f"""
## 2. On every control-plane node, as root

```console
install -d -m 0700 {folder}
{copies}
cat /etc/kubernetes/pki/ca.crt client-ca.pem > {bundle}.new
mv {bundle}.new {bundle}
```

Put the file that `--client-ca-file` names today in place of `/etc/kubernetes/pki/ca.crt`, which is kubeadm's. It stays
in the bundle: nodes and the control plane authenticate by it. Don't append to `ca.crt` itself, which is more than a
list of client CAs: pods and nodes get it as the CA of the API server.
"""


def _flags(told: Told) -> str:
    flags = "\n".join(f"--{flag}={path}" for flag, path in told.placed.flags.items())
    audit = (
        """
Where `--audit-policy-file` is set already, keep your policy, and add `--audit-webhook-config-file` alone.
Do **not** set `--audit-webhook-truncate-enabled`: with it the API server discards events of more than 100 KB, and
whoever sends a long request hides what they did. clustercert takes batches of every size.
"""
        if told.placed.audit_policy
        else ""
    )
    return f"""
## 3. The API server's flags

```
{flags}
```

and **no** `--authorization-mode` and no `--authorization-webhook-…` any more: beside `--authorization-config` the API
server refuses to start. Other authorizers of yours belong into that file. An API server in a pod needs the folder
`{told.placed.folder}` mounted: the folder and not its files, or files that are renamed later stay the old ones inside.
One that runs as a user of its own has to be able to read the files. Do one control-plane node after the other.
{audit}
With kubeadm 1.31 or newer: merge `kubeadm.yaml` into the ClusterConfiguration (`kubectl -n kube-system edit configmap
kubeadm-config`, and the same in a file), then on each node

```console
kubeadm init phase control-plane apiserver --config FILE
```

which leaves `--authorization-mode` out by itself (kubeadm does that since 1.30). A ClusterConfiguration of
kubeadm.k8s.io/v1beta3 has `extraArgs` as a map of name and value instead of a list.
"""


def _mode(told: Told) -> str:
    if told.asking.mode == "default":
        if told.cluster_mode == "default":
            return ""
        return f"""
## Attention: the cluster is in mode known-only, and these files are not

The API server asks about members of the policy's groups alone, so that a certificate of another issuer in other groups
is never judged. Write the files again with `--mode known-only`, or take the mode back:
`clustercert cluster update {told.name} --webhook-mode default`.
"""
    switch = f"clustercert cluster update {told.name} --webhook-mode known-only"
    state = (
        "The service still has no opinion on certificates that it doesn't know. Switch it over once you have seen, for "
        f"a day or so, which ones are in use (`clustercert certificate access --cluster {told.name}`): `{switch}`."
        if told.cluster_mode == "default"
        else "It is on."
    )
    return f"""
## Mode known-only

Every certificate that is not in clustercert's ledger is denied, unless its user or one of its groups matches an
exemption, here {", ".join(f"`{pattern}`" for pattern in told.asking.exemptions) or "none"}. {state}

{"" if _KUBEADM_ADMINS in told.asking.exemptions else _exempt_first(told.name)}
"""


_KUBEADM_ADMINS = "kubeadm:cluster-admins"


def _exempt_first(name: str) -> str:
    return f"""On a kubeadm cluster exempt `{_KUBEADM_ADMINS}` first, and write these files again:

```console
clustercert cluster update {name} --exempt {_KUBEADM_ADMINS}
```

That group has `admin.conf`, and the API server's own certificate towards the kubelets, about which kubelets ask the API
server: denied, `kubectl logs`, `exec` and `port-forward` end.
""".rstrip()


def _prove(told: Told) -> str:
    return f"""
## 4. Prove it

```console
clustercert kubernetes verify {told.name}
```

issues two certificates, uses them, revokes one, measures the seconds until the API server refuses it, and revokes the
other.
"""


def _change(told: Told) -> str:
    return f"""
## Changing something later

- The API server reloads the bundle of client CAs and `authorization-config.yaml` by itself, in about 0.1 seconds. Write
  beside the file and **rename over it** (`mv`). Never delete one and put it back: that took 8 seconds once. A file that
  can't be used is logged, and the old one stays in force: look at
  `apiserver_authorization_config_controller_automatic_reloads_total{{status="failure"}}`.
- To exchange the token: `clustercert kubernetes token create {told.name}` (two are valid at once), and put it into a
  kubeconfig of **another name**, such as `webhook-2.kubeconfig`; then name that one in `authorization-config.yaml`. The
  API server reads the kubeconfig only when something in that file changes.
{_AUDIT_TOKEN if told.placed.audit_kubeconfig else ""}  Then `clustercert kubernetes token remove`.
- To change an option, write these files again: `clustercert kubernetes setup {told.name} --out DIR --force` reads DIR,
  and changes only what you give an option for. A new address, CA or token takes effect as above: under another name, or
  when the API server starts.
- Write them again after a change of the policy's groups or of the cluster's exemptions, which they name.
{_upgraded(told.asking)}
"""


_AUDIT_TOKEN = """\
  The audit webhook uses the same token: put the new one into `audit-webhook.kubeconfig` too, and restart the API
  server, which reads that file only when it starts. Else audit events are refused once the old token is removed.
"""


def _upgraded(asking: Asking) -> str:
    if asking.mode == "known-only" or asking.unnumbered_until is None:
        return ""
    return f"""\
- Write them again after {_minute(asking.unnumbered_until)}, when the last certificate without a credential group has
  ended: from then on they need not name the policy's groups. Until then groups that left the policy stay named."""


def _warnings(told: Told) -> str:
    bullets = [
        _FAILURE[told.asking.failure_policy],
        *([_ADMISSION] if told.admission else []),
        _MASTERS
        if told.placed.audit_policy
        else f"{_MASTERS.rstrip()} Nothing here sends those (`--no-audit`).",
        _REMAINS,
    ]
    return "\n".join(["## What to know\n", *(bullet.strip() for bullet in bullets)])


_MASTERS = """
- **`system:masters` can't be revoked.** Its members pass before any webhook is asked. Their certificates end with their
  expiry, or with their CA, and are seen in the API server's audit events alone.
"""
_ADMISSION = """
- **The admission policy sees writes alone.** What is revoked goes on reading by it. Whoever may impersonate writes on
  with `kubectl --as`; whoever may delete ValidatingAdmissionPolicies can delete it: Kubernetes applies none to those.
"""
_REMAINS = """
- **A running watch goes on** after a revocation, until the API server ends it, as a rule after 30 to 60 minutes.
  `kubectl exec` and `port-forward` sessions were not measured; suppose the same.
- What a credential made while it was good stays: tokens of service accounts, role bindings, other certificates.
- Dropping a CA from the bundle refuses all of its certificates at the next request, on open connections too.
"""
_FAILURE: Mapping[FailurePolicy, str] = {
    "Deny": """
- **failurePolicy is Deny.** While clustercert can't be reached, or can't reach its database, everybody whom the
  conditions select gets HTTP 500, not 403. If clustercert runs in this very cluster, or behind its ingress, it may need
  somebody from among them to come up again: a deadlock. Run it elsewhere then, or keep a way in that no webhook is
  asked about: a certificate of `system:masters` in a safe (kubeadm's `super-admin.conf`), or root on the control plane,
  who writes `failurePolicy: NoOpinion` into the file, which takes effect at once.
""",
    "NoOpinion": """
- **failurePolicy is NoOpinion.** While clustercert can't be reached, or can't reach its database, RBAC decides alone,
  and what is revoked works again. Whoever can overload clustercert or cut the network brings that about.
""",
}
