"""The folder that `clustercert kubernetes setup` writes, and writes again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clustercert.cli.setup_options import SetupError

if TYPE_CHECKING:
    # The command loads what parses and writes the files only when it is run.
    from clustercert.manifests.previous import PreviousSetup


@dataclass(frozen=True, slots=True)
class SetupFolder:
    """The folder to write.

    Attributes:
        force: write over an earlier one.
    """

    path: Path
    force: bool

    def check(self) -> None:
        """Raise SetupError where something would be lost."""
        if self.path.exists() and not self.path.is_dir():
            raise SetupError(f"{self.path} is not a folder.")
        there = [name for name in _names() if (self.path / name).exists()]
        if there and not self.force:
            raise SetupError(
                f"{self.path} has {', '.join(there)} already. Say another folder, or add --force to write over them: "
                "what no option says stays as it is."
            )

    def previous(self) -> "PreviousSetup":
        """What an earlier run wrote here, with an operator's changes. Raises SetupError."""
        from clustercert.manifests.previous import UnreadableFile, read_back

        try:
            return read_back(self._text)
        except UnreadableFile as error:
            raise self.unreadable(error.name, error.message) from error

    def unreadable(self, name: str, reason: str) -> SetupError:
        """The error for a file of an earlier time."""
        return SetupError(
            f"{self.path / name} can't be read back: {reason.rstrip('.')}. Correct it, or move it away to have it "
            "written from the options and the defaults."
        )

    def write(self, files: Mapping[str, str]) -> Mapping[str, str]:
        """Write the files, take away what else is there of an earlier time, and return them. Raises OSError."""
        from clustercert.private_file import make_private_folder, write_private

        make_private_folder(self.path)
        for name, content in files.items():
            write_private(self.path / name, content)
        for name in _names():
            if name not in files:
                (self.path / name).unlink(missing_ok=True)
        return files

    def _text(self, name: str) -> str | None:
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except UnicodeDecodeError as error:
            raise self.unreadable(name, "it is not UTF-8") from error


def _names() -> tuple[str, ...]:
    from clustercert.manifests.folder import NAMES

    return NAMES
