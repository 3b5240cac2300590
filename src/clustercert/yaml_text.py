"""Parses untrusted YAML, with limits, and writes YAML that all parsers read in the same way.

A plain scalar is read as a boolean, null, a number in the syntax of JSON, or a string. Dates are read as strings.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

# The maximum nesting depth after aliases are expanded. A kubeconfig has about eight levels.
_MAX_DEPTH = 32
# The maximum number of nodes that all aliases together expand to. A few aliases can make a small file expensive to
# process.
_MAX_REPEATED = 100_000
# For each YAML tag of a number: the syntax of such numbers in JSON, and the Python type.
_NUMBERS: Mapping[str, tuple[re.Pattern[str], type[int] | type[float]]] = {
    "tag:yaml.org,2002:int": (re.compile(r"-?(0|[1-9][0-9]*)\Z", re.ASCII), int),
    "tag:yaml.org,2002:float": (
        re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?\Z", re.ASCII),
        float,
    ),
}
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
# Use libyaml if possible. libyaml is several times faster, but some builds of PyYAML do not contain libyaml.
_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Matches text that is a number in YAML 1.2 and a string in YAML 1.1. kubectl reads some of these texts as numbers.
_OTHER_NUMBERS = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z|0o[0-7]+\Z", re.ASCII)


class MalformedYaml(Exception):
    """The text is not acceptable YAML. The message does not quote the text, which may contain secrets."""


def parse(content: bytes, subject: str, *, aliases: bool = False) -> list[Any]:
    """Return the values of the YAML documents. Raises MalformedYaml.

    Args:
        subject: the subject of error messages, such as the file's path.
        aliases: whether to accept aliases. An alias to a node that contains the alias is always rejected.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise MalformedYaml(f"{subject} is not text in UTF-8.") from None
    try:
        limits = _Limits(subject, aliases=aliases)
        for event in yaml.parse(text, Loader=_BaseLoader):
            limits.check(event)
        return list(yaml.load_all(text, _Loader))
    except (yaml.YAMLError, ValueError) as error:
        # Report only the line number, since the parser's message may quote a secret.
        raise MalformedYaml(f"{subject} is not valid YAML{_place(error)}.") from None


def _place(where: yaml.Event | Exception) -> str:
    """Return the line number of an event or an error, if known."""
    mark = where.start_mark if isinstance(where, yaml.Event) else getattr(where, "problem_mark", None)
    return f" (line {mark.line + 1})" if mark is not None else ""


@dataclass(slots=True)
class _Node:
    """A YAML node, which may still be incomplete.

    Attributes:
        nodes, depth: number of nodes and nesting depth after aliases are expanded.
        scalar: the text of a scalar.
        keys: the keys of a mapping that were already read; `None` for a node that is not a mapping.
        is_key: whether the next node in a mapping is a key.
    """

    anchor: str | None = None
    nodes: int = 1
    depth: int = 1
    scalar: str | None = None
    keys: set[str] | None = None
    is_key: bool = False


@dataclass(slots=True)
class _Limits:
    """Rejects deep nesting, duplicate keys, and aliases that are not allowed or expand to too many nodes.

    Duplicate keys are rejected, because parsers disagree about their meaning.
    """

    subject: str
    aliases: bool
    _open: list[_Node] = field(default_factory=list)
    _anchors: dict[str, _Node] = field(default_factory=dict)
    _repeated: int = 0

    def check(self, event: yaml.Event) -> None:
        """Check the next event of the parser. Raises MalformedYaml."""
        if isinstance(event, yaml.CollectionStartEvent):
            is_mapping = isinstance(event, yaml.MappingStartEvent)
            self._open.append(_Node(event.anchor, keys=set() if is_mapping else None, is_key=is_mapping))
            if len(self._open) > _MAX_DEPTH:
                raise MalformedYaml(f"{self.subject} is nested too deeply.")
        elif isinstance(event, yaml.CollectionEndEvent):
            self._complete(self._open.pop(), event)
        elif isinstance(event, yaml.ScalarEvent):
            self._complete(_Node(event.anchor, scalar=event.value), event)
        elif isinstance(event, yaml.AliasEvent):
            self._complete(self._repeat(event), event)
        elif isinstance(event, yaml.DocumentStartEvent):
            self._anchors.clear()

    def _repeat(self, event: yaml.AliasEvent) -> _Node:
        """Return the node that an alias refers to."""
        if not self.aliases:
            raise MalformedYaml(f"{self.subject} has YAML aliases, which are not accepted.")
        if any(node.anchor == event.anchor for node in self._open):
            raise MalformedYaml(f"{self.subject} has a YAML alias to a node that contains the alias.")
        node = self._anchors.get(event.anchor or "")
        if node is None:
            raise MalformedYaml(f"{self.subject} is not valid YAML{_place(event)}.")
        self._repeated += node.nodes
        if self._repeated > _MAX_REPEATED or len(self._open) + node.depth > _MAX_DEPTH:
            raise MalformedYaml(f"{self.subject} has YAML aliases that repeat too much.")
        return _Node(None, node.nodes, node.depth, node.scalar)

    def _complete(self, node: _Node, event: yaml.Event) -> None:
        """Add a complete node to its parent node."""
        if node.anchor is not None:
            self._anchors[node.anchor] = node
        if not self._open:
            return
        parent = self._open[-1]
        parent.nodes += node.nodes
        parent.depth = max(parent.depth, 1 + node.depth)
        if parent.keys is None:
            return
        if parent.is_key and node.scalar is not None:
            if node.scalar in parent.keys:
                raise MalformedYaml(f"{self.subject} has the same key twice{_place(event)}.")
            parent.keys.add(node.scalar)
        parent.is_key = not parent.is_key


class _Loader(_BaseLoader):  # type: ignore[misc] # a class that is chosen at run time
    """A safe loader that recognizes a number only if the number is in the syntax of JSON.

    In YAML 1.1, `1:30` is a number in base 60, and parsing a long number of this kind takes quadratic time.
    """

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Convert a scalar to a number, including a scalar with an explicit tag such as `!!int`."""
        pattern, number_type = _NUMBERS[node.tag]
        text = self.construct_scalar(node)
        if not pattern.fullmatch(text):
            raise yaml.constructor.ConstructorError(None, None, "not a number of JSON", node.start_mark)
        return number_type(text)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in {*_NUMBERS, _TIMESTAMP}]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, (_pattern, _) in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, _pattern, list("-0123456789"))
    _Loader.add_constructor(_tag, _Loader.construct_number)


class Dumper(yaml.SafeDumper):
    """Quotes strings that some parsers read as numbers. Writes a repeated object again, not as an alias."""

    def ignore_aliases(self, data: object) -> bool:
        """Return True, so that no aliases are written."""
        del data
        return True


Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _OTHER_NUMBERS, list("-+.0123456789"))


def dump(value: object, *, allow_unicode: bool = True) -> str:
    """Return a JSON value as YAML, without breaking lines."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=allow_unicode, width=1_000_000)
