"""Addresses of a published project."""

from collections.abc import Mapping
from pathlib import Path

from scripts import publication

ADDRESSES = {"icon": "https://example.com/icon.svg"} | {
    name: f"https://example.com/{name.lower()}" for name in publication.LABELS
}


def write_addresses(root: Path, addresses: Mapping[str, str]) -> None:
    """Write publication.toml in `root`. The other addresses are empty."""
    urls = "".join(f'{name} = "{addresses.get(name, "")}"\n' for name in publication.LABELS)
    (root / publication.FILE_NAME).write_text(f'icon = "{addresses.get("icon", "")}"\n\n[urls]\n{urls}')
