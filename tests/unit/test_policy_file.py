"""A policy in the settings or in a file of its own, and where its faults are."""

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.policy.lifetime import MAX_LIFETIME
from clustercert.policy.toml_tables import Tables
from clustercert.settings import SettingsError, load

RULES = """\
allow_system = []

# The first rule
[[rules]]
name = "teams"
when = { roles = ["member"], groups = ["team-*"] }
grant.groups = [
  "team:{group}",
]

[[rules]]
name = "admins"
[rules.when]
roles = ["admin"]
[rules.grant]
groups = ["admins"]
max_lifetime = "8h"
"""


def write(folder: Path, policy: str, settings: str = "") -> Path:
    (folder / "policy.toml").write_text(policy, encoding="utf-8")
    config = folder / "clustercert.toml"
    config.write_text(settings or f"[policy]\nfile = '{folder / 'policy.toml'}'\n", encoding="utf-8")
    return config


def faults(config: Path) -> list[str]:
    """The faults that the settings have, without the folder."""
    with pytest.raises(SettingsError) as refused:
        load(config)
    return [line.strip().removeprefix(f"{config.parent}/") for line in refused.value.message.splitlines()[1:]]


def test_a_policy_in_a_file_of_its_own_is_that_of_the_settings(tmp_path: Path) -> None:
    from_file = load(write(tmp_path, RULES)).policy.policy()
    inline = RULES.replace("allow_system", "policy.allow_system").replace("[rules", "[policy.rules")
    from_settings = load(write(tmp_path, "", inline)).policy.policy()
    assert [rule.declared for rule in from_settings.rules] == [rule.declared for rule in from_file.rules]
    assert [rule.name for rule in from_file.rules] == ["teams", "admins"]
    assert from_file.rules[0].max_lifetime is None
    assert from_file.max_lifetime == MAX_LIFETIME


@pytest.mark.parametrize(
    ("change", "to", "fault"),
    [
        ('"team:{group}"', '"team:{gruop}"', r"policy.toml:7:7: policy.rules.0.grant.groups.0: .*{gruop}"),
        ('roles = ["member"]', "rolse = [1]", r"policy.toml:6:10: policy.rules.0.when.rolse: unknown field"),
        ('groups = ["team-*"]', 'cel = "1 +"', r"policy.toml:6:30: .*not complete: .* line 1, column 4$"),
        ('groups = ["team-*"]', 'issuers = ["https://*"]', r"policy.toml:6:30: .*no issuer has the URL https://\*"),
        ('groups = ["team-*"]', 'cel = "usr.id == 1"', r"policy.toml:6:30: .*unknown variable usr"),
        ('groups = ["team-*"]', 'cel = "maks(1, 2)"', r"policy.toml:6:30: .*unknown function maks"),
        ('groups = ["team-*"]', f'cel = "{"1+" * 2048}1"', r"policy.toml:6:30: .*at most 4096 bytes"),
        ('groups = ["team-*"]', 'sources = ["10.0.0.1/8"]', r"policy.toml:6:30: .*has host bits set"),
        ('groups = ["team-*"]', 'auth_methods = ["tokne"]', r"policy.toml:6:30: .*tokne: unknown authentication"),
        ('groups = ["team-*"]', 'auth_methods = ["access-k*"]', r"policy.toml:6:30: .*access-k\*: unknown authentic"),
        ('groups = ["team-*"]', 'issuers = ["builtin"]', r"policy.toml:6:30: .*no issuer has the URL builtin; .*are"),
        ('groups = ["team-*"]', 'cel = "request.crs == 1"', r"policy.toml:6:30: .*unknown field request.crs"),
        ('groups = ["team-*"]', 'cel = "1 + 1"', r"policy.toml:6:30: .*the result is not a bool"),
        ('max_lifetime = "8h"', 'max_lifetime = "8y"', r"policy.toml:17:1: .*not a lifetime"),
        ('max_lifetime = "8h"', 'max_lifetime = "\u0668h"', r"policy.toml:17:1: .*not a lifetime"),
        ('max_lifetime = "8h"', 'max_lifetime = "8h"\ndefault_lifetime = "9h"', r"policy.toml:18:1: .*is longer than"),
        ('name = "admins"', 'name = "a\\nb"', r"policy.toml:12:1: .*has invisible characters"),
        ('name = "admins"', f'name = "{"a" * 65}"', r"policy.toml:12:1: .*write at most 64 characters$"),
        ("allow_system = []", "allow_system = ['foo']", r"policy.toml:1:1: .*foo: write the full name, such as"),
        ("allow_system = []", "allow_system = ['system:*']", r"policy.toml:1:1: .*write the full name"),
        ("allow_system = []", "username = 'System:{user.name}'", r"policy.toml:1:1: .*can't begin with system:$"),
        ("allow_system = []", "username = 'clustercert:{user.id}'", r"policy.toml:1:1: .*can't begin with cluster"),
        ("allow_system = []", f"username = '{'a' * 64}{{user.id}}'", r"policy.toml:1:1: .*at most 64 bytes; shorten"),
        ("allow_system = []", "username = 'a\u200b{user.id}'", r"policy.toml:1:1: .*has invisible characters"),
        ("allow_system = []", "username = ' {user.id}'", r"policy.toml:1:1: .*or a space at its start or end"),
        ('groups = ["admins"]', 'groups = ["a\u200bb"]', r"policy.toml:16:1: .*has invisible characters"),
        ('groups = ["admins"]', 'groups = ["a "]', r"policy.toml:16:1: .*or a space at its start or end"),
        ('groups = ["admins"]', 'groups = ["e\u0301"]', r"policy.toml:16:1: .*is not in Unicode NFC"),
        ('groups = ["admins"]', 'groups = ["Clustercert:Service"]', r"policy.toml:16:1: .*reserved for this"),
        ('groups = ["admins"]', f'groups = {["a"] * 33}', r"policy.toml:16:1: .*write at most 32 entries$"),
        ('name = "admins"', 'deny = "  "', r"policy.toml:12:1: .*deny: write a message$"),
        ('roles = ["admin"]', "cluster_labels = 'x'", r"policy.toml:14:1: .*cluster_labels: write a table$"),
        ("[rules.when]\n", "[[rules.when]]\n", r".*policy.rules.1.when: write a table$"),
        ('groups = ["team-*"]', 'clusters = [""]', r"policy.toml:6:30: .*write at least one character$"),
        ('max_lifetime = "8h"', "max_lifetime = [8]", r"policy.toml:17:1: .*write a lifetime, such as .8h.$"),
        ('max_lifetime = "8h"', 'max_lifetime = "4m"', r"policy.toml:17:1: .*from 5m to 1827d"),
        ('name = "admins"', 'name = "teams"', r"policy.toml:5:1: policy.rules.0.name: .*two rules have the name"),
        ('groups = ["admins"]', 'groups = ["system:masters"]', r"policy.toml:16:1: .*reserved by Kubernetes"),
        ('groups = ["admins"]', 'groups = ["clustercert:service"]', r"policy.toml:16:1: .*reserved for this"),
        ('[rules.grant]\ngroups = ["admins"]\nmax_lifetime = "8h"\n', "", r"policy.toml:11:3: .*exactly one of grant"),
        ('name = "admins"', 'deny = "No."', r"policy.toml:12:1: .*exactly one of grant"),
        ('name = "admins"', 'role = "admin"', r"policy.toml:12:1: .*1.role: unknown field; .* when.roles.$"),
        ("allow_system = []", "allow_system = 'x'", r"policy.toml:1:1: .*write a list, such as .*, not a text$"),
        ('max_lifetime = "8h"', 'csr_required = "off"', r"policy.toml:17:1: .*write true or false, not .off.$"),
        ('max_lifetime = "8h"', 'key_types = ["rsa-1024"]', r"policy.toml:17:1: .*write .ec-p256.*, not .rsa-1024.$"),
        ("allow_system = []", "role_groups = 'yes'", r"policy.toml:1:1: .*write true or false, not .yes.$"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_file_line_and_column(tmp_path: Path, change: str, to: str, fault: str) -> None:
    assert RULES.count(change) == 1
    found = faults(write(tmp_path, RULES.replace(change, to)))
    assert any(re.match(fault, each) for each in found), found
    assert not any("after validation" in each for each in found)


def test_of_many_faults_the_first_are_named(tmp_path: Path) -> None:
    found = faults(write(tmp_path, "[[rules]]\ngrant.max_lifetime = '8x'\n" * 12))
    assert len(found) == 11
    assert found[9].startswith("policy.toml:20:7: policy.rules.9.grant.max_lifetime: ")
    assert found[10] == "and 2 more"


def test_a_fault_in_the_settings_is_named_in_the_same_way(tmp_path: Path) -> None:
    config = write(tmp_path, "", "data_dir = 'x'\n\n[server]\nport = 8443\nworkers = 0\n")
    [found] = faults(config)
    assert found.startswith("clustercert.toml:5:1: server.workers: ")


def test_a_fault_from_the_environment_has_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTERCERT_SERVER__WORKERS", "0")
    [found] = faults(write(tmp_path, "", "data_dir = 'x'\n"))
    assert found.startswith("server.workers: ")


@pytest.mark.parametrize(
    ("policy", "settings", "said"),
    [
        (
            "rules = [",
            "",
            r"policy\.toml is not valid TOML: Invalid value \(at end of document\)",
        ),
        ('preset = "cce\n', "", r"is not valid TOML: A string has no end \(at line 1, column 14\)"),
        ("file = 'other.toml'", "", r"must not have the field file"),
        (None, "", r"Can't read the policy file .*policy.toml"),
        ("", "", r"The policy file .*policy.toml has neither rules nor role_groups"),
        ("preset = 'cce'", "", r"policy\.toml:1:1: policy\.preset: unknown field; the fields are "),
        ("allow_system = []", "", r"has neither rules nor role_groups"),
        (
            "[policy]\nrole_groups = true",
            "",
            r"policy\.toml:1:2: the policy file has a table named policy\. Write the table's fields at the top",
        ),
        (
            "\n# x\n[[policy.rules]]\nname = 'a'",
            "",
            r"policy\.toml:3:3: the policy file has a table named policy",
        ),
        (RULES, "role_groups = true", r"policy.file is set, so write policy.role_groups into .*policy.toml"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    tmp_path: Path, policy: str | None, settings: str, said: str
) -> None:
    config = write(tmp_path, policy or "")
    config.write_text(config.read_text() + settings)
    if policy is None:
        (tmp_path / "policy.toml").unlink()
    with pytest.raises(SettingsError, match=said):
        load(config)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfep\0", r"The configuration file .*settings.toml is not text in UTF-8: line 1\.$"),
        (b"a = 1\r\n# caf\xe9\n", r"The configuration file .*settings.toml is not text in UTF-8: line 2\.$"),
        (
            b"\xef\xbb\xbfa = 1\n",
            r"settings.toml begins with a byte order mark\. Save the file without this mark\.$",
        ),
        (b"#" * 16_000_001, r"The configuration file .*settings.toml is longer than 16000000 characters\."),
    ],
    ids=["UTF-16", "Latin-1", "byte order mark", "endless"],
)
def test_a_file_that_is_no_settings_file_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    config = tmp_path / "settings.toml"
    config.write_bytes(content)
    with pytest.raises(SettingsError, match=said):
        load(config)


TEXTS = st.text(st.sampled_from("ab\"'\\#[]=\n\u2028 "), max_size=10)


@given(texts=st.lists(TEXTS, min_size=1, max_size=5))
def test_every_value_is_found_on_its_line(texts: list[str]) -> None:
    lines, starts = ["# comment", ""], []
    for number, text in enumerate(texts):
        lines.append("[[rules]]")
        starts.append(len(lines) + 1)
        escaped = "".join(f"\\u{ord(character):04x}" for character in text)
        lines += ["key = [", f'  "{escaped}", # key = ["x"]', "]", f"other{number} = 1"]
    text = "\n".join(lines)
    tables = Tables(tomllib.loads(text), text, "f")
    for number, start in enumerate(starts):
        assert tables.place(("rules", number, "key", 0)) == f"f:{start}:1"
        assert tables.place(("rules", number, "missing")) == f"f:{start - 1}:3"
        assert tables.place(("rules", number, f"other{number}")) == f"f:{start + 3}:1"
    assert tables.place(("nothing",)) is None
