"""Alembic's environment: runs migrations on the connection that `store.engine.migrate` passes."""

from alembic import context

# The environment has no metadata, because a migration must not depend on what `store.tables` declares now. So each
# migration names its own constraints and indexes.
context.configure(
    connection=context.config.attributes["connection"],
    # The owner of the connection commits the transaction, also on SQLite.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
