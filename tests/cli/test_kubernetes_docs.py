"""docs/kubernetes.md and its reference name only existing options, flags, files and metrics."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from prometheus_client import REGISTRY

import clustercert.observability.metrics  # noqa: F401 - it registers the metrics
from clustercert.cli.main import app
from clustercert.kubernetes.setup.values import NAMES

DOCS = Path(__file__).parents[2] / "docs"
DOCUMENT = "\n".join(
    (DOCS / name).read_text(encoding="utf-8") for name in ("kubernetes.md", "kubernetes-reference.md")
)
# Flags of kube-apiserver 1.32 and 1.36, and options of kubectl and kubeadm.
OF_KUBERNETES = {
    "--as",
    "--audit-policy-file",
    "--audit-webhook-batch-buffer-size",
    "--audit-webhook-batch-max-size",
    "--audit-webhook-batch-max-wait",
    "--audit-webhook-batch-throttle-qps",
    "--audit-webhook-config-file",
    "--audit-webhook-truncate-enabled",
    "--authorization-config",
    "--authorization-mode",
    "--authorization-webhook-",
    "--authorization-webhook-cache-authorized-ttl",
    "--authorization-webhook-cache-unauthorized-ttl",
    "--authorization-webhook-config-file",
    "--authorization-webhook-version",
    "--client-ca-file",
    "--cluster-signing-duration",
    "--config",
    "--min-request-timeout",
    "--raw",
}
ROOT: Any = typer.main.get_command(app)


def subcommands(command: Any) -> dict[str, Any]:
    """The subcommands of a group; typer has no public type for it."""
    return getattr(command, "commands", {})


def options_of(command: Any) -> set[str]:
    names = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    # The root command's options are allowed anywhere.
    return names | {"--config", "--data-dir"}


def test_every_option_and_flag_in_the_document_exists() -> None:
    ours = {option for command in walk(ROOT) for option in options_of(command)}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", DOCUMENT)) <= ours | OF_KUBERNETES


def walk(command: Any) -> Iterator[Any]:
    yield command
    for each in subcommands(command).values():
        yield from walk(each)


def test_every_file_of_a_setup_is_explained() -> None:
    assert [name for name in NAMES if f"`{name}`" not in DOCUMENT] == []


def test_every_metric_in_the_document_exists() -> None:
    there = {metric.name for metric in REGISTRY.collect()}
    named = {name.removesuffix("_total") for name in re.findall(r"clustercert_[a-z_]+", DOCUMENT)}
    assert named
    assert named <= there
