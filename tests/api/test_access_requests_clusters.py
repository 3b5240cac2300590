"""Access requests for clusters with a binding for each certificate, and for clusters that sign themselves."""

import re
from pathlib import Path

from clustercert.model import ClusterOptions, parse_rfc3339
from support import world as worlds
from support.administration import OWN, unique
from support.apiserver import ApiServer
from support.leaf_checks import leaf_of
from support.managed_cluster import bindings, register, set_up, status
from support.request_client import POLICY, REQUESTS, RequestClient
from support.service import Service
from support.signing_cluster import first_token, give_access
from support.stores import Store
from support.wait import eventually

ROLES = {"view": "view", "edit": "edit"}


def test_a_certificate_of_a_request_is_bound_to_the_role_of_its_rule_until_the_end(tmp_path: Path) -> None:
    world = worlds.make(tmp_path)
    (tmp_path / "apiserver").mkdir()
    with ApiServer(tmp_path / "apiserver") as double:
        set_up(double, ROLES.values())
        world.clusters["bound"] = register(
            world, double, "bound", ClusterOptions(credential_roles=ROLES, admission=True)
        )
        with Service(world.settings(policy=POLICY)).running() as service:
            requests = RequestClient(world, service.client)
            standing = requests.issue("member", None, "bound").json()
            request_id = requests.created(cluster="bound")
            for who in ("admin", "inspector"):
                requests.done(who, request_id, "approve")
            requested = requests.issue("member", request_id, "bound").json()
            names = {
                number: f"clustercert:credential:{leaf_of(each).serial_number:040x}"
                for number, each in enumerate((standing, requested))
            }
            found = bindings(double)
            assert [found[names[each]]["roleRef"]["name"] for each in (0, 1)] == ["view", "edit"]  # type: ignore[index] # JSON
            assert [status(double, each) for each in (standing, requested)] == [200, 200]
            requests.done("member", request_id, "end")
            eventually(lambda: status(double, requested) == 403)
            assert names[1] not in bindings(double)
            assert status(double, standing) == 200


def test_a_cluster_that_signs_itself_signs_nothing_beyond_the_end_of_the_request(tmp_path: Path) -> None:
    world = worlds.make(tmp_path)
    (tmp_path / "apiserver").mkdir()
    with ApiServer(tmp_path / "apiserver") as double:
        give_access(double)
        with Service(world.settings(policy=POLICY)).running() as service:
            requests = RequestClient(world, service.client)
            made = service.client.put(
                f"{OWN}/projects/{world.project.id}/clusters/{unique()}",
                headers=world.people["operator"].headers,
                json={
                    "internal_url": double.url,
                    "server_ca": double.server_ca.read_text(),
                    "signer": "csr_api",
                    "signer_token": first_token(double).decode().strip(),
                },
            )
            assert made.status_code == 201, made.text
            cluster = made.json()
            request_id = requests.created("admin", "maintainers", cluster_id=cluster["id"], duration=900)
            url = f"/api/v3/projects/{cluster['project_id']}/clusters/{cluster['id']}/clustercert"
            body = {"duration": -1, "access_request": request_id}
            issued = requests.post("admin", url, body)
            assert issued.status_code == 200, issued.text
            ends_at = parse_rfc3339(requests.get("admin", f"{REQUESTS}/{request_id}").json()["ends_at"])
            assert leaf_of(issued.json()).not_valid_after_utc <= ends_at
            store = Store(world.settings().store_url)
            store.execute("UPDATE access_request SET ends_at = datetime('now', '+9 minutes')")
            refused = requests.post("admin", url, body)
            assert refused.status_code == 400
            assert re.fullmatch(
                r"The cluster signs certificates for at least 10 minutes, but this certificate"
                r" may last at most [^.]+\. "
                r"The access request ends earlier\.",
                refused.json()["message"],
            )
