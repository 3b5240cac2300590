"""What `db check`, and `serve` at its start, warn of."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import pytest

from clustercert.pki.certificates import chain_pem, fingerprint
from clustercert.pki.client_ca import new_client_ca
from clustercert.pki.keys import key_pem, new_key
from clustercert.server.tls_files import new_server_certificate, self_signed
from clustercert.store.engine.database import Database
from support.command_line import Operator
from support.message_receiver import SECRET
from support.stores import execute, rows

SHORT_RULES = """
[[policy.rules]]
name = "admin"
when.roles = ["admin"]
grant.groups = ["clustercert:admins"]
grant.max_lifetime = "7d"
"""


def warnings(operator: Operator) -> list[str]:
    done = operator.run("db", "check")
    assert done.code == 0, done.err
    *lines, key, last = done.err.splitlines()
    assert last.endswith("and the keys are valid.")
    assert key.startswith("Key-encryption key ")
    assert key.endswith("can be used.")
    assert all(line.startswith("Warning: ") for line in lines)
    return lines


@pytest.fixture
def careful(operator: Operator, tmp_path: Path) -> Operator:
    """An operator with short lifetimes and a key far from the data."""
    keys = tmp_path / "keys"
    keys.mkdir()
    (tmp_path / "kek").rename(keys / "kek")
    operator.config.write_text(
        f"data_dir = '{tmp_path / 'data'}'\nkek_file = '{keys / 'kek'}'\n{SHORT_RULES}", encoding="utf-8"
    )
    make_operator(operator)
    return operator


def make_operator(operator: Operator) -> None:
    operator.output("user", "create", "olga", "--no-password")
    operator.output("role", "assign", "operator", "--user", "olga", "--service")


def add_cluster(operator: Operator, name: str, *options: str) -> None:
    ca = new_client_ca("kubernetes", new_key("ec-p256"), datetime.now(UTC), timedelta(days=1))
    path = operator.folder / "server-ca.pem"
    path.write_bytes(chain_pem((ca,)))
    operator.run("project", "create", "eu-de")
    address = ("--internal-url", "https://10.0.0.5:6443", "--server-ca", str(path))
    operator.output("cluster", "add", name, "--project", "eu-de", *address, *options)


def test_a_careful_deployment_gets_none(careful: Operator) -> None:
    assert warnings(careful) == []


def test_long_lifetimes_are_named_with_their_rules(careful: Operator) -> None:
    with careful.config.open("a") as config:
        config.write(SHORT_RULES.replace("admin", "member").replace("7d", "8d"))
    [warning] = warnings(careful)
    assert "more than 7 days: member (8 days)." in warning


def test_a_secret_that_cannot_sign_messages_is_named(careful: Operator, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    with careful.config.open("a") as config:
        config.write(
            f"[requests]\nwebhook_url = 'https://tickets.example.com'\nwebhook_secret_file = '{secret}'\n"
        )
    [warning] = warnings(careful)
    assert warning == (
        f"Warning: No messages about access requests are sent: The file {secret} can't be read: No such file or"
        " directory. Correct requests.webhook_secret_file."
    )
    secret.write_text(SECRET)
    secret.chmod(0o600)
    assert warnings(careful) == []


CONSOLE_CLIENT = """
[[identity.issuers]]
name = "sso"
issuer = "https://sso.example.com"
audiences = ["clustercert"]
domain = "Default"
[identity.issuers.console]
client_id = "console"
client_secret_file = "{secret}"
"""


def test_a_client_of_the_console_without_its_secret_is_named(careful: Operator, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    with careful.config.open("a") as config:
        config.write(CONSOLE_CLIENT.format(secret=secret))
    [warning] = warnings(careful)
    assert warning == (
        f"Warning: Nobody can log in to the console at the issuer sso: The file {secret} can't be read: No such file or"
        " directory. Correct client_secret_file in the issuer's table console."
    )
    secret.write_text("\n")
    secret.chmod(0o600)
    [warning] = warnings(careful)
    assert f"The first line of the file {secret} is not a secret." in warning
    secret.write_text("s3cret\n")
    assert warnings(careful) == []


def test_groups_by_role_without_rules_are_named_at_each_check_until_lifetimes_are_limited(
    careful: Operator,
) -> None:
    text = careful.config.read_text()
    careful.config.write_text(text.replace(SHORT_RULES, ""))
    for _ in range(2):
        [warning] = warnings(careful)
        assert "The settings have no policy rules, so roles give groups." in warning
        assert "more than 7 days: admin (1825 days), member (1825 days)" in warning
    careful.config.write_text(text.replace(SHORT_RULES, "policy = { role_groups = true }"))
    [warning] = warnings(careful)
    assert "These policy rules allow" in warning
    assert "Set policy.max_lifetime." in warning
    careful.config.write_text(text.replace(SHORT_RULES, "policy = { max_lifetime = '7d' }"))
    assert warnings(careful) == []


ISSUERS = """
[[identity.issuers]]
name = "sso"
issuer = "https://sso.example.com"
audiences = ["clustercert"]
projects = ["11111111111111111111111111111111", "acme/eu-de"]
domain = "acme"
subject = ["/user/email"]
roles = [{ role = "membr", groups = ["team-*"] }, { role = "reader" }]

[[identity.issuers]]
name = "ci"
issuer = "https://ci.example.com"
audiences = ["clustercert"]
domain = "Default"
subject = ["project_id"]
roles = [{ role = "member", projects = ["Default/gone"] }]

[identity.keystone]
url = "https://keystone.example.com/v3"
domain = "cloud"
roles = { te_admin = "admn" }
service = { username = "clustercert", password_file = "/etc/clustercert/keystone-password" }
"""


def test_what_the_settings_of_issuers_name_must_exist(careful: Operator) -> None:
    with careful.config.open("a") as config:
        config.write(ISSUERS)
    address, issuer, jobs, keystone = warnings(careful)
    assert "The issuer sso identifies its users by the claim /user/email." in address
    missing = f"project {'1' * 32}, project acme/eu-de, domain acme, role membr."
    assert f"of the issuer sso name objects that do not exist: {missing}" in issuer
    assert "of the issuer ci name objects that do not exist: project Default/gone." in jobs
    assert "of the issuer keystone name objects that do not exist: domain cloud, role admn." in keystone


@pytest.mark.parametrize("name", ["sso", "keystone"])
def test_no_domain_has_the_name_of_an_issuer(careful: Operator, name: str) -> None:
    careful.output("domain", "create", name)
    with careful.config.open("a") as config:
        config.write(ISSUERS)
    for command in (("db", "check"), ("serve", "--port", "0")):
        assert f"A domain has the name of an issuer in the settings: {name}." in careful.error(*command)
    careful.output("domain", "delete", name, "--yes")
    assert "so no domain may have this name" in careful.error("domain", "create", name)
    careful.output("domain", "create", "acme")
    assert "domain acme" not in str(warnings(careful))


def test_a_rule_that_refuses_is_not_named(careful: Operator) -> None:
    with careful.config.open("a") as config:
        config.write('[[policy.rules]]\ndeny = "Not today."\n')
    assert warnings(careful) == []


def test_roles_and_domains_of_approvers_must_exist(careful: Operator) -> None:
    with careful.config.open("a") as config:
        config.write(
            '[[policy.rules]]\nname = "edit"\noffer.groups = ["editors"]\noffer.max_lifetime = "1h"\n'
            'offer.approvals = [{ role = "leed" }, { groups = ["gone/leads", "leads"] }]\n'
        )
    [warning] = warnings(careful)
    assert "name objects that do not exist: role leed (rule edit), domain gone (rule edit)." in warning


def test_a_long_offer_is_named_like_a_long_grant(careful: Operator) -> None:
    with careful.config.open("a") as config:
        config.write(
            '[[policy.rules]]\nname = "edit"\noffer.groups = ["editors"]\noffer.max_lifetime = "8d"\n'
            "offer.approvals = []\n"
        )
    [warning] = warnings(careful)
    assert "valid for more than 7 days: edit (8 days)" in warning


def test_a_key_beside_the_data_is_named(operator: Operator) -> None:
    operator.configure(SHORT_RULES)
    make_operator(operator)
    [warning] = warnings(operator)
    assert f"{operator.folder / 'kek'} is in a folder that also contains the data" in warning


def test_a_service_without_an_operator_is_named_with_the_commands_that_make_one(careful: Operator) -> None:
    careful.output("role", "unassign", "operator", "--user", "olga", "--service", "--keep")
    [warning] = warnings(careful)
    assert "Nobody has the role operator" in warning
    assert (
        "`clustercert user create NAME --local`, then `clustercert role assign operator --user NAME"
        in warning
    )
    with careful.config.open("a") as config:
        config.write(
            ISSUERS.replace('role = "reader"', 'role = "operator", service = true, groups = ["ops"]')
        )
    assert "Nobody has the role" not in str(warnings(careful))


def test_a_separate_webhook_without_an_address_is_named(careful: Operator) -> None:
    with careful.config.open("a") as config:
        config.write("[server]\npublic_url = 'https://c.example.com'\n[webhook]\nport = 8444\n")
    [warning] = warnings(careful)
    assert "Set webhook.public_url to the address of the processes with the role webhook." in warning
    with careful.config.open("a") as config:
        config.write("public_url = 'https://c.example.com:8444'\n")
    assert warnings(careful) == []


def test_clusters_without_revocation_are_named(careful: Operator) -> None:
    for number in range(7):
        add_cluster(careful, f"cluster-{number}")
    add_cluster(careful, "admission", "--admission")
    add_cluster(careful, "bound", "--credential-role", "admin=view")
    add_cluster(careful, "tokens")
    database = careful.folder / "data" / "clustercert.db"
    execute(database, "UPDATE cluster SET signer = 'token' WHERE name = 'tokens'")
    [(called,)] = rows(database, "SELECT id FROM cluster WHERE name = 'cluster-0'")
    execute(
        database,
        "INSERT INTO webhook_token (id, cluster_id, hash, created_at, last_asked_at) VALUES (?, ?, ?, ?, ?)",
        *("0" * 32, called, bytes(32), "2026-03-14 15:09:26.000000", "2026-03-14 15:09:26.000000"),
    )
    [warning] = warnings(careful)
    listed = (
        ", ".join(f"Default/eu-de/cluster-{number}" for number in range(1, 6)) + " and others, 6 in total."
    )
    assert f"clusters without revocation: {listed}" in warning


def test_cluster_roles_of_rules_without_a_name_are_named(careful: Operator) -> None:
    add_cluster(careful, "bound", "--credential-role", "admin=view")
    database = careful.folder / "data" / "clustercert.db"
    execute(
        database,
        "UPDATE cluster SET options = json_set(options, '$.credential_roles', json(?))",
        '{"admin": "view", "rule-2": "edit", "gone": "view"}',
    )
    with careful.config.open("a") as config:
        config.write("[[policy.rules]]\ngrant = { groups = ['b'], max_lifetime = '1d' }\n")
    [warning] = warnings(careful)
    assert (
        "lacks or does not name: Default/eu-de/bound (gone), Default/eu-de/bound (rule-2). Set name"
        in warning
    )


def test_names_in_rules_that_nothing_has_are_named(careful: Operator) -> None:
    with careful.config.open("a") as config:
        config.write(
            "[[policy.rules]]\nname = 'odd'\ndeny = 'No.'\n"
            "when.roles = ['memebr', 'reader', 'x*']\nwhen.users = ['Defualt/bob', 'Default/bob', '*/bob']\n"
            "when.projects = ['eu-de', 'Default/gone', 'prod', '00000000000000000000000000000000']\n"
        )
    for domain in ("Default", "acme"):
        careful.run("domain", "create", domain)
        careful.output("project", "create", "eu-de", "--domain", domain)
    careful.output("project", "create", "prod")
    several, missing = warnings(careful)
    assert "Several projects are named eu-de, so the rule odd refuses" in several
    assert "role memebr (rule odd), domain Defualt (rule odd), project Default/gone (rule odd)" in missing
    assert "project 00000000000000000000000000000000 (rule odd). These names match nothing." in missing


RULE = """
[[policy.rules]]
name = "{name}"
when.groups = {groups}
when.projects = {projects}
grant.groups = ["{template}"]
grant.max_lifetime = "1h"
"""


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ([('["team-*"]', '["*"]', "team:{group}")], "team:{group} (rule 0)"),
        ([('["Default/team-*", "team-*"]', '["Default/*"]', "team:{group}")], "team:{group} (rule 0)"),
        ([('["*/team-*"]', '["Default/*"]', "team:{group}")], "team:{group} (rule 0)"),
        (
            [('["Default/t-*"]', '["*"]', "team:{group}"), ('["acme/t-*"]', '["acme/*"]', "team:{group}")],
            "team:{group} (rule 0)",
        ),
        ([('["team-*"]', '["*"]', "team:{group.id}")], None),
        ([('["team-*"]', '["*"]', "teams")], None),
        ([('["Default/team-*"]', '["*"]', "team:{group}")], None),
        (
            [
                ('["Default/t-*"]', '["Default/*"]', "team:{group}"),
                ('["acme/t-*"]', '["acme/*"]', "team:{group}"),
            ],
            None,
        ),
        ([('["Default/t-*"]', '["*"]', "a:{group}"), ('["acme/t-*"]', '["*"]', "b:{group}")], None),
    ],
)
def test_templates_that_mix_the_groups_of_two_domains_are_named(
    careful: Operator, rules: list[tuple[str, str, str]], named: str | None
) -> None:
    config = careful.config.read_text().replace(
        SHORT_RULES, "[policy]\nusername = '{user.name}@{user.domain}'\n"
    )
    for number, (groups, projects, template) in enumerate(rules):
        config += RULE.format(name=number, groups=groups, projects=projects, template=template)
    careful.config.write_text(config)
    assert not any("several domains" in line for line in warnings(careful))
    careful.output("domain", "create", "acme")
    found = [line for line in warnings(careful) if "several domains" in line]
    if named is None:
        assert found == []
    else:
        (text,) = found
        assert f"from these templates of the policy: {named}. The domains are Default, acme. Write" in text


def test_user_names_without_a_domain_are_named_once_two_domains_exist(careful: Operator) -> None:
    careful.config.write_text(
        careful.config.read_text().replace(
            SHORT_RULES, f"[policy]\nusername = '{{user.name}}'\n{SHORT_RULES}"
        )
    )
    assert warnings(careful) == []
    careful.output("domain", "create", "acme")
    (text,) = warnings(careful)
    assert 'Set policy.username = "{user.name}@{user.domain}".' in text


def test_exemptions_that_a_later_template_could_match_are_named(careful: Operator) -> None:
    add_cluster(careful, "prod", "--exempt", "oncall-*", "--exempt", "kubeadm:cluster-admins", "--admission")
    add_cluster(careful, "dev", "--admission")
    with careful.config.open("a") as config:
        config.write("[[policy.rules]]\ngrant = { groups = ['team:{group}'], max_lifetime = '1d' }\n")
    assert warnings(careful) == []
    with careful.config.open("a") as config:
        config.write("[[policy.rules]]\ngrant = { groups = ['{group}'], max_lifetime = '1d' }\n")
    [warning] = warnings(careful)
    assert "templates could give: Default/eu-de/prod (oncall-* for {group})." in warning


@pytest.mark.parametrize(("seconds", "direction"), [(61, "ahead of"), (-600, "behind")])
def test_a_wrong_clock_is_named(careful: Operator, seconds: int, direction: str) -> None:
    async def offset(_database: Database) -> timedelta:
        return timedelta(seconds=seconds)

    with patch.object(Database, "clock_offset", offset):
        [warning] = warnings(careful)
    assert f"clock is {abs(seconds)} seconds {direction} the database server's" in warning


def tls_files(operator: Operator, *, with_ca: bool) -> tuple[str, str]:
    """Let the settings name a certificate. Returns its fingerprint, and that of its CA."""
    key = new_key("ec-p256")
    leaf, ca = new_server_certificate(key, ["localhost"], datetime.now(UTC), timedelta(days=1))
    (operator.folder / "tls.pem").write_bytes(chain_pem((leaf, ca) if with_ca else (leaf,)))
    (operator.folder / "tls.key").write_bytes(key_pem(key))
    files = f"tls_certificate = '{operator.folder / 'tls.pem'}'\ntls_key = '{operator.folder / 'tls.key'}'"
    with operator.config.open("a") as config:
        config.write(f"[server]\n{files}\n")
    return fingerprint(leaf).hex(), fingerprint(ca).hex()


def test_a_certificate_file_without_a_ca_is_named(careful: Operator) -> None:
    leaf, _ = tls_files(careful, with_ca=False)
    [warning] = warnings(careful)
    assert f"{careful.folder / 'tls.pem'} has no certificate of a CA. At each renewal, all users" in warning
    assert careful.output("fingerprint", "-o", "name") == f"{leaf}\n"


def test_users_compare_the_fingerprint_of_the_ca(careful: Operator) -> None:
    leaf, ca = tls_files(careful, with_ca=True)
    assert warnings(careful) == []
    printed = careful.output_json("fingerprint")
    assert (printed["fingerprint"], printed["certificate_fingerprint"]) == (ca, leaf)


def test_a_certificate_that_the_service_creates_is_named(careful: Operator) -> None:
    with careful.config.open("a") as config:
        config.write("[server]\nhost = '0.0.0.0'\n")
    [warning] = warnings(careful)
    assert "The service creates its own certificate." in warning
    assert "has not created its own certificate yet" in careful.error("fingerprint")
    made = self_signed(careful.folder / "data", {"localhost"})
    assert careful.output("fingerprint", "-o", "name") == f"{made.fingerprint}\n"


def test_plain_http_has_no_fingerprint(careful: Operator) -> None:
    with careful.config.open("a") as config:
        config.write("[server]\nhost = '0.0.0.0'\nplain_http = true\n")
    assert warnings(careful) == []
    assert "it uses plain HTTP" in careful.error("fingerprint")
