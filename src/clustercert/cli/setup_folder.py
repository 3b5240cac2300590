"""The folder that `clustercert kubernetes setup` writes and updates."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.options import CommandError

if TYPE_CHECKING:
    from clustercert.kubernetes.setup.previous import PreviousSetup


@dataclass(frozen=True, slots=True)
class SetupFolder:
    """The folder to write, and whether existing files may be overwritten."""

    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write, created with mode 0700.")]
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Update an existing folder: change only the given options, keep a valid token."
        ),
    ] = False

    def check(self) -> None:
        """Raise CommandError if existing files would be overwritten without --force."""
        from clustercert.kubernetes.setup.values import NAMES

        if self.out.exists() and not self.out.is_dir():
            raise CommandError(f"{self.out} is not a folder.")
        existing = [name for name in NAMES if (self.out / name).exists()]
        if existing and not self.force:
            raise CommandError(
                f"{self.out} already has {', '.join(existing)}. Name another folder, or add --force to update this "
                "one: options that you omit leave their values unchanged."
            )

    def read_previous(self) -> "PreviousSetup":
        """Read the values of an earlier run and an operator's changes. Raises CommandError if a file is malformed."""
        from clustercert.kubernetes.setup.previous import UnreadableFile, read_back

        try:
            return read_back(self._text)
        except UnreadableFile as error:
            raise CommandError(
                f"{self.out / error.name} can't be read back: {error.message.rstrip('.')}. Correct the file, or move "
                "it away so that a new one is written."
            ) from error

    def write(self, files: Mapping[str, str]) -> None:
        """Write the files. Remove obsolete files of an earlier run, or rename those for the cluster. Raises OSError."""
        from clustercert.kubernetes.setup.values import FOR_CLUSTER, NAMES, removed
        from clustercert.secure_file import write_private

        # An existing folder keeps its mode, because it may have other files too. Each file gets mode 0600.
        self.out.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content in files.items():
            write_private(self.out / name, content)
        for name in NAMES:
            path = self.out / name
            if name in files:
                (self.out / removed(name)).unlink(missing_ok=True)
            elif name in FOR_CLUSTER and path.exists():
                path.replace(self.out / removed(name))
            else:
                path.unlink(missing_ok=True)

    def _text(self, name: str) -> str | None:
        from clustercert.kubernetes.setup.previous import UnreadableFile

        try:
            return (self.out / name).read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except UnicodeDecodeError as error:
            raise UnreadableFile(name, "it is not UTF-8") from error
