"""What Keystone answers to the questions of our authenticator, recorded in `recorded_answers`.

Doubles of Keystone in other tests give these answers. `python -m support.real_keystone.answers` records them anew.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2

from support.real_keystone import RealKeystone, running
from support.real_keystone.people import SYSTEM, Administrator, Person, in_project

FOLDER = Path(__file__).with_name("recorded_answers")
MISSING = "0" * 32


def recorded(name: str) -> dict[str, Any]:
    """An answer: `status`, `headers`, `body`."""
    answer: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return answer


class Asking:
    """A person with roles, by themselves and by a group, and everything that Keystone says about them."""

    def __init__(self, keystone: RealKeystone) -> None:
        self.admin = Administrator(keystone)
        new = self.admin.new
        self.domain = new("domain", name="acme")
        self.project = new("project", name="eu-test", domain_id=self.domain)
        self.other_project = new("project", name="other", domain_id=self.domain)
        self.alice = self.admin.new_person(self.domain, "alice")
        self.bob = self.admin.new_person(self.domain, "bob")
        group = new("group", name="team-blue", domain_id=self.domain)
        self.admin.add_to_group(group, self.alice)
        self.admin.grant("member", f"users/{self.alice.id}", f"projects/{self.project}")
        self.admin.grant("reader", f"groups/{group}", f"projects/{self.project}")
        self.admin.grant("manager", f"users/{self.alice.id}", f"domains/{self.domain}")
        self.reader = self.admin.new_person("default", "clustercert")
        self.admin.grant("reader", f"users/{self.reader.id}", "system")
        self.token = self.admin.log_in(self.reader.identity, SYSTEM)

    def get(self, path: str, token: str | None = None, **headers: str) -> httpx2.Response:
        """An answer to the service user, or to somebody else's token."""
        return self.admin.http.get(path, headers={"X-Auth-Token": token or self.token, **headers})

    def log_in(self, who: Person, scope: object, **password: str) -> httpx2.Response:
        identity = who.identity
        identity["password"]["user"] |= password
        body = {"auth": {"identity": identity, "scope": scope}}
        return self.admin.http.post("auth/tokens?nocatalog", json=body)

    def validate(self, token: str, service_token: str | None = None) -> httpx2.Response:
        return self.get("auth/tokens?nocatalog", service_token, **{"X-Subject-Token": token})

    def answers(self) -> Iterator[tuple[str, httpx2.Response]]:
        """All of them, with their names."""
        yield from self._log_ins()
        yield from self._tokens()
        yield from self._credentials()
        yield from self._people()
        yield from self._people_no_more()

    def _log_ins(self) -> Iterator[tuple[str, httpx2.Response]]:
        here = in_project(self.project)
        yield "login_project", self.log_in(self.alice, here)
        yield "login_wrong_password", self.log_in(self.alice, here, password="wrong")
        yield "login_wrong_project", self.log_in(self.alice, in_project(self.other_project))

    def _tokens(self) -> Iterator[tuple[str, httpx2.Response]]:
        log_in, alice, here = self.admin.log_in, self.alice.identity, in_project(self.project)
        project = log_in(alice, here)
        trust = self.admin.new_trust(self.alice, self.bob, self.project, "member")
        tokens = {
            "project": project,
            "domain": log_in(alice, {"domain": {"id": self.domain}}),
            "unscoped": log_in(alice, "unscoped"),
            "system": self.token,
            "application_credential": log_in(self.admin.new_application_credential(self.alice, self.project)),
            "trust": log_in(self.bob.identity, {"OS-TRUST:trust": {"id": trust}}),
            "rescoped": log_in({"methods": ["token"], "token": {"id": project}}, here),
        }
        for name, token in tokens.items():
            yield f"token_{name}", self.validate(token)
        yield "token_unknown", self.validate("gAAAAA")
        yield "token_bad_service", self.validate(project, "gAAAAA")
        powerless = log_in(self.bob.identity, "unscoped")
        yield "token_service_without_rights", self.validate(project, powerless)

    def _credentials(self) -> Iterator[tuple[str, httpx2.Response]]:
        key = self.admin.new_key(self.alice, self.project)
        yield "credential_ec2", self.get(f"credentials/{key.id}")
        for name in ("trust_id", "app_cred_id", "access_token_id"):
            odd = self.admin.new_odd_key(self.alice, self.project, **{name: MISSING})
            yield f"credential_ec2_{name}", self.get(f"credentials/{odd.id}")
        yield "credential_missing", self.get(f"credentials/{MISSING * 2}")
        powerless = self.admin.log_in(self.bob.identity, "unscoped")
        yield "credential_forbidden", self.get(f"credentials/{key.id}", powerless)
        delegated = self.admin.log_in(self.admin.new_application_credential(self.alice, self.project))
        yield "credential_by_delegated_token", self.get(f"credentials/{key.id}", delegated)

    def _people(self) -> Iterator[tuple[str, httpx2.Response]]:
        yield "user", self.get(f"users/{self.alice.id}")
        yield "user_missing", self.get(f"users/{MISSING}")
        yield (
            "user_forbidden",
            self.get(f"users/{self.alice.id}", self.admin.log_in(self.bob.identity, "unscoped")),
        )
        yield "groups", self.get(f"users/{self.alice.id}/groups")
        yield "project", self.get(f"projects/{self.project}")
        yield "domain", self.get(f"domains/{self.domain}")
        yield "role_assignments", self._roles(self.project)
        yield "role_assignments_none", self._roles(self.other_project)
        yield "role_assignments_missing_user", self._roles(self.project, MISSING)

    def _people_no_more(self) -> Iterator[tuple[str, httpx2.Response]]:
        revoked, disabled = (self.admin.log_in(self.alice.identity, "unscoped") for _ in range(2))
        self.admin.revoke(revoked)
        yield "token_revoked", self.validate(revoked)
        self.admin.change("user", self.alice.id, enabled=False)
        yield "token_of_disabled_user", self.validate(disabled)
        yield "user_disabled", self.get(f"users/{self.alice.id}")
        yield "role_assignments_disabled_user", self._roles(self.project)

    def _roles(self, project_id: str, user_id: str | None = None) -> httpx2.Response:
        who = f"user.id={user_id or self.alice.id}&scope.project.id={project_id}"
        return self.get(f"role_assignments?effective&include_names=true&{who}")


def plain(answer: httpx2.Response) -> dict[str, Any]:
    """An answer as it is recorded: without a token, which would be somebody's secret elsewhere."""
    headers = {
        name: answer.headers[name] for name in ("content-type", "www-authenticate") if name in answer.headers
    }
    if "x-subject-token" in answer.headers:
        headers["x-subject-token"] = "gAAAAA-a-token"
    return {"status": answer.status_code, "headers": headers, "body": answer.json()}


def record() -> None:
    """Write all answers of a new Keystone into the folder."""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as keystone:
        FOLDER.mkdir(exist_ok=True)
        for name, answer in Asking(keystone).answers():
            text = json.dumps(plain(answer), indent=1).replace(
                keystone.url, "https://keystone.example:5000/v3"
            )
            (FOLDER / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    record()
