"""Use case: register clusters, and show them to callers."""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from typing import Any

from clustercert.clusters.discarded_keys import create_ca
from clustercert.clusters.registration import ClusterLimits, check_new_name, checked
from clustercert.model import Actor, Caller, ClientCA, Cluster, KeyType, new_cluster_id
from clustercert.model.clusters import Registration
from clustercert.model.errors import InvalidRequest, NotFound
from clustercert.model.events.administration import ClusterChange, ClusterChanged
from clustercert.pki.signer import LOCAL, CaRequest, KeyCustody, Signer, signer_named
from clustercert.policy.lifetime import BACKDATE
from clustercert.store.clusters.client_cas import ClientCaQueries
from clustercert.store.clusters.registry import ClusterQueries, require_cluster

# Ten years, like kubeadm's CAs: a client CA must outlive every certificate that it signs.
CA_LIFETIME = timedelta(days=3650)
# The properties that a cluster's audit events contain. The API server's CA is omitted, because it can be long.
_RECORDED = [each.name for each in fields(Registration) if each.name != "server_ca_pem"]


@dataclass(frozen=True, slots=True)
class Clusters:
    """Registers and shows clusters. Methods that take a `Caller` authorize it; the others do not.

    Attributes:
        signers: the installed signers, by entry point name.
        ca_key_type: the key type of new client CAs.
        limits: the limits for each project and cluster.
    """

    queries: ClusterQueries
    signers: Mapping[str, Signer]
    cas: ClientCaQueries
    now: Callable[[], datetime]
    ca_key_type: KeyType = "ec-p256"
    limits: ClusterLimits = field(default_factory=ClusterLimits)

    def clusters_of_project(self, caller: Caller, project_id: str) -> AsyncIterator[Cluster]:
        """List a project's clusters, as `ClusterQueries.in_project` does.

        Raises NotFound if the caller has no role in the project.
        """
        caller.require_roles_in(project_id)
        return self.queries.in_project(project_id)

    def checked(self, registration: Registration) -> Registration:
        """Validate a registration. Raises InvalidRequest."""
        return checked(registration, self.limits)

    async def show(self, caller: Caller, project_id: str, cluster_id: str) -> Cluster:
        """Return a cluster.

        Raises NotFound if the cluster is not in the project, or if the caller has no role in the project.
        """
        caller.require_roles_in(project_id)
        return await require_cluster(self.queries, project_id, cluster_id)

    async def find(self, project_id: str, name_or_id: str) -> Cluster:
        """Return a project's cluster as stored now. Raises NotFound if no cluster has this id or name."""
        is_text = (project_id + name_or_id).isprintable()
        found = await self.queries.find(name_or_id, project_id) if is_text else ()
        if not found:
            raise NotFound(f"There is no cluster {name_or_id}.")
        return found[0]

    async def add(self, project_id: str, registration: Registration, *, actor: Actor) -> Cluster:
        """Register a cluster with a new client CA. Raises the errors of `prepare` and `register`."""
        cluster = await self.prepare(project_id, registration)
        await self.register(cluster, actor=actor)
        return cluster

    async def prepare(
        self,
        project_id: str,
        registration: Registration,
        *,
        secret: bytes | None = None,
        planned: bool = False,
    ) -> Cluster:
        """Create a cluster and its client CA, but do not register the cluster yet.

        Raises InvalidRequest, Unavailable, or an error from the signer. `DiscardedKeys` deletes the key of the CA if
        the cluster is not registered.

        Args:
            secret: the credential that the signer needs for this cluster, if it needs one.
            planned: whether this is a dry run. In a dry run, the built-in signer creates the CA, without the secret.
        """
        values = self._checked_values(registration)
        check_new_name(registration.name)
        if registration.signer not in self.signers:
            installed = ", ".join(sorted(self.signers))
            raise InvalidRequest(
                f"The signer {registration.signer} is not installed. Installed: {installed}."
            )
        now, cluster_id = self._now(), new_cluster_id()
        request = CaRequest(
            cluster_id,
            registration,
            self.ca_key_type,
            now - BACKDATE,
            CA_LIFETIME,
            None if planned else secret,
        )
        if planned:
            client_ca = await signer_named(self.signers, LOCAL).create_ca(request)
        else:
            client_ca = await create_ca(self.signers[registration.signer], request, self.cas)
        return Cluster(
            **values,
            id=cluster_id,
            project_id=project_id,
            created_at=now,
            updated_at=now,
            client_ca=client_ca,
        )

    async def register(self, cluster: Cluster, *, actor: Actor) -> None:
        """Register a prepared cluster.

        Raises Conflict if the name is taken or the CA's key was deleted, or Forbidden if the project is full.
        """
        event = self._event("cluster.added", cluster, actor)
        await self.queries.add(cluster, event, self.limits.clusters)

    async def key_custody(self, cluster: Cluster) -> KeyCustody:
        """Return where the key of the cluster's client CA is. Raises SignerError, RemoteFailed or Unavailable."""
        return await signer_named(self.signers, cluster.client_ca.signer).custody(cluster.client_ca)

    async def update(self, cluster: Cluster, registration: Registration, *, actor: Actor) -> Cluster:
        """Change a cluster, except its id and client CA. Raises InvalidRequest or Conflict, like `add`."""
        return await self._replace(self._changed(cluster, registration), actor)

    async def replace(
        self, before: Cluster, registration: Registration, *, actor: Actor, secret: bytes | None = None
    ) -> Cluster:
        """Like `update`, but does nothing if nothing changes. Raises ConcurrentChange if `before` is out of date.

        Args:
            secret: a new credential for the signer of the cluster's client CA. May raise an error of the signer.
        """
        after = self._changed(before, registration)
        if registration.signer != before.signer:
            raise InvalidRequest(
                "signer: it changes only with a rotation of the client CA. Run `clustercert cluster ca rotate CLUSTER"
                " --signer NAME`."
            )
        if secret is not None:
            signer = signer_named(self.signers, before.client_ca.signer)
            sealed = await signer.accept_secret(before.client_ca, after, secret)
            after = replace(after, client_ca=replace(before.client_ca, sealed_key=sealed))
        return before if after == before else await self._replace(after, actor, before)

    async def own_cas(self, cluster: Cluster) -> tuple[ClientCA, ...]:
        """Return the client CAs in use that are the cluster's own. The service sends a credential to such a cluster.

        Raises SignerError if the signer of a CA is not installed.
        """
        used = [each for each in await self.cas.of_cluster(cluster.id) if each.state != "retired"]
        return tuple(each for each in used if signer_named(self.signers, each.signer).is_ca_of_cluster)

    async def remove(self, cluster: Cluster, *, actor: Actor, unchanged: bool = False) -> None:
        """Delete a cluster. `DiscardedKeys` deletes the keys of its client CAs afterwards.

        The cluster's API server trusts the CA until an operator removes the CA from the API server's configuration.
        With `unchanged`, raises NotFound if the cluster was already removed, or ConcurrentChange if it was changed.
        """
        event = self._event("cluster.removed", cluster, actor)
        await self.queries.remove(cluster.id, event, cluster if unchanged else None)

    async def _replace(self, after: Cluster, actor: Actor, before: Cluster | None = None) -> Cluster:
        changed = replace(after, updated_at=self._now())
        await self.queries.replace(changed, self._event("cluster.updated", changed, actor), before)
        return changed

    def _now(self) -> datetime:
        return self.now().replace(microsecond=0)

    def _event(self, kind: ClusterChange, cluster: Cluster, actor: Actor) -> ClusterChanged:
        return ClusterChanged(
            at=self.now(),
            kind=kind,
            project_id=cluster.project_id,
            actor=actor,
            subject=cluster.id,
            client_ca_id=cluster.client_ca.id,
            **{name: getattr(cluster, name) for name in _RECORDED},
        )

    def _changed(self, cluster: Cluster, registration: Registration) -> Cluster:
        """Return the cluster with a validated registration. Raises InvalidRequest."""
        if registration.name != cluster.name:
            check_new_name(registration.name)
        return replace(cluster, **self._checked_values(registration))

    def _checked_values(self, registration: Registration) -> dict[str, Any]:
        """Validate a registration, and return its values by field name. Raises InvalidRequest."""
        valid = self.checked(registration)
        return {each.name: getattr(valid, each.name) for each in fields(Registration)}
