"""Draws the figures for a growing store."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt  # must follow the choice of a backend without a screen

_COLOURS = {"SQLite": "#2e86ab", "PostgreSQL": "#e4572e"}
_PANELS = (
    (
        "Issued a second, 64 connections",
        {"steady_rate": "one cluster, steady", "spread_rate": "over many clusters"},
    ),
    (
        "p99, ms",
        {"show_p99_ms": "show a cluster", "page_p99_ms": "page of certificates", "find_p99_ms": "find one"},
    ),
    ("Start to ready, ms", {"start_ms": "2 workers"}),
)
_STYLES = ("o-", "s--", "^:")


def growth(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw rate, latencies and start-up time over the number of certificates as a PNG."""
    figure, panels = plt.subplots(1, len(_PANELS), figsize=(14, 4.2), layout="constrained")
    for panel, (title, lines) in zip(panels, _PANELS, strict=True):
        for database, colour in _COLOURS.items():
            sizes = [row for row in rows if row["database"] == database]
            for style, (key, label) in zip(_STYLES, lines.items(), strict=False):
                if sizes:
                    x = [row["certificates"] for row in sizes]
                    y = [row[key] for row in sizes]
                    panel.plot(x, y, style, color=colour, label=f"{database}, {label}")
        panel.set_xscale("log")
        panel.set_ylim(bottom=0)
        panel.set_title(title)
        panel.set_xlabel("certificates in the store")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)
