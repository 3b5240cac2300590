"""Each kind of finding has a sentence, made of the facts that the check gives."""

import pytest

from clustercert.audit.findings import MAX_FINDINGS, Finding, FindingKind, VerificationReport

HEAD = "the newest checkpoint"
FACTS: dict[FindingKind, dict[str, object]] = {
    FindingKind.EVENT_CHANGED: {},
    FindingKind.COLUMNS_CHANGED: {"columns": "kind, at"},
    FindingKind.EVENT_UNREADABLE: {},
    FindingKind.LINE_UNREADABLE: {"first": 5, "last": 9},
    FindingKind.EVENTS_REMOVED: {"first": 5, "last": 9},
    FindingKind.DELETION_UNSEALED: {"first": 5, "last": 9},
    FindingKind.WAITING_REMOVED: {},
    FindingKind.WAITING_CHANGED: {"columns": "kind, at"},
    FindingKind.WAITING_UNREADABLE: {},
    FindingKind.SEALING_LATE: {"count": 3, "since": "2026-03-14T15:09:26+00:00"},
    FindingKind.OUTSIDE: {},
    FindingKind.CHECKPOINT_BACKDATED: {"row_size": 7},
    FindingKind.CHECKPOINT_DISORDERED: {"row_size": 7, "before": 5},
    FindingKind.CHECKPOINT_POSTDATED: {"row_size": 7, "at": "2026-03-14T15:09:26+00:00"},
    FindingKind.LOG_REPLACED: {"expected": 1, "found": "2, 3"},
    FindingKind.KEY_DIFFERS: {"stored": "log+aa+bb", "given": "log+cc+dd"},
    FindingKind.BEYOND_END: {"size": 4},
    FindingKind.OUT_OF_ORDER: {},
    FindingKind.EVENT_MOVED: {"home": 8},
    FindingKind.TILE_MISSING: {"level": 1, "index": 3},
    FindingKind.LEAF_MISMATCH: {},
    FindingKind.NODE_MISMATCH: {"level": 1, "index": 3, "first": 768, "last": 1023},
    FindingKind.SIZE_MISMATCH: {"source": "the tree", "size": 7, "signed": 6},
    FindingKind.TRUNCATED: {"head": HEAD, "head_size": 7, "size": 6},
    FindingKind.ROOT_MISMATCH: {"head": HEAD, "size": 7, "root": "aa", "computed": "bb"},
    FindingKind.CHECKPOINT_UNREADABLE: {"first": 1, "last": 4096},
    FindingKind.CHECKPOINT_INVALID: {"row_size": 7, "reason": "it is not signed"},
    FindingKind.CHECKPOINT_ROW_MISMATCH: {"row_size": 7, "size": 6, "root": "aa"},
    FindingKind.NEWEST_INVALID: {"reason": "it is not signed"},
    FindingKind.KEY_REPLACED: {"stored": "log+aa+bb", "derived": "log+cc+dd"},
    FindingKind.KEY_UNREADABLE: {"reason": "it is damaged"},
}


@pytest.mark.parametrize("kind", FindingKind)
def test_every_kind_has_a_sentence_with_all_its_facts(kind: FindingKind) -> None:
    text = Finding(kind, place=5, event_id=77, facts=FACTS[kind]).text()
    assert text.endswith(".")
    assert "{" not in text
    assert all(str(fact) in text for fact in FACTS[kind].values())


@pytest.mark.parametrize(
    ("kind", "facts", "text"),
    [
        (
            FindingKind.EVENTS_REMOVED,
            {"first": 2, "last": 2},
            "The event at leaf index 2 is missing, and no event",
        ),
        (
            FindingKind.EVENTS_REMOVED,
            {"first": 2, "last": 3},
            "The events at leaf indexes 2 to 3 are missing, and",
        ),
        (FindingKind.TILE_MISSING, {"level": -1, "index": 3}, "Entry bundle 3 is missing or too short."),
        (FindingKind.TILE_MISSING, {"level": 0, "index": 3}, "Tile 3 at level 0 is missing or too short."),
    ],
)
def test_texts_follow_the_facts(kind: FindingKind, facts: dict[str, object], text: str) -> None:
    assert Finding(kind, facts=facts).text().startswith(text)


def test_a_report_counts_the_findings_that_it_does_not_keep() -> None:
    report = VerificationReport()
    for place in range(MAX_FINDINGS + 5, 0, -1):
        report.add(FindingKind.EVENT_CHANGED, place=place)
    report.sort()
    assert (len(report.findings), report.found) == (MAX_FINDINGS, MAX_FINDINGS + 5)
    assert report.findings[0].place == 6
    assert report.findings[0].kind.problem == "changed"
