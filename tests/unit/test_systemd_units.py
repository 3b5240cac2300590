"""deploy/*.service: how the units belong together."""

from pathlib import Path

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"


def test_a_reload_of_the_api_reloads_the_webhooks_too() -> None:
    """Otherwise they would judge by the groups of the former policy."""
    unit, _, _ = (DEPLOY / "clustercert-webhook@.service").read_text().partition("[Service]")
    assert "ReloadPropagatedFrom=clustercert.service" in unit.splitlines()
