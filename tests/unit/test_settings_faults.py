"""Faults in settings are named in plain words, with what was probably meant."""

import subprocess
import sys
from pathlib import Path

import pytest

from clustercert import __version__
from clustercert.settings import SettingsError, load


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('dat_dir = "x"', "1:1: dat_dir: unknown field; did you mean data_dir?"),
        ("[server]\nprot = 3", "2:1: server.prot: unknown field; did you mean port?"),
        ("[revocation]\nzzz = 4", "2:1: revocation.zzz: unknown field; the fields are "),
        (
            '[[policy.rules]]\ngrant.group = ["x"]',
            "2:7: policy.rules.0.grant.group: unknown field; did you mean groups?",
        ),
        (
            '[[policy.examples]]\nname = "x"\nrequest.expire_in = "8h"\nexpects.refused = true',
            "3:9: policy.examples.0.request.expire_in: unknown field; did you mean expires_in?",
        ),
        ('[[policy.examples]]\nname = "x"', "1:10: policy.examples.0.expects: the field is missing"),
        *(
            (
                f'[tracing]\nendpoint = "{url}"',
                "2:1: tracing.endpoint: expected a URL like http://collector.example.com:4318",
            )
            for url in (
                "collector:4318",
                "http://",
                "https://a:b@collector",
                "http://collector?x=1",
                "grpc://c",
            )
        ),
        ("[tracing]\nsample_ratio = 2", "2:1: tracing.sample_ratio: "),
        ('[server]\npublic_url = "x"', "2:1: server.public_url: expected a URL like "),
    ],
)
def test_a_fault_says_where_it_is_and_what_is_wrong(tmp_path: Path, text: str, fault: str) -> None:
    file = tmp_path / "clustercert.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as raised:
        load(file)
    assert f"{file}:{fault}" in raised.value.message


def test_a_fault_does_not_show_the_password_in_a_url(tmp_path: Path) -> None:
    file = tmp_path / "clustercert.toml"
    file.write_text('[audit]\npublish = "https://keeper:hunter2@log.example/"', encoding="utf-8")
    with pytest.raises(SettingsError) as raised:
        load(file)
    assert f'{file}:2:1: audit.publish: write a list, such as ["a", "b"], not a text' in raised.value.message
    assert "hunter2" not in raised.value.message


def test_traces_without_their_packages_are_a_fault_that_says_what_to_install(tmp_path: Path) -> None:
    file = tmp_path / "clustercert.toml"
    file.write_text('[tracing]\nendpoint = "http://127.0.0.1:4318"', encoding="utf-8")
    # With None in the place of a module, Python does not find the module.
    without = (
        "import sys; sys.modules['opentelemetry.sdk'] = None; from clustercert.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", without, "--config", str(file), "db", "check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"{file}:2:1: tracing.endpoint: traces need further packages" in done.stderr
    assert f"pip install './clustercert-{__version__}-py3-none-any.whl[otel]'" in done.stderr
