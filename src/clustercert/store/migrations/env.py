"""What Alembic runs to apply the migrations to the connection that `store.migrate` hands it."""

from alembic import context

from clustercert.store import tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=tables.metadata,
    # Whoever opened the connection's transaction commits everything at once, on SQLite too.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
