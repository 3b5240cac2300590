"""Suggestions for mistyped names."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return a sentence that names the most similar candidates, after a space, or nothing."""
    similar = get_close_matches(name, sorted(set(candidates)), n=3)
    return f" Did you mean {' or '.join(similar)}?" if similar else ""
