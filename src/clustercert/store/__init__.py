"""All SQL in the project: the engine, the tables, and one module of queries per domain."""
