import pytest

from clustercert.cli.session import TOP_LEVEL_SETTINGS, warn_in_client, warn_of_unknown_variables
from clustercert.settings import Settings


@pytest.mark.parametrize(
    "variable",
    [
        "CLUSTERCERT_CONFIG",
        "CLUSTERCERT_DATA_DIR",
        "CLUSTERCERT_SERVER__PORT",
        "clustercert_server__port",
        "CLUSTERCERT_SERVER",
        "CLUSTERCERT_SIGNERS__HSM",
        "CLUSTERCERT_POLICY__RULES",
        "OTHER_SERVER_PORT",
    ],
)
def test_settings_and_other_variables_are_known(variable: str, capsys: pytest.CaptureFixture[str]) -> None:
    warn_of_unknown_variables({variable: "1"})
    warn_in_client({variable: "1"})
    assert capsys.readouterr().err == ""


def test_a_variable_without_effect_is_named_with_the_likely_one(capsys: pytest.CaptureFixture[str]) -> None:
    warn_of_unknown_variables({"CLUSTERCERT_SERVER_PORT": "8443"})
    said = capsys.readouterr().err
    assert said.startswith("Warning: The environment variable CLUSTERCERT_SERVER_PORT is not a setting")
    assert said.endswith(" Did you mean CLUSTERCERT_SERVER__PORT?\n")
    assert "8443" not in said


def test_a_client_command_names_the_likely_variable(capsys: pytest.CaptureFixture[str]) -> None:
    warn_in_client({"CLUSTERCERT_PROFLE": "work"})
    said = capsys.readouterr().err
    assert said.startswith("Warning: The environment variable CLUSTERCERT_PROFLE is not a setting")
    assert said.endswith(" Did you mean CLUSTERCERT_PROFILE?\n")


def test_the_client_knows_the_settings() -> None:
    assert {name.upper() for name in Settings.model_fields} == TOP_LEVEL_SETTINGS
