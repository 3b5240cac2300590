"""The options that describe a cluster: its addresses, CA and labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from clustercert.cli.options import parse_pairs, read_file
from clustercert.cli.output import note

if TYPE_CHECKING:
    from clustercert.model import JsonObject


@dataclass(frozen=True, slots=True)
class AddressOptions:
    """The options for the address and CA of a cluster's API server."""

    internal_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Address of the API server in its network: https://host:port."),
    ] = None
    server_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CA of the API server's certificate (PEM).")
    ] = None
    from_kubeconfig: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Read address and CA from a kubeconfig, or from standard input (-). Runs no program that it names.",
        ),
    ] = None
    kube_context: Annotated[
        str | None,
        typer.Option("--context", help="Context of that kubeconfig. [default: its current context]"),
    ] = None
    follow_files: Annotated[
        bool, typer.Option("--follow-files", help="Read the CA file that the kubeconfig names.")
    ] = False

    def read(self) -> tuple[str | None, bytes | None]:
        """Return the API server's address and CA, `None` if not given. Explicit options override the kubeconfig."""
        ca_pem = read_file(self.server_ca) if self.server_ca is not None else None
        if self.from_kubeconfig is None:
            if self.kube_context is not None or self.follow_files:
                raise typer.BadParameter("--context and --follow-files require --from-kubeconfig.")
            return self.internal_url, ca_pem
        from clustercert.cli.kubeconfig import cluster_import

        found = cluster_import.read(
            self.from_kubeconfig, self.kube_context, need_ca=ca_pem is None, follow_files=self.follow_files
        )
        if found.skipped_fields:
            note(f"Not imported from the context {found.context}: {', '.join(found.skipped_fields)}.")
        return self.internal_url or found.server, ca_pem or found.ca_pem


@dataclass(frozen=True, slots=True)
class DetailOptions:
    """The options for a cluster's properties other than its name, internal address and CA."""

    external_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Public address of the API server.")
    ] = None
    san_url: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Further address in the API server's certificate. Repeatable."),
    ] = None
    version: Annotated[str | None, typer.Option(help="Kubernetes version, such as v1.32, for display.")] = (
        None
    )
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Label. Repeatable.")] = None

    def __post_init__(self) -> None:
        _parse_labels(self.label)

    def changes(self, before: "JsonObject") -> "JsonObject":
        """Return the fields of the API to change, given the cluster's current ones."""
        labels = cast("Mapping[str, str]", before.get("labels", {}))
        fields = {
            "external_url": self.external_url,
            "san_urls": self.san_url or None,
            "version": self.version,
            "labels": {**labels, **_parse_labels(self.label)} if self.label else None,
        }
        return {field: value for field, value in fields.items() if value is not None}


@dataclass(frozen=True, slots=True)
class DetailChangeOptions(DetailOptions):
    """The options that change a cluster's properties other than its name, internal address and CA."""

    no_external_url: Annotated[bool, typer.Option("--no-external-url", help="Remove the public address.")] = (
        False
    )
    no_san_urls: Annotated[bool, typer.Option("--no-san-urls", help="Remove all further addresses.")] = False
    remove_label: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Remove a label. Repeatable.")
    ] = None

    def __post_init__(self) -> None:
        DetailOptions.__post_init__(self)
        if (self.external_url and self.no_external_url) or (self.san_url and self.no_san_urls):
            raise typer.BadParameter("Give an option or its --no- form, not both.")

    def changes(self, before: "JsonObject") -> "JsonObject":
        """Return the fields of the API to change, given the cluster's current ones."""
        fields = DetailOptions.changes(self, before)
        if self.no_external_url:
            fields["external_url"] = None
        if self.no_san_urls:
            fields["san_urls"] = []
        labels = cast("Mapping[str, str]", before["labels"])
        kept = {key: value for key, value in labels.items() if key not in (self.remove_label or ())}
        return fields | {"labels": {**kept, **_parse_labels(self.label)}}


def _parse_labels(options: Sequence[str] | None) -> dict[str, str]:
    return parse_pairs(options, "KEY=VALUE", "--label", may_be_empty=True)
