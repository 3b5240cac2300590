"""The figures of each fault, and the table for docs/failover.md."""

from collections.abc import Sequence
from dataclasses import dataclass

from ha.load import KINDS, Answer, Kind, longest_gap, unanswered_reviews


@dataclass(frozen=True, slots=True)
class Outcome:
    """What clients noticed of one fault.

    Attributes:
        through: how the services connect to the database.
        settled: seconds until all nodes worked again, those included that had to be resumed or started.
        gaps: the longest time without a successful answer, at the worse service, in seconds.
        blind: how long reviews failed in total, at the worse service, in seconds.
        let_in: how many reviews of revoked certificates failed, which NoOpinion answers with "allowed if RBAC allows".
        elsewhere: connections of the services to nodes that are not the primary, after the fault.
    """

    name: str
    through: str
    settled: float
    gaps: dict[Kind, float]
    blind: float
    let_in: int
    elsewhere: int

    def __str__(self) -> str:
        gaps = ", ".join(f"{kind} {self.gaps[kind]:.1f} s" for kind in KINDS)
        return (
            f"{self.name} ({self.through}): longest gaps: {gaps}; reviews failed for {self.blind:.1f} s"
            f" ({self.let_in} of revoked certificates); nodes settled after {self.settled:.0f} s;"
            f" {self.elsewhere} connections to standbys"
        )


def outcome(
    name: str,
    through: str,
    answers: Sequence[Answer],
    times: tuple[float, float, float],
    elsewhere: int,
    services: int,
) -> Outcome:
    """Compute the figures. `times`: start of the fault, nodes settled, end of the observation."""
    start, settled, end = times
    blind, let_in = unanswered_reviews(answers, start, end, services)
    return Outcome(
        name,
        through,
        settled - start,
        {kind: longest_gap(answers, kind, start, end, services) for kind in KINDS},
        blind,
        let_in,
        elsewhere,
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """A table in Markdown, with a line for each fault and way to connect."""
    lines = [
        "| fault | connected by | times | issuing | revoking | reviews | `NoOpinion` |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, through in dict.fromkeys((each.name, each.through) for each in outcomes):
        same = [each for each in outcomes if (each.name, each.through) == (name, through)]
        cells = [
            name,
            through,
            str(len(same)),
            *(_range([each.gaps[kind] for each in same]) for kind in KINDS),
        ]
        lines.append(f"| {' | '.join([*cells, _range([each.blind for each in same])])} |")
    return "\n".join(lines)


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return f"{low} s" if low == high else f"{low} to {high} s"
