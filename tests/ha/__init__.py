"""Failovers of a real PostgreSQL under Patroni, under load: `make ha` runs all faults, `make test-all` three kills."""
