"""`clustercert policy`."""

import json
from pathlib import Path

from support.command_line import Operator

RULES = """
[[rules]]
name = "member"
when.roles = ["member"]
grant.groups = ["clustercert:editors"]
grant.max_lifetime = "8h"
"""


def test_a_policy_is_tested_without_a_database(tmp_path: Path) -> None:
    operator, file = Operator(tmp_path), tmp_path / "policy.toml"
    operator.configure("[policy]\nrole_groups = true\n")
    file.write_text(RULES, encoding="utf-8")
    in_settings = operator.output_json("policy", "test")
    assert in_settings["rules"] == ["admin", "member", "reader"]
    in_file = operator.output_json("policy", "test", "--policy", file)
    assert in_file["rules"] == ["member"]
    assert in_file["sha256"] != in_settings["sha256"]


def test_a_fault_is_reported_with_its_place(tmp_path: Path) -> None:
    operator, file = Operator(tmp_path), tmp_path / "policy.toml"
    operator.configure()
    file.write_text(RULES.replace("8h", "8 hours"), encoding="utf-8")
    assert f"{file}:6:7: policy.rules.0.grant.max_lifetime: " in operator.error(
        "policy", "test", "--policy", file
    )


EXAMPLES = """
[[examples]]
name = "members"
expects.groups = ["clustercert:editors"]

[[examples]]
name = "readers"
caller.roles = ["reader"]
expects.lifetime = "8h"
"""


def test_examples_are_run_and_one_that_fails_ends_with_1(tmp_path: Path) -> None:
    operator, file = Operator(tmp_path), tmp_path / "policy.toml"
    operator.configure()
    file.write_text(RULES + EXAMPLES, encoding="utf-8")
    done = operator.run("policy", "test", "--policy", file)
    assert done.code == 1
    heading, failed = done.out.splitlines()
    assert heading.split() == ["NAME", "PASSED", "EXPECTED", "DECIDED"]
    assert failed.split()[:2] == ["readers", "no"]
    assert "allowed; lifetime 8 hours" in failed
    assert "refused: No rule gives your role" in failed
    assert "2 examples, 1 failed." in done.err
    report = json.loads(operator.run("policy", "test", "--policy", file, "-o", "json").out)
    assert [example["passed"] for example in report["examples"]] == [True, False]
    file.write_text(RULES + EXAMPLES.replace('lifetime = "8h"', "refused = true"), encoding="utf-8")
    assert "no " not in operator.output("policy", "test", "--policy", file)


def test_the_service_does_not_start_if_an_example_fails(operator: Operator, tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    operator.configure(f"[policy]\nfile = '{file}'\n")
    file.write_text(RULES + EXAMPLES, encoding="utf-8")
    said = operator.error("serve", "--port", "0")
    assert "readers: expected allowed; lifetime 8 hours; got refused: No rule gives your role" in said
    assert "clustercert policy test" in said
    # Other commands must work, for example to revoke.
    operator.output("user", "list")
