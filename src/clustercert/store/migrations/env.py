"""Alembic's environment: runs migrations on the connection that `store.engine.migrate` passes."""

from alembic import context

from clustercert.store import tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=tables.metadata,
    # The owner of the connection commits the transaction, also on SQLite.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
