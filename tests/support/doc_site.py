"""The site of the documentation, as `make site` builds it."""

from pathlib import Path

import pytest

from scripts import site


def build(folder: Path) -> Path:
    """Build the site in a folder. The test is skipped without Sphinx, which `make site-tools` installs."""
    if not site.PYTHON.exists():
        pytest.skip("Sphinx is not installed: run `make site-tools`")
    out = folder / "site"
    site.build(out)
    return out
