"""Changes entries in the text of a kubeconfig, and leaves all other text as it is.

The text is never generated from its parsed form, which would lose comments, quotes and the order of fields. The
result is parsed again and compared with what was intended.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from clustercert.cli.options import CommandError

# The maximum size: that of a kubeconfig with embedded certificates for about 500 clusters.
MAX_BYTES = 4 * 1024 * 1024
# The maximum nesting. A kubeconfig has about eight levels.
_MAX_DEPTH = 32
# Nodes that aliases repeat. A few of them can make a small file expensive to process.
_MAX_REPEATED = 100_000
LISTS = ("clusters", "users", "contexts")
CURRENT = "current-context"
_NEW = {"apiVersion": "v1", "kind": "Config"}
_NULL = "tag:yaml.org,2002:null"
_BOOL = "tag:yaml.org,2002:bool"
_TEXT = "tag:yaml.org,2002:str"
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Value = dict[str, Any]


class MalformedKubeconfig(CommandError):
    """The file is not a kubeconfig that can be changed. The message has no text from the file."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What to change.

    Attributes:
        put: entries to add or replace, by the field of the list and the name of the entry.
        remove: names of entries.
        current: the new current context.
    """

    put: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    remove: Mapping[str, frozenset[str]] = field(default_factory=dict)
    current: str | None = None


class _Dumper(yaml.SafeDumper):
    """Writes an object that occurs twice as two copies, without aliases."""

    def ignore_aliases(self, data: object) -> bool:
        del data
        return True


class Kubeconfig:
    """The parsed text of a kubeconfig."""

    def __init__(self, content: bytes) -> None:
        """Parse the text. Raises MalformedKubeconfig."""
        self.text = _decoded(content)
        self.root = _composed(self.text)
        self.value: Value = {} if self.root is None else _value(self.root)
        for name in LISTS:
            entries = self.value.get(name)
            if entries is not None and not isinstance(entries, list):
                raise MalformedKubeconfig(f"{name} is not a list.")

    def entries(self, name: str) -> dict[str, Value]:
        """Return the entries of a list by name. Leaves out entries without a name."""
        return {each["name"]: each for each in self.value.get(name) or () if _has_name(each)}

    @property
    def current(self) -> str | None:
        value = self.value.get(CURRENT)
        return value if isinstance(value, str) and value else None

    def changed(self, changes: Changes) -> str:
        """Return the new text. Raises MalformedKubeconfig if other entries would change."""
        text = _Editor(self, changes).text()
        expected = _expected(self.value, changes)
        if self.root is None and expected:
            expected = _NEW | expected
        try:
            result = Kubeconfig(text.encode()).value
        except MalformedKubeconfig:
            result = {}
        if _normal(result) != _normal(expected):
            raise MalformedKubeconfig("Its form does not allow changing entries without changing others.")
        return text


class _Editor:
    """Collects replacements of parts of the text."""

    def __init__(self, config: Kubeconfig, changes: Changes) -> None:
        self._config = config
        self._source = config.text if config.text.endswith("\n") else f"{config.text}\n"
        self._changes = changes
        # The start and the end of the text to replace, and the new text.
        self._edits: list[tuple[int, int, str]] = []
        self._missing: Value = {}

    def text(self) -> str:
        root = self._config.root
        for name in LISTS:
            put = self._put(name)
            remove = self._changes.remove.get(name, frozenset()) & self._config.entries(name).keys()
            if put or remove:
                self._change_list(name, put, remove)
        if self._changes.current is not None and self._changes.current != self._config.value.get(CURRENT):
            self._change_current(self._changes.current)
        if root is None and self._missing:
            self._missing = _NEW | self._missing
        self._add_missing()
        if not self._edits:
            return self._config.text
        text = self._source
        # Start at the end of the text. Of several insertions at one place, the first one comes first in the result.
        places = [(start, number) for number, (start, _, _) in enumerate(self._edits)]
        for start, number in sorted(places, reverse=True):
            _, end, new = self._edits[number]
            text = text[:start] + new + text[end:]
        return text

    def _put(self, name: str) -> dict[str, Value]:
        """The entries to put that differ from the present ones."""
        present = self._config.entries(name)
        put = self._changes.put.get(name, {})
        return {key: entry for key, entry in put.items() if present.get(key) != _plain(entry)}

    def _change_list(self, name: str, put: dict[str, Value], remove: frozenset[str] | set[str]) -> None:
        pair = self._field(name)
        if pair is None:
            if put:
                self._missing[name] = list(put.values())
            return
        key, node = pair
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self._fill_empty(key, node, list(put.values()))
        elif node.flow_style:
            kept = [
                json.dumps(put.pop(item_name)) if item_name in put else self._slice(item)
                for item, item_name in self._items(node)
                if item_name not in remove
            ]
            new = ", ".join([*kept, *(json.dumps(entry) for entry in put.values())])
            self._edits.append((node.start_mark.index, node.end_mark.index, f"[{new}]"))
        else:
            self._change_block(key, node, put, remove)

    def _change_block(
        self,
        key: yaml.Node,
        node: yaml.SequenceNode,
        put: dict[str, Value],
        remove: frozenset[str] | set[str],
    ) -> None:
        column = node.start_mark.column
        kept = False
        for item, name in self._items(node):
            if name not in put and name not in remove:
                kept = True
                continue
            start, end = self._source.rfind("\n", 0, item.start_mark.index) + 1, self._line_end(item)
            replacement = [put.pop(name)] if name in put else []
            kept = kept or bool(replacement)
            self._edits.append((start, end, _block(replacement, column)))
        if put:
            self._insert_after(node, _block(list(put.values()), column))
        elif not kept:
            colon = self._source.index(":", key.end_mark.index) + 1
            self._edits.append((colon, colon, " []"))

    def _fill_empty(self, key: yaml.Node, node: yaml.Node, entries: list[Value]) -> None:
        """Put the first entries into a list that is empty or null."""
        root = self._config.root
        if not entries or root is None:
            return
        start, end = node.start_mark.index, node.end_mark.index
        if root.flow_style:
            self._edits.append((start, end, _space(start, end) + json.dumps(entries)))
            return
        self._edits.append((start, end, ""))
        self._insert_after(key if start == end else node, _block(entries, root.start_mark.column))

    def _change_current(self, name: str) -> None:
        pair = self._field(CURRENT)
        if pair is None:
            self._missing[CURRENT] = name
            return
        start, end = pair[1].start_mark.index, pair[1].end_mark.index
        self._edits.append((start, end, _space(start, end) + json.dumps(name)))

    def _add_missing(self) -> None:
        """Append fields that the document lacks."""
        root = self._config.root
        if not self._missing:
            return
        if root is None:
            end = len(self._source) if self._source.strip() else 0
            self._edits.append((end, end, _yaml(self._missing)))
        elif root.flow_style:
            end = root.end_mark.index - 1
            comma = ", " if root.value else ""
            self._edits.append((end, end, comma + json.dumps(self._missing)[1:-1]))
        else:
            indent = " " * root.start_mark.column
            lines = _yaml(self._missing).splitlines(keepends=True)
            self._insert_after(root, "".join(f"{indent}{line}" for line in lines))

    def _insert_after(self, node: yaml.Node, new: str) -> None:
        """Insert lines after the line in which a node ends."""
        place = self._line_end(node)
        self._edits.append((place, place, new))

    def _line_end(self, node: yaml.Node) -> int:
        """The start of the line after the one in which the node's last scalar ends."""
        end = len(self._source[: _last(node).end_mark.index].rstrip())
        return self._source.index("\n", end) + 1

    def _field(self, name: str) -> tuple[yaml.Node, yaml.Node] | None:
        root = self._config.root
        return (
            next((pair for pair in root.value if pair[0].value == name), None) if root is not None else None
        )

    def _items(self, node: yaml.SequenceNode) -> list[tuple[yaml.Node, str | None]]:
        values = [_value(item) for item in node.value]
        return [
            (item, value["name"] if _has_name(value) else None)
            for item, value in zip(node.value, values, strict=True)
        ]

    def _slice(self, node: yaml.Node) -> str:
        return self._source[node.start_mark.index : node.end_mark.index]


def _decoded(content: bytes) -> str:
    if len(content) > MAX_BYTES:
        raise MalformedKubeconfig(f"It is larger than {MAX_BYTES // 1024 // 1024} MiB.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise MalformedKubeconfig("It is not text in UTF-8.") from None


def _composed(text: str) -> Any:
    """Return the root mapping, or `None` for an empty file. Raises MalformedKubeconfig."""
    try:
        aliases = _check_events(text)
        root = yaml.compose(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        # Report only the line number, since the parser's message may quote a secret.
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise MalformedKubeconfig(f"It is not valid YAML{where}.") from None
    if root is None or (isinstance(root, yaml.ScalarNode) and not root.value):
        return None
    if not isinstance(root, yaml.MappingNode):
        raise MalformedKubeconfig("It is not a mapping, as a kubeconfig requires.")
    if aliases:
        _AliasPlaces(aliases).check(root)
    return root


class _AliasPlaces:
    """Gives nodes that stand for aliases the place of the alias, instead of that of its anchor.

    Args:
        aliases: the events of the document's aliases, in order.
    """

    def __init__(self, aliases: list[yaml.AliasEvent]) -> None:
        self._aliases = iter(aliases)
        # Number of nodes and depth by the id of a node, with all that its aliases repeat; `None` within the node.
        self._extents: dict[int, tuple[int, int] | None] = {}

    def check(self, root: yaml.MappingNode) -> None:
        """Replace such nodes below the root. Raises MalformedKubeconfig if aliases repeat too much."""
        _, (nodes, depth) = self._placed(root)
        if nodes - len(self._extents) > _MAX_REPEATED or depth > _MAX_DEPTH:
            raise MalformedKubeconfig("Its YAML aliases repeat too much for a kubeconfig.")

    def _placed(self, node: Any) -> tuple[Any, tuple[int, int]]:
        if id(node) in self._extents:
            extent = self._extents[id(node)]
            if extent is None:
                raise MalformedKubeconfig("It has a YAML alias within its own anchor.")
            alias = next(self._aliases)
            # Edits treat an alias like a collection in flow style, which is in one piece too.
            form = {"flow_style": True} if isinstance(node, yaml.CollectionNode) else {}
            return type(node)(node.tag, node.value, alias.start_mark, alias.end_mark, **form), extent
        self._extents[id(node)] = None
        extents = []
        if isinstance(node, yaml.CollectionNode):
            for number, child in enumerate(node.value):
                found = [self._placed(each) for each in (child if isinstance(child, tuple) else (child,))]
                placed = tuple(each for each, _ in found)
                node.value[number] = placed if isinstance(child, tuple) else placed[0]
                extents += [extent for _, extent in found]
        extent = 1 + sum(nodes for nodes, _ in extents), 1 + max((depth for _, depth in extents), default=0)
        self._extents[id(node)] = extent
        return node, extent


def _check_events(text: str) -> list[yaml.AliasEvent]:
    """Refuse deep nesting, which could make a small file expensive, and second documents. Returns the aliases."""
    depth = documents = 0
    aliases = []
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent):
            aliases.append(event)
        documents += isinstance(event, yaml.DocumentStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise MalformedKubeconfig("It is nested too deeply for a kubeconfig.")
        if documents > 1:
            raise MalformedKubeconfig("It has several YAML documents.")
    return aliases


def _value(node: Any) -> Any:
    """The value of a node. Scalars keep their text, so that equal values have equal texts."""
    if isinstance(node, yaml.MappingNode):
        pairs = [(str(key.value), _value(value)) for key, value in node.value]
        found = dict(pairs)
        if len(found) != len(pairs):
            raise MalformedKubeconfig(f"It has the same key twice (line {node.start_mark.line + 1}).")
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    if node.tag == _NULL:
        return None
    if node.tag == _BOOL:
        return node.value.lower() in ("true", "yes", "on")
    return node.value if node.tag == _TEXT else (node.tag, node.value)


def _plain(entry: Value) -> Any:
    """Return an entry's value as it would be read back from the written YAML."""
    return _value(yaml.compose(_yaml(entry), Loader=_LOADER))


def _expected(value: Value, changes: Changes) -> Value:
    """The value that the changed text must have."""
    result = dict(value)
    for name in LISTS:
        put = {key: _plain(entry) for key, entry in changes.put.get(name, {}).items()}
        remove = changes.remove.get(name, frozenset())
        found = [
            put.pop(each["name"], each) if _has_name(each) else each
            for each in result.get(name) or ()
            if not (_has_name(each) and each["name"] in remove)
        ]
        result[name] = [*found, *put.values()]
    if changes.current is not None:
        result[CURRENT] = changes.current
    return {key: each for key, each in result.items() if key in value or each not in (None, [], "")}


def _normal(value: Value) -> Value:
    """Return the value without empty fields, which mean the same as missing ones."""
    return {key: each for key, each in value.items() if each not in (None, [], "")}


def _has_name(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("name"), str)


def _last(node: yaml.Node) -> yaml.Node:
    """The last scalar or flow collection in a node."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    return node


def _block(entries: Sequence[Value], column: int) -> str:
    """Write entries as items of a list that begins in a column."""
    if not entries:
        return ""
    indent = " " * column
    return "".join(f"{indent}{line}" for line in _yaml(list(entries)).splitlines(keepends=True))


def _yaml(value: object) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000)


def _space(start: int, end: int) -> str:
    """Return a space if there was no value after the colon, so that the new value is separated from it."""
    return " " if start == end else ""
