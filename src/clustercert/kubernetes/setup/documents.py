"""YAML documents."""

from collections.abc import Iterable

import yaml

from clustercert.model import JsonObject
from clustercert.yaml_text import Dumper


def to_yaml(documents: Iterable[JsonObject]) -> str:
    """Write the documents as one YAML stream. Keeps the order of fields."""
    return yaml.dump_all(
        documents,
        Dumper=Dumper,
        sort_keys=False,
        default_flow_style=False,
        width=1_000_000,
        allow_unicode=True,
    )


def commented(comment: str, document: str) -> str:
    """Put a YAML comment above a document."""
    lines = [f"# {line}".rstrip() for line in comment.strip().splitlines()]
    return "\n".join([*lines, document])
