"""Edits entries of a kubeconfig. Keeps the comments, quotes, anchors and order of all other entries."""

import io
import json
import re
from collections.abc import Mapping
from typing import Any

from clustercert.cli.yaml_io import MalformedYaml, parse
from clustercert.yaml_text import dump

LISTS = ("clusters", "users", "contexts")
CURRENT = "current-context"
_NEW = {"apiVersion": "v1", "kind": "Config"}
# Matches a list with indented items. Some programs indent the items of lists.
_INDENTED_ITEMS = re.compile(r"^(?:clusters|users|contexts):[^\n]*\n(?:\s*#[^\n]*\n)*( +)- ", re.MULTILINE)
# The line width for ruamel.yaml, so large that ruamel.yaml breaks no lines.
_WIDTH = 1_000_000

Value = dict[str, Any]


class KubeconfigDocument:
    """A parsed kubeconfig.

    Attributes:
        value: the parsed content. Callers change `value`, and then call `changed_text`.
    """

    def __init__(self, content: bytes) -> None:
        """Parse the content. Raises MalformedYaml."""
        self.text = content.decode("utf-8-sig", errors="replace")
        self.value = _parsed(content)

    def entries(self, name: str) -> dict[str, Value]:
        """Return the entries of a list as a mapping from entry name to entry. Skips entries without a name."""
        return {each["name"]: each for each in self.value.get(name) or () if _has_name(each)}

    def put(self, name: str, entry: Value) -> None:
        """Add an entry to a list, or replace the entry with the same name."""
        entries = self.value.get(name) or []
        if entry["name"] in self.entries(name):
            # Create a new list, because a YAML alias elsewhere may refer to the old list.
            self.value[name] = [entry if _has_name(each, entry["name"]) else each for each in entries]
        else:
            self.value[name] = [*entries, entry]

    def remove(self, name: str, entry_name: str) -> None:
        """Remove an entry from a list."""
        if entry_name in self.entries(name):
            self.value[name] = [each for each in self.value[name] if not _has_name(each, entry_name)]

    @property
    def current(self) -> str | None:
        """The name of the current context."""
        value = self.value.get(CURRENT)
        return value if isinstance(value, str) and value else None

    def changed_text(self) -> str:
        """Return the changed document as text. Raises MalformedYaml if unrelated entries would change."""
        old = _parsed(self.text.encode())
        if _same(old, self.value):
            return self.text
        new = self.value if old else _NEW | self.value
        text = _edited(self.text, old, new)
        if text is None or not _has_value(text, new):
            raise MalformedYaml(
                "In the YAML of the file, some entries can't be changed without changing others."
            )
        return text


def _parsed(content: bytes) -> Value:
    documents = parse(content, "It", aliases=True)
    if len(documents) > 1:
        raise MalformedYaml("It has several YAML documents.")
    value = documents[0] if documents else None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MalformedYaml("The file is not a YAML mapping.")
    for name in LISTS:
        if not isinstance(value.get(name), list | None):
            raise MalformedYaml(f"{name} is not a list.")
    return value


def _has_value(text: str, value: Value) -> bool:
    try:
        return _same(_parsed(text.encode()), value)
    except MalformedYaml:
        return False


def _has_name(entry: object, name: str | None = None) -> bool:
    found = entry.get("name") if isinstance(entry, dict) else None
    return isinstance(found, str) and name in (None, found)


def _are_entries(one: object, other: object) -> bool:
    """Whether both values are lists, and an item in one of the lists has a name."""
    return isinstance(one, list) and isinstance(other, list) and any(map(_has_name, [*one, *other]))


def _same(one: Any, other: Any) -> bool:
    """Whether two values and their types are equal. Python alone would treat 1 and true as equal."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(each, other[key]) for key, each in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other)


def _edited(text: str, old: Value, new: Value) -> str | None:
    """Return `text`, edited to have the value `new`, or `None` if ruamel.yaml can't read `text` or write `new`."""
    if _is_json(text):
        return json.dumps(new, indent=2) + "\n"
    # Import ruamel.yaml only here, because only commands that change a kubeconfig file need it.
    from ruamel.yaml.error import YAMLError

    try:
        editor = _Editor(text)
        if not isinstance(editor.root, dict):
            return f"{text.rstrip()}\n{dump(new)}".lstrip("\n")
        editor.update(editor.root, old, new)
        return editor.result()
    except (YAMLError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError):
        # ruamel.yaml does not load nodes with custom tags as mappings and lists, so editing such nodes fails.
        return None


def _is_json(text: str) -> bool:
    if not text.lstrip().startswith("{"):
        return False
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


class _Editor:
    """Edits ruamel.yaml's node tree of a document. Scalars that are not changed keep their text and quotes."""

    def __init__(self, text: str) -> None:
        from ruamel.yaml import YAML
        from ruamel.yaml.resolver import VersionedResolver

        class TextResolver(VersionedResolver):
            """Reads each plain scalar as text, because ruamel.yaml follows YAML 1.2, but kubectl follows YAML 1.1."""

            @property
            def versioned_resolver(self) -> dict[str, Any]:
                return {}

        self._yaml = YAML(pure=True)
        self._yaml.Resolver = TextResolver
        self._yaml.preserve_quotes = True
        self._yaml.width = _WIDTH
        if found := _INDENTED_ITEMS.search(text):
            offset = len(found[1])
            self._yaml.indent(mapping=2, sequence=offset + 2, offset=offset)
        self.root: Any = self._yaml.load(text)
        # Comment lines to append at the end of the document.
        self._end = ""

    def result(self) -> str:
        """Return the text of the changed document."""
        target = io.StringIO()
        self._yaml.dump(self.root, target)
        return target.getvalue() + self._end

    def update(self, node: Any, old: Mapping[Any, Any], new: Mapping[Any, Any]) -> None:
        """Change the node of a mapping from the value `old` to the value `new`."""
        for key in old.keys() - new.keys():
            node.pop(key, None)
        for key, value in new.items():
            present = old.get(key)
            if key in old and _same(present, value):
                continue
            if key in node and isinstance(value, dict) and isinstance(present, dict):
                self.update(node[key], present, value)
            elif key in node and _are_entries(present, value):
                self._update_entries(key, node[key], old[key], value)
            else:
                node[key] = self._node(value)

    def _update_entries(self, key: str, node: Any, old: list[Any], new: list[Any]) -> None:
        """Change the node of a list of named entries from the value `old` to the value `new`."""
        new_entries = {each["name"]: each for each in new if _has_name(each)}
        names = [each["name"] if _has_name(each) else None for each in old]
        for index in reversed(range(len(old))):
            if names[index] in new_entries:
                self.update(node[index], old[index], new_entries[names[index]])
            elif names[index] is not None:
                # Drop the comment on the entry's last line, and keep the comment lines below the entry.
                lines = _comment_lines(_last_comment(node[index]))[1:]
                del node[index]
                self._add_comment(lines, key, node, index)
        if not node and node.ca.comment:
            first, others = node.ca.comment
            lines = [line for token in (first, *(others or ())) for line in _comment_lines(token)]
            self._add_comment(lines, key, node, 0)
            node.ca.comment = None
            self.root.ca.items.get(key, [])[2:] = [None, None]
        if not old:
            node.fa.set_block_style()
        node.extend(self._node(each) for name, each in new_entries.items() if name not in names)

    def _add_comment(self, lines: list[str], key: str, entries: Any, index: int) -> None:
        """Move the comment lines below a removed entry to the next node.

        The comment describes the next node, but ruamel.yaml stores the comment with the removed entry.
        """
        text = "\n".join(line.removeprefix("#").strip() for line in lines if line)
        keys = list(self.root)
        following = keys[keys.index(key) + 1 :] if key in keys else []
        if not text:
            return
        if index < len(entries):
            entries.yaml_set_comment_before_after_key(index, before=text, indent=entries.lc.col)
        elif following:
            self.root.yaml_set_comment_before_after_key(following[0], before=text)
        else:
            self._end += "".join(f"# {line}\n" for line in text.splitlines())

    def _node(self, value: object) -> Any:
        """Return ruamel.yaml's node tree of a value, with quotes where YAML 1.1 needs quotes."""
        return self._yaml.load(dump(value))


def _last_comment(node: Any) -> Any:
    """Return the comment after the last scalar of a node."""
    token = None
    while hasattr(node, "ca") and node:
        last = next(reversed(node)) if isinstance(node, dict) else len(node) - 1
        token = node.ca.items.get(last, [None] * 3)[2]
        node = node[last]
    return token


def _comment_lines(token: Any) -> list[str]:
    return [line.strip() for line in token.value.splitlines()] if token is not None else []
