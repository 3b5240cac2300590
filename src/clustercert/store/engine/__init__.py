"""The engine: connections, transactions, bulk inserts, the generation number, leases, migrations."""
