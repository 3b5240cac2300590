"""docs/pkcs11.md: its commands run as they stand there, with SoftHSM."""

import os
import re
import shutil
import textwrap
from pathlib import Path

import pytest

from clustercert.settings import load
from support import tokens
from support.page_steps import ROOT, Reader
from support.samples import server_ca_pem
from support.world import REGION, make

PAGE = ROOT / "docs" / "pkcs11.md"
PROOF = {
    "CKA_SENSITIVE": "true",
    "CKA_ALWAYS_SENSITIVE": "true",
    "CKA_EXTRACTABLE": "false",
    "CKA_NEVER_EXTRACTABLE": "true",
    "CKA_LOCAL": "true",
}


@pytest.mark.full
@tokens.needs_softhsm
@pytest.mark.skipif(shutil.which("pkcs11-tool") is None, reason="opensc is not installed")
def test_the_steps_lead_to_a_cluster_with_its_key_in_the_token(tmp_path: Path) -> None:
    world = make(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    (settings,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    words = {
        "/etc/clustercert": str(tmp_path),
        "/var/lib/clustercert": str(tmp_path),
        "runuser -u clustercert -- ": "",  # before pkcs11-tool
        " -o clustercert": "",
        "chown clustercert ": "test -f ",
        "eu-de": REGION,
    }
    config = tmp_path / "clustercert.toml"
    path = f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"
    reader = Reader(tmp_path, words, {"PATH": path, "CLUSTERCERT_CONFIG": str(config)})
    config.write_text(
        f'data_dir = "{world.settings().data_dir}"\nkek_file = "{world.settings().kek_file}"\n'
        + reader.here(textwrap.dedent(settings))
    )
    assert load(config).signers["pkcs11"]["token"] == "clustercert"
    (tmp_path / "api-ca.pem").write_bytes(server_ca_pem())
    said = reader.follow(text)
    (shown,) = (text for command, text in said.items() if "cluster ca show prod" in command)
    assert "PKCS#11 token clustercert" in shown
    for name, value in PROOF.items():
        assert re.search(rf"{name}\W+{value}\b", shown), shown
    assert "clustercert client CA" in list(said.values())[-1]
