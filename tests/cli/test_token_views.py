"""`clustercert certificate` with credentials that are tokens."""

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from clustercert.model import CertificateRecord
from clustercert.store.clusters.signing_clusters import SigningClusterQueries
from clustercert.wiring import open_components
from support import world as worlds
from support.command_line import Operator
from support.kubernetes_messages import audit_event
from support.token_clusters import record_token, use_tokens
from support.world import World

USERS = "system:serviceaccount:clustercert-users:"
ROLES = {"clustercert:editors": ("clusterrole/view",)}


@dataclass(frozen=True)
class Shell:
    """An operator at a store with a token of `member` in the cluster `eip`."""

    world: World
    operator: Operator
    token: CertificateRecord

    @property
    def jti(self) -> str:
        return f"JTI={UUID(hex=self.token.serial)}"


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    world = worlds.make(tmp_path)
    token = asyncio.run(_prepare(world))
    operator = Operator(tmp_path)
    operator.configure()
    return Shell(world, operator, token)


async def _prepare(world: World) -> CertificateRecord:
    async with open_components(world.settings()) as components:
        cluster = await use_tokens(components.database, world.clusters["eip"], ROLES)
        user = world.people["member"].user
        return await record_token(components.database, cluster, user_id=user.id, user_name=user.name)


def test_a_token_is_listed_and_shown_without_a_certificate(shell: Shell) -> None:
    output = shell.operator.output
    name = shell.token.fingerprint.hex()
    assert output("certificate", "list", "--all", "--kind", "token", "--output", "name").split() == [name]
    assert output("certificate", "list", "--all", "--kind", "certificate", "--output", "name") == ""
    assert "kind" in output("certificate", "list", "--all").splitlines()[0].lower()
    shown = json.loads(output("certificate", "show", shell.jti, "--output", "json"))
    assert (shown["fingerprint"], shown["credential_id"], shown["pem"]) == (name, shell.jti, None)
    table = output("certificate", "show", shell.token.serial)
    assert shell.jti in table
    assert f"member-{shell.token.credential_number}" in table


def test_the_list_of_clusters_shows_which_gets_no_tokens(shell: Shell) -> None:
    assert "ISSUING-STOPPED" not in shell.operator.output("cluster", "list")
    asyncio.run(_stop(shell))
    heading, *rows = shell.operator.output("cluster", "list").splitlines()
    at = heading.split().index("ISSUING-STOPPED")
    shown = {row.split()[0]: row.split()[at] for row in rows}
    assert (shown.pop("eip"), set(shown.values())) == ("yes", {"no"})
    assert "The role view can do too much." in shell.operator.run("cluster", "show", "eip").err


def test_a_cluster_shows_when_the_services_own_token_expires(shell: Shell) -> None:
    assert shell.operator.output_json("cluster", "show", "eip")["signer_token_expires_at"] is None
    asyncio.run(_note_access(shell, datetime(2099, 1, 2, tzinfo=UTC)))
    shown = shell.operator.output_json("cluster", "show", "eip")
    assert shown["signer_token_expires_at"] == "2099-01-02T00:00:00Z"


async def _note_access(shell: Shell, expires_at: datetime) -> None:
    async with open_components(shell.world.settings()) as components:
        await SigningClusterQueries(components.database).note_access(shell.token.ca_id, expires_at)


async def _stop(shell: Shell) -> None:
    async with open_components(shell.world.settings()) as components:
        queries = SigningClusterQueries(components.database)
        assert await queries.note_problem(shell.token.ca_id, "The role view can do too much.")


def test_a_revocation_says_how_a_token_ends(shell: Shell) -> None:
    done = shell.operator.run("certificate", "revoke", shell.jti, "--yes")
    assert done.code == 0, done.err
    told = " ".join(done.err.split())
    assert "loses its rights in about 2 seconds" in told
    assert "At most 10 seconds after the service account is deleted" in told
    assert "keep the rights of the service accounts in that namespace" in told
    explained = " ".join(
        shell.operator.output("certificate", "access", "--cluster", "eip", "--explain").split()
    )
    assert "account: The token loses its rights" in explained
    assert "An open watch continues" in explained


def test_an_audit_log_shows_uses_of_tokens(shell: Shell, tmp_path: Path) -> None:
    account = f"{USERS}member-{shell.token.credential_number}"
    foreign = f"JTI={uuid4()}"
    log = tmp_path / "audit.log"
    events = [
        audit_event(shell.jti, at="2026-03-14T16:00:00.000000Z", user=account, groups=()),
        audit_event(shell.jti, at="2026-03-14T17:00:00.000000Z", user=account, groups=()),
        # Somebody else created a token of the account, and of an account that the ledger does not have.
        audit_event(foreign, user=account, groups=()),
        audit_event(foreign, user=f"{USERS}default", groups=()),
        audit_event(foreign, user="system:serviceaccount:kube-system:default", groups=()),
    ]
    log.write_text("".join(f"{json.dumps(each)}\n" for each in events))
    read = shell.operator.output_json("kubernetes", "import-audit-log", "eip", log)
    assert (read["lines"], read["uses"]) == (5, 4)
    shown = json.loads(shell.operator.output("certificate", "show", shell.jti, "--output", "json"))
    assert (shown["first_seen_at"], shown["last_seen_at"]) == ("2026-03-14T16:00:00Z", "2026-03-14T17:00:00Z")
    report = shell.operator.output_json("certificate", "access", "--cluster", "eip")
    assert {each["username"] for each in report["unknown_credentials"]} == {account, f"{USERS}default"}
    # In a cluster with certificates, accounts with such names belong to another installation.
    shell.operator.output("kubernetes", "import-audit-log", "plain", log)
    report = shell.operator.output_json("certificate", "access", "--cluster", "plain")
    assert report["unknown_credentials"] == []


def test_the_roles_of_groups_are_exported_and_applied(shell: Shell, tmp_path: Path) -> None:
    exported = tmp_path / "exported.yaml"
    exported.write_text(shell.operator.output("export", "--local"), encoding="utf-8")
    assert "clustercert:editors:" in exported.read_text(encoding="utf-8")
    assert shell.operator.run("diff", "--local", "-f", exported).err == "Nothing to change.\n"
    changed = exported.read_text(encoding="utf-8").replace("clusterrole/view", "clusterrole/edit@blue")
    exported.write_text(changed, encoding="utf-8")
    shell.operator.output("apply", "--local", "-f", exported)
    shown = shell.operator.output_json("cluster", "show", "eip")
    assert shown["group_roles"] == {"clustercert:editors": ["clusterrole/edit@blue"]}
    assert shell.operator.run("apply", "--local", "-f", exported).err == "Nothing to change.\n"
