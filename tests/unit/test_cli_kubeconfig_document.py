"""Merging entries into kubeconfigs of other tools."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clustercert.cli.kubeconfig.document import CURRENT, LISTS, KubeconfigDocument
from clustercert.cli.yaml_io import MalformedYaml

SAMPLES = Path(__file__).parents[1] / "support" / "kubeconfigs"
NAME = "default-prod"
OURS = {
    "clusters": {
        NAME: {"name": NAME, "cluster": {"server": "https://10.0.0.5:6443", "insecure-skip-tls-verify": True}}
    },
    "users": {
        NAME: {
            "name": NAME,
            "user": {"exec": {"command": "kubectl-clustercert", "args": ["credential"], "env": None}},
        }
    },
    "contexts": {NAME: {"name": NAME, "context": {"cluster": NAME, "user": NAME}}},
}
BOMB = "a: &a0 [x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 10)
)
CHAIN = "a: &a0 [x]\n" + "".join(f"a{level}: &a{level} [*a{level - 1}]\n" for level in range(1, 40))


def merged(text: str, current: str | None = None) -> str:
    config = KubeconfigDocument(text.encode())
    for name, entries in OURS.items():
        config.put(name, entries[NAME])
    if current is not None:
        config.value[CURRENT] = current
    return config.changed_text()


def unmerged(text: str) -> str:
    config = KubeconfigDocument(text.encode())
    for name in LISTS:
        config.remove(name, NAME)
    return config.changed_text()


def plain(text: str) -> dict[str, object]:
    """The parsed document, without empty fields."""
    return {key: value for key, value in (yaml.safe_load(text) or {}).items() if value not in (None, [], "")}


def check_round_trip(text: str) -> str:
    """Merge twice and unmerge. Returns the merged text."""
    changed = merged(text)
    document = plain(changed)
    for name, entries in OURS.items():
        found = document[name]
        assert isinstance(found, list)
        assert [entry for entry in found if entry.get("name") == NAME] == list(entries.values())
        assert [entry for entry in found if entry.get("name") != NAME] == (plain(text).get(name) or [])
    assert merged(changed) == changed
    new = {"apiVersion": "v1", "kind": "Config"} if not yaml.safe_load(text) else {}
    assert plain(unmerged(changed)) == new | plain(text)
    return changed


@pytest.mark.parametrize("path", sorted(SAMPLES.iterdir()), ids=lambda path: path.stem)
def test_kubeconfigs_of_other_tools_keep_their_entries(path: Path) -> None:
    text = path.read_text()
    changed = check_round_trip(text)
    if path.suffix == ".json":
        json.loads(changed)
    else:
        kept = [
            line
            for line in text.splitlines()
            if line.strip() not in ("clusters: []", "users: null", "contexts:")
        ]
        assert [line for line in kept if line not in changed.splitlines()] == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "# nothing yet\n",
        "---\n",
        "{}",
        '{"clusters": null, "users": [], "contexts":[]}',
        "clusters: []",
        "clusters:\nusers: ~\ncontexts: null  # none\ncurrent-context:",
        "clusters:\n# a comment\n- name: a\n  cluster: {server: 'https://a'}\n# after it\nusers: [{name: a, user: {}}]",
        "clusters:\n    - {name: a, cluster: {}}\n    -   name: b\n        cluster:\n            server: x\nusers:\n",
        "clusters:\r\n- name: a\r\n  cluster: {}\r\nkind: Config\r\n",
        "\ufeffkind: Config\n",
        "contexts:\n- name: ä\n  context: {namespace: 'on'}\nfoo: 0123\nbar: 1_0\n",
    ],
)
def test_every_form_of_a_list_can_be_extended(text: str) -> None:
    check_round_trip(text.removeprefix("\ufeff"))
    assert plain(merged(text))


ALIASES = """\
x: &x {server: 'https://a'}
clusters:
- name: a
  cluster: *x
- name: b
  cluster: *x # the same
users: []
---
clusters:
- &c
  name: a
  cluster: {}
contexts:
- name: c
  context: {cluster: a, extensions: [*c]}
- *c
---
x: &x
  server: y
clusters: [{name: a, cluster: *x}, {name: b, cluster: *x}]
users:
- {name: &n a, user: {}}
---
x: &x
  server: y
clusters:
- name: a
  cluster:
    <<: *x
    proxy-url: z
- name: b
  cluster:
    <<: *x
---
kind: &k Config
clusters:
- name: *k
  cluster: {}
x:
  *k : *k
"""


@pytest.mark.parametrize("text", ALIASES.split("---\n"))
def test_anchors_and_aliases_stay(text: str) -> None:
    marks = re.compile(r"[&*]\w+")
    assert marks.findall(check_round_trip(text)) == marks.findall(text)


@pytest.mark.parametrize("text", ["clusters: !!seq\n- name: a\n  cluster: !!map {}\n", "users: !!null ''\n"])
def test_lists_with_tags_can_be_changed(text: str) -> None:
    assert yaml.safe_load(merged(text))["users"] == list(OURS["users"].values())


def test_a_field_can_change_its_type() -> None:
    text = merged("kind: Config\n")
    config = KubeconfigDocument(text.encode())
    config.put("users", {"name": NAME, "user": {"exec": {"command": "x", "args": None, "env": [1]}}})
    assert KubeconfigDocument(config.changed_text().encode()).value == config.value


def test_a_list_that_is_repeated_elsewhere_is_not_extended() -> None:
    with pytest.raises(MalformedYaml, match="without changing others"):
        merged("users: &u\n- name: a\n  user: {}\nextensions: *u\n")


def test_what_refers_to_a_removed_entry_keeps_its_content() -> None:
    referred = merged("users: []\n").replace("user:\n", "user: &mine\n", 1) + "x: *mine\n"
    content = yaml.safe_load(referred)["x"]
    assert content
    assert yaml.safe_load(unmerged(referred))["x"] == content


COMMENTS = """\
# about the file
clusters:
# about a
- name: a  # the first
  cluster:
    server: "https://a"
# about ours
- name: default-prod
  cluster: {}
# about b
- name: b
  cluster:
    server: 'https://b'
users:
- name: default-prod
  user: {}
# about contexts
contexts: []
# about the end
"""


def test_comments_of_other_entries_stay_where_they_are() -> None:
    comments = [line for line in COMMENTS.splitlines() if line.startswith("#")]
    changed = merged(COMMENTS)
    assert [line for line in changed.splitlines() if line.startswith("#")] == comments
    left = unmerged(changed).splitlines()
    assert [line for line in left if line.startswith("#")] == comments
    assert left.index("# about b") + 1 == left.index("- name: b")
    assert left.index("# about contexts") + 1 == left.index("contexts: []")
    assert set(COMMENTS.splitlines()) - set(left) == {
        "- name: default-prod",
        "  cluster: {}",
        "users:",
        "  user: {}",
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &x [*x]\n", "a node that contains the alias"),
        ("a: *x\n", "line 1"),
        (BOMB, "repeat too much"),
        (CHAIN, "repeat too much"),
        ("a: [" * 40, "nested"),
        ("a: b: c", "line 1"),
        ("- a", "mapping"),
        ("x", "mapping"),
        ("clusters: {}", "list"),
        ("a: 1\n---\nb: 2\n", "documents"),
        ("a: 1\na: 2\n", "twice"),
        ("\x00", "YAML"),
    ],
)
def test_other_files_are_refused_in_one_sentence(text: str, reason: str) -> None:
    with pytest.raises(MalformedYaml, match=reason) as caught:
        KubeconfigDocument(text.encode())
    assert "\n" not in caught.value.message


def test_bytes_outside_utf8_are_refused() -> None:
    with pytest.raises(MalformedYaml, match="UTF-8"):
        KubeconfigDocument(b"\xff\xfe")


@pytest.mark.parametrize(
    "text", ["current-context: a # comment\n", "current-context:\n", "{}", "", "kind: Config"]
)
def test_the_current_context_can_be_set(text: str) -> None:
    changed = merged(text, NAME)
    assert yaml.safe_load(changed)["current-context"] == NAME
    assert ("# comment" in changed) == ("# comment" in text)


NAMES = st.text("abc-./:@ #'\"", min_size=1, max_size=6).filter(lambda name: name != NAME)
SCALARS = st.one_of(NAMES, st.booleans(), st.none(), st.integers(), st.just("line\nbreak"), st.just("on"))


def entries(noun: str) -> st.SearchStrategy[list[Any]]:
    inner = st.dictionaries(
        NAMES, st.one_of(SCALARS, st.dictionaries(NAMES, SCALARS, max_size=2)), max_size=3
    )
    entry: st.SearchStrategy[Any] = st.fixed_dictionaries({"name": NAMES, noun: inner})
    return st.lists(entry, max_size=3, unique_by=lambda found: str(found["name"]))


DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "apiVersion": st.just("v1"),
        "clusters": st.one_of(st.none(), entries("cluster")),
        "users": st.one_of(st.none(), entries("user")),
        "contexts": st.one_of(st.none(), entries("context")),
        "current-context": st.sampled_from(["", "a"]),
        "preferences": st.dictionaries(NAMES, SCALARS, max_size=2),
    },
)
STYLES = st.sampled_from(["block", "flow", "json", "indented", "mixed"])


@given(document=DOCUMENTS, style=STYLES)
def test_merge_then_unmerge_gives_an_equal_document(document: dict[str, object], style: str) -> None:
    if style == "json":
        text = json.dumps(document, indent=2)
    elif style == "indented":
        text = "".join(f"  {line}\n" for line in yaml.safe_dump(document).splitlines())
    else:
        text = yaml.safe_dump(
            document, default_flow_style={"block": False, "flow": True, "mixed": None}[style]
        )
    check_round_trip(text)
