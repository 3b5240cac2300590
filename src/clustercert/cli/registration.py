"""What the options say of a cluster, wherever they say it: in themselves, in a CA file, in somebody's kubeconfig."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from clustercert.cli.output import note
from clustercert.errors import ClustercertError

# What `clusters` accepts is less; this keeps a mistaken file from being read to its end.
_MAX_CA_BYTES = 1024 * 1024


class RegistrationError(ClustercertError):
    """A file that an option names can't be used."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """The options that say where a cluster is and how its API server is known."""

    internal_url: str | None
    server_ca: Path | None
    from_kubeconfig: Path | None
    context: str | None
    follow_files: bool

    def address_and_ca(self) -> tuple[str, bytes]:
        """Both. Raises typer.BadParameter where one is missing."""
        url, ca_pem = self.given()
        if url is None or ca_pem is None:
            raise typer.BadParameter("say --internal-url and --server-ca, or --from-kubeconfig.")
        return url, ca_pem

    def given(self) -> tuple[str | None, bytes | None]:
        """What is said of the two; an option of its own wins over the kubeconfig."""
        if self.from_kubeconfig is None and (self.context is not None or self.follow_files):
            raise typer.BadParameter("--context and --follow-files go with --from-kubeconfig.")
        ca_pem = _read(self.server_ca) if self.server_ca is not None else None
        if self.from_kubeconfig is None:
            return self.internal_url, ca_pem
        from clustercert.cli import foreign_kubeconfig

        found = foreign_kubeconfig.read(
            self.from_kubeconfig, self.context, need_ca=ca_pem is None, follow_files=self.follow_files
        )
        if found.left_out:
            note(f"Not taken over from the context {found.context}: {', '.join(found.left_out)}.")
        return self.internal_url or found.server, ca_pem or found.ca_pem


def labels(options: Sequence[str] | None) -> Mapping[str, str]:
    """The labels of `KEY=VALUE` options. Raises typer.BadParameter."""
    pairs = [option.partition("=") for option in options or ()]
    if not all(equals for _, equals, _ in pairs):
        raise typer.BadParameter("write a label as KEY=VALUE.", param_hint="--label")
    return {key: value for key, _, value in pairs}


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_CA_BYTES)
    except OSError as error:
        raise RegistrationError(f"The file {path} can't be read: {error.strerror}.") from error
