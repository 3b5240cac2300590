"""The `openstack` command against a real Keystone, whose catalog leads to the service."""

import json
import os
import re
import secrets
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography.x509.oid import NameOID

from support.keystone_installation import REGION, Service, Site
from support.kubeconfig_checks import values
from support.real_keystone.people import Person
from support.terminal import in_a_terminal

BIN = Path(sys.executable).parent
PAGE = Path(__file__).parents[2] / "docs" / "keystone.md"
SECONDS = 300


class Shell:
    """A person's shell with the settings of the `openstack` command."""

    def __init__(self, service: Service, settings: Mapping[str, str]) -> None:
        # One file for both servers, as an organisation's CA would be.
        ca = service.site.folder / "all-ca.pem"
        ca.write_bytes(service.ca.read_bytes() + service.site.keystone.ca.read_bytes())
        self._environment = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "OS_AUTH_URL": service.site.keystone.url,
            "OS_IDENTITY_API_VERSION": "3",
            "OS_REGION_NAME": REGION,
            "OS_CACERT": str(ca),
            **settings,
        }

    def type(self, script: str, password: str) -> None:
        """Run commands in a terminal. One asks for a password, twice."""
        prompts = dict.fromkeys(("User Password:", "Repeat User Password:"), f"{password}\n")
        shell = ("/bin/sh", "-ec")
        status, screen = in_a_terminal([script], prompts, self._environment, program=shell, seconds=SECONDS)
        assert status == 0, screen

    def run(self, *arguments: str) -> Any:
        """Run an `openstack` command. Returns what it shows."""
        done = subprocess.run(
            [BIN / "openstack", *arguments, "-f", "json"],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def settings(site: Site) -> Path:
    """Settings of a service whose user does not exist yet."""
    name, password = f"clustercert-{secrets.token_hex(4)}", secrets.token_hex(8)
    return site.settings(service=f'username = "{name}"\npassword = "{password}"')


@pytest.fixture(scope="module")
def registered(site: Site, service: Service, settings: Path) -> Site:
    """The commands of the page have been run by Keystone's administrator."""
    # As in every Keystone with clients.
    site.admin.new_endpoint("identity", site.keystone.url, REGION)
    administrator = {
        "OS_USERNAME": "admin",
        "OS_PASSWORD": "admin",
        "OS_USER_DOMAIN_ID": "default",
        "OS_SYSTEM_SCOPE": "all",
    }
    given = tomllib.loads(settings.read_text())["identity"]["keystone"]["service"]
    password = given["password"]
    page = PAGE.read_text(encoding="utf-8")
    commands = "\n".join(re.findall(r"^ +(openstack .*)$", page, re.MULTILINE))
    for printed, here in (
        ("https://clustercert.example.com", service.url),
        ("--region eu-de", f"--region {REGION}"),
        ("--user clustercert ", f"--user {given['username']} "),
        ("--password-prompt clustercert", f"--password-prompt {given['username']}"),
    ):
        assert printed in commands
        commands = commands.replace(printed, here)
    Shell(service, administrator).type(commands, password)
    return site


@pytest.fixture(scope="module")
def person(registered: Site) -> Person:
    return registered.person()


@pytest.fixture(scope="module")
def shell(registered: Site, service: Service, person: Person) -> Shell:
    settings = {
        "OS_USERNAME": person.name,
        "OS_PASSWORD": person.password,
        "OS_USER_DOMAIN_ID": person.domain_id,
        "OS_PROJECT_NAME": REGION,
        "OS_PROJECT_DOMAIN_ID": registered.domain_id,
    }
    return Shell(service, settings)


def test_the_user_that_was_created_can_read_all_that_the_service_asks(
    registered: Site, settings: Path
) -> None:
    person = registered.person()
    key = registered.admin.new_key(person, registered.project_id)
    with registered.serving(settings) as service:
        assert service.issue(registered.token(person)).status_code == 200
        assert service.issue_signed(key).status == 200


def test_a_token_and_the_catalog_are_all_it_takes(service: Service, shell: Shell, person: Person) -> None:
    issued = shell.run("token", "issue")
    shown = shell.run("catalog", "show", "ccev2.0")
    (endpoint,) = [each["url"] for each in shown["endpoints"] if each["interface"] == "public"]

    path = service.clustercert_path.replace(service.site.project_id, issued["project_id"])
    answer = httpx2.post(
        endpoint + path,
        json={"duration": 1},
        headers={"X-Auth-Token": issued["id"]},
        verify=service.tls,
        timeout=SECONDS,
    )

    assert answer.status_code == 200, answer.text
    assert values(service.leaf(answer.json()), NameOID.COMMON_NAME) == [person.id]


def test_the_extensions_find_the_service_and_get_a_certificate(
    service: Service, shell: Shell, person: Person
) -> None:
    shown = shell.run("cce", "cluster", "certificate", "show", "prod")

    leaf = service.checked(shown["client_certificate"])
    assert values(leaf, NameOID.COMMON_NAME) == [person.id]
