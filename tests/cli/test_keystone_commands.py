"""`project create --id` and `user block` for users of Keystone."""

from support.command_line import Operator


def test_a_user_of_ldap_in_keystone_can_be_blocked(operator: Operator) -> None:
    operator.run("user", "block", "ab" * 32, "--yes")
    assert "blocked already" in operator.error("user", "block", "ab" * 32, "--yes")
    operator.run("user", "unblock", "ab" * 32)
    assert "There is no user abab" in operator.error("user", "block", "ab" * 31, "--yes")
