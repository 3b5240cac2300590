"""Suggestions for mistyped names."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return a space and a question with the most similar candidates, or an empty string if none is similar."""
    similar = get_close_matches(name, sorted(set(candidates)), n=3)
    return f" Did you mean {' or '.join(similar)}?" if similar else ""
