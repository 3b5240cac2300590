"""Reads the addresses of the project from publication.toml, and gives them to Hatchling for the metadata of the wheel.

This module needs only the standard library and Hatchling, so that a build of the wheel needs no other package.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

FILE_NAME = "publication.toml"
LABELS = ("Homepage", "Documentation", "Source", "Issues", "Changelog", "Security")


@dataclass(frozen=True, slots=True)
class Publication:
    """Where the project is published.

    Attributes:
        urls: address by label, in the order of the file, without empty ones.
        icon: address of a picture.
        missing: names of the lines that are empty.
    """

    urls: Mapping[str, str]
    icon: str | None
    missing: tuple[str, ...]


def read(root: Path) -> Publication:
    """Read publication.toml in `root`.

    Raises ValueError if the file is not TOML, has other lines, or has an address that does not begin with https.
    """
    try:
        given = tomllib.loads((root / FILE_NAME).read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{FILE_NAME}: {error}") from None
    lines = {"icon": given.get("icon"), **given.get("urls", {})}
    if given.keys() != {"icon", "urls"} or lines.keys() != {"icon", *LABELS}:
        raise ValueError(f"{FILE_NAME}: needs `icon`, and [urls] with exactly {', '.join(LABELS)}.")
    for name, address in lines.items():
        if not isinstance(address, str) or (address and not address.startswith("https://")):
            raise ValueError(
                f"{FILE_NAME}: {name} is {address!r}. Write an https address, or leave it empty."
            )
    missing = tuple(name for name, address in lines.items() if not address)
    icon = lines.pop("icon")
    return Publication({name: url for name, url in lines.items() if url}, icon or None, missing)


class PublicationHook(MetadataHookInterface):
    """Fills in the dynamic field `urls` of the project's metadata."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the addresses that are filled in."""
        metadata["urls"] = dict(read(Path(self.root)).urls)
