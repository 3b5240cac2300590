"""Changes a stored log like an attacker who can write to the database."""

import hashlib

from clustercert.merkle.tree import leaf_hash
from support.stores import Store, blob

# Large enough for every kind of tile below level 2. A larger log would take longer.
SIZE = 700


def event_id(store: Store, place: int) -> int:
    [(found,)] = store.rows("SELECT event_id FROM audit_place WHERE leaf_index = ?", place)
    return int(str(found))


def rewritten(store: Store, place: int, *levels: int) -> None:
    """Change an event like an attacker who can write to the database: its row, its leaf, and part of the tree."""
    body = b'{"kind":"made.up"}'
    [(salt,)] = store.rows(
        "SELECT salt FROM audit_event WHERE id = ?",
        event_id(store, place),
    )
    data = hashlib.sha256(blob(salt) + body).digest()
    store.execute(
        "UPDATE audit_event SET body = ?, commitment = ? WHERE id = ?",
        body,
        data,
        event_id(store, place),
    )
    for level in levels:
        value = data if level < 0 else leaf_hash(data)
        [(hashes,)] = store.rows(
            'SELECT hashes FROM audit_tile WHERE level = ? AND "index" = ?', level, place // 256
        )
        at = place % 256 * 32
        changed = blob(hashes)[:at] + value + blob(hashes)[at + 32 :]
        store.execute(
            'UPDATE audit_tile SET hashes = ? WHERE level = ? AND "index" = ?', changed, level, place // 256
        )
