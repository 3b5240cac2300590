"""The exec plugin, but it waits longer for the service: many at once take a busy machine more than 10 seconds."""

import shlex
from pathlib import Path

import yaml

from support.wait import SECONDS

_PROGRAM = f"""\
import clustercert.cli.credential.service_requests as plugin
import clustercert.cli.credential.access_request as requests
plugin.NETWORK_SECONDS = requests.ANSWER_SECONDS = {SECONDS}
from clustercert.__main__ import main
main()"""


def command(python: str | Path) -> tuple[str, ...]:
    """The command line, without the plugin's arguments. `python` is of an environment with the program."""
    return str(python), "-c", _PROGRAM


def use_in(kubeconfig: Path, python: str | Path) -> None:
    """Let all users in a kubeconfig file of `kubeconfig merge` call it."""
    script = kubeconfig.with_name("patient-plugin")
    script.write_text(f'#!/bin/sh\nexec {shlex.join(command(python))} "$@"\n')
    script.chmod(0o755)
    document = yaml.safe_load(kubeconfig.read_text())
    for each in document["users"]:
        plugin = each["user"]["exec"]
        plugin |= {"command": str(script), "args": plugin["args"][plugin["args"].index("credential") :]}
    kubeconfig.write_text(yaml.safe_dump(document))
