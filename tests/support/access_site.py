"""A service whose policy offers access, and the people who ask for access and approve it."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509

from support.command_line import Operator, new_operator
from support.exec_plugin import PROJECT, Done, User, add_cluster, status_of
from support.operated_cluster import tls_service
from support.stores import rows

STANDING, REQUESTED, URGENT = "app:viewers", "app:admins", "app:debuggers"
RULES = f"""
[[policy.rules]]
name = "members"
when.roles = ["member"]
grant.groups = ["{STANDING}"]

[[policy.rules]]
name = "repair"
when.roles = ["member", "guest"]
offer.groups = ["{REQUESTED}"]
offer.max_lifetime = "2h"
offer.min_reason_length = 10
offer.approvals = [{{ role = "member" }}, {{ groups = ["leads"] }}]

[[policy.rules]]
name = "on-call"
when.roles = ["member"]
offer.groups = ["{URGENT}"]
offer.max_lifetime = "1h"
offer.approvals = [{{ groups = ["leads"] }}]
offer.before_approval = true
offer.approve_within = "30m"
"""
REASON = "repair the broken ingress"


@dataclass(frozen=True)
class AccessSite:
    """A running service, and users who are logged in.

    Attributes:
        anna: a member, who asks for access.
        bert, carla: members, who approve; Carla is in the group `leads`.
        guest: has no standing access.
    """

    operator: Operator
    url: str
    project_id: str
    anna: User
    bert: User
    carla: User
    guest: User

    def add_cluster(self, name: str) -> "AccessCluster":
        ca = self.operator.folder / "service-ca.pem"
        return AccessCluster(self, name, add_cluster(self.operator, name, ca))


@dataclass(frozen=True)
class AccessCluster:
    """A cluster of the site, for which Anna has no open request at first."""

    site: AccessSite
    name: str
    id: str

    @property
    def plugin(self) -> tuple[str, ...]:
        """The command that `kubeconfig merge` lets kubectl run."""
        return ("credential", self.id, "--profile", "default", "--project", self.site.project_id)

    @property
    def cache_file(self) -> Path:
        return self.cache_file_of(self.site.anna)

    def cache_file_of(self, user: User) -> Path:
        return user.cache / f"default,{self.site.project_id},{self.id}"

    @property
    def mark(self) -> Path:
        return Path(f"{self.cache_file}.request")

    def ask(self, *options: str, user: User | None = None, group: str = REQUESTED) -> Any:
        """Create a request. Returns it in the form of the API."""
        command = ("request", "create", self.name, "--group", group, "--for", "1h", "--reason", REASON)
        return json.loads((user or self.site.anna).output(*command, *options, "-o", "json"))

    def approve(self, request_id: str, *approvers: User, options: Sequence[str] = ()) -> Any:
        """Let users approve; by default Bert and Carla, who meet all conditions. Returns the request."""
        for user in approvers or (self.site.bert, self.site.carla):
            approved = user.output(
                "request", "approve", request_id, "--reason", "agreed", *options, "-o", "json"
            )
        return json.loads(approved)

    def run_plugin(self, *options: str, user: User | None = None) -> Done:
        return (user or self.site.anna).run(*self.plugin, *options)

    def groups(self) -> set[str]:
        """The policy's groups in the certificate that Anna's plugin prints. The plugin asks about her request."""
        self.make_due()
        done = self.run_plugin()
        assert done.returncode == 0, done.stderr
        return policy_groups(status_of(done.stdout)["clientCertificateData"])

    def make_due(self) -> None:
        """Let the plugin ask about the request at its next call, as if 2 seconds had passed."""
        if self.mark.exists():
            fields = self.mark.read_text().split(" ")
            self.mark.write_text(" ".join([fields[0], "0", *fields[2:]]))

    def certificates(self) -> Sequence[tuple[object, ...]]:
        """The access request of each certificate for this cluster, and whether it is revoked; oldest first."""
        database = self.site.operator.folder / "data" / "clustercert.db"
        query = "SELECT access_request_id, revoked_at IS NOT NULL FROM certificate WHERE cluster_id = '%s' ORDER BY id"
        return rows(database, query % self.id)


def policy_groups(pem: str) -> set[str]:
    """The groups in a certificate, without its credential group."""
    leaf = x509.load_pem_x509_certificate(pem.encode())
    values = (str(each.value) for each in leaf.subject.get_attributes_for_oid(x509.NameOID.ORGANIZATION_NAME))
    return {each for each in values if each.startswith("app:")}


def prepared(folder: Path) -> Operator:
    """An operator with a new store and the policy."""
    operator = new_operator(folder)
    operator.configure(RULES)
    operator.output("project", "create", PROJECT)
    return operator


@contextmanager
def running(folder: Path) -> Iterator[AccessSite]:
    operator = prepared(folder)
    with tls_service(operator) as url:
        people = {
            name: User.create(operator, url, folder / name, name, role)
            for name, role in (
                ("anna", "member"),
                ("bert", "member"),
                ("carla", "member"),
                ("guest", "guest"),
            )
        }
        operator.output("group", "create", "leads")
        operator.output("group", "add-user", "leads", "carla")
        for user in people.values():
            user.log_in()
        yield AccessSite(operator, url, people["anna"].project_id, **people)
