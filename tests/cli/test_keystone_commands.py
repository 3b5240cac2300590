"""`clustercert keystone register`, and `project create --id` and `user block` for users of Keystone."""

import shlex

import pytest

from support.command_line import Operator

BASE = """
server.public_url = "https://clustercert.example.com"
identity.region = "eu-de"

[identity.keystone]
url = "https://keystone.example.com/v3"
domain = "Default"
{more}

[identity.keystone.service]
{service}
"""
PASSWORD = 'password_file = "/etc/clustercert/keystone-password"'
CATALOG = [
    "openstack service create --name clustercert ccev2.0",
    "openstack endpoint create --region eu-de ccev2.0 public https://clustercert.example.com",
]
CREATE = "openstack user create --domain Default --password-prompt clustercert"
USER = "--user clustercert --user-domain Default"


def configure(operator: Operator, service: str, more: str = "") -> None:
    operator.configure(BASE.format(service=service, more=more))


def test_the_commands_put_the_service_into_the_catalog_and_create_its_user(operator: Operator) -> None:
    configure(operator, f'username = "clustercert"\n{PASSWORD}')
    done = operator.run("keystone", "register")
    assert done.out.splitlines() == [
        *CATALOG,
        CREATE,
        f"openstack role add {USER} --system all reader",
    ]
    assert "Nothing was changed." in done.err


@pytest.mark.parametrize(
    ("service", "more", "expected"),
    [
        (
            'username = "clustercert"\nproject = "service"',
            "access_keys = false\ngroups = false",
            [CREATE, f"openstack role add {USER} --project service --project-domain Default service"],
        ),
        (
            'username = "clustercert"\nproject_id = "p1"',
            "",
            [CREATE, f"openstack role add {USER} --project p1 admin"],
        ),
        (
            'username = "clustercert"\ndomain = "acme"',
            "access_keys = false",
            [CREATE, f"openstack role add {USER} --domain acme admin"],
        ),
        ('user_id = "u1"', "", ["openstack role add --user u1 --system all reader"]),
    ],
)
def test_the_role_is_the_smallest_that_suffices(
    operator: Operator, service: str, more: str, expected: list[str]
) -> None:
    configure(operator, f"{service}\n{PASSWORD}", more)
    assert operator.output("keystone", "register").splitlines() == [*CATALOG, *expected]


def test_an_application_credential_belongs_to_a_user_that_the_settings_do_not_name(
    operator: Operator,
) -> None:
    service = 'application_credential_id = "a"\napplication_credential_secret = "s3cret"'
    configure(operator, service, "access_keys = false\ngroups = false")
    lines = operator.output("keystone", "register").splitlines()
    assert lines == [
        *CATALOG,
        "# The user of the application credential:",
        "openstack role add --user USER --project PROJECT service",
    ]


def test_names_are_quoted_for_the_shell_and_no_secret_is_printed(operator: Operator) -> None:
    configure(operator, 'username = "a\'b $(id)"\npassword = "s3cret"')
    done = operator.run("keystone", "register")
    assert shlex.split(done.out.splitlines()[2])[-1] == "a'b $(id)"
    assert "s3cret" not in done.out + done.err


@pytest.mark.parametrize(
    ("url", "shown"),
    [("https://cc.example.org:8443/", "https://cc.example.org:8443"), ("http://cc", "http://cc")],
)
def test_the_address_in_the_catalog_has_no_path(operator: Operator, url: str, shown: str) -> None:
    configure(operator, f'username = "clustercert"\n{PASSWORD}')
    assert operator.output("keystone", "register", "--url", url).splitlines()[1].endswith(f" public {shown}")
    for wrong in ("https://cc.example.org/api", "cc.example.org", "https://", "https://cc?x"):
        assert "without a path" in operator.usage_error("keystone", "register", "--url", wrong)


def test_without_keystone_or_address_there_is_nothing_to_register(operator: Operator) -> None:
    assert "[identity.keystone]" in operator.error("keystone", "register")
    text = BASE.format(service=f'username = "a"\n{PASSWORD}', more="")
    operator.configure(text.replace("server.public_url", "#"))
    assert "--url" in operator.usage_error("keystone", "register")


def test_a_user_of_ldap_in_keystone_can_be_blocked(operator: Operator) -> None:
    operator.run("user", "block", "ab" * 32, "--yes")
    assert "blocked already" in operator.error("user", "block", "ab" * 32, "--yes")
    operator.run("user", "unblock", "ab" * 32)
    assert "There is no user abab" in operator.error("user", "block", "ab" * 31, "--yes")
