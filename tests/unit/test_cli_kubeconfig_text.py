"""Merging entries into kubeconfigs of other tools."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clustercert.cli.kubeconfig.text import LISTS, Changes, Kubeconfig, MalformedKubeconfig

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
MERGE = Changes(put=OURS)
BOMB = "a: &a0 [x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 10)
)
CHAIN = "a: &a0 [x]\n" + "".join(f"a{level}: &a{level} [*a{level - 1}]\n" for level in range(1, 40))
UNMERGE = Changes(remove={name: frozenset([NAME]) for name in LISTS})


def plain(text: str) -> dict[str, object]:
    """The parsed document, without empty fields."""
    return {key: value for key, value in (yaml.safe_load(text) or {}).items() if value not in (None, [], "")}


def check_round_trip(text: str) -> str:
    """Merge twice and unmerge. Returns the merged text."""
    original = Kubeconfig(text.encode())
    merged = original.changed(MERGE)
    document = plain(merged)
    for name, entries in OURS.items():
        found = document[name]
        assert isinstance(found, list)
        assert [entry for entry in found if entry.get("name") == NAME] == list(entries.values())
        assert [entry for entry in found if entry.get("name") != NAME] == (plain(text).get(name) or [])
    assert Kubeconfig(merged.encode()).changed(MERGE) == merged
    unmerged = Kubeconfig(merged.encode()).changed(UNMERGE)
    new = {"apiVersion": "v1", "kind": "Config"} if yaml.safe_load(text) is None else {}
    assert plain(unmerged) == new | plain(text)
    return merged


@pytest.mark.parametrize("path", sorted(SAMPLES.iterdir()), ids=lambda path: path.stem)
def test_kubeconfigs_of_other_tools_keep_their_entries(path: Path) -> None:
    text = path.read_text()
    merged = check_round_trip(text)
    if path.suffix == ".json":
        json.loads(merged)
    else:
        kept = [
            line
            for line in text.splitlines()
            if line.strip() not in ("clusters: []", "users: null", "contexts:")
        ]
        assert [line for line in kept if line not in merged.splitlines()] == []


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
    assert plain(Kubeconfig(text.encode()).changed(MERGE))


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


def test_a_list_that_is_repeated_elsewhere_is_not_extended() -> None:
    config = Kubeconfig(b"users: &u\n- name: a\n  user: {}\nextensions: *u\n")
    with pytest.raises(MalformedKubeconfig, match="without changing others"):
        config.changed(MERGE)


def test_an_entry_with_an_anchor_is_not_removed_while_others_refer_to_it() -> None:
    merged = Kubeconfig(b"users: []\n").changed(MERGE)
    referred = merged.replace("user:\n", "user: &mine\n", 1) + "x: *mine\n"
    assert yaml.safe_load(referred)["x"]
    with pytest.raises(MalformedKubeconfig, match="without changing others"):
        Kubeconfig(referred.encode()).changed(UNMERGE)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &x [*x]\n", "within its own anchor"),
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
        ("# " + "x" * 5_000_000, "4 MiB"),
    ],
)
def test_other_files_are_refused_in_one_sentence(text: str, reason: str) -> None:
    with pytest.raises(MalformedKubeconfig, match=reason) as caught:
        Kubeconfig(text.encode())
    assert "\n" not in caught.value.message


def test_bytes_outside_utf8_are_refused() -> None:
    with pytest.raises(MalformedKubeconfig, match="UTF-8"):
        Kubeconfig(b"\xff\xfe")


@pytest.mark.parametrize(
    "text", ["current-context: a # comment\n", "current-context:\n", "{}", "", "kind: Config"]
)
def test_the_current_context_can_be_set(text: str) -> None:
    changed = Kubeconfig(text.encode()).changed(Changes(put=OURS, current=NAME))
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
