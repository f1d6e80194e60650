"""Alembic's entry: run the migrations on the connection that `database.Database` opened."""

from alembic import context

connection = context.config.attributes["connection"]
# SQLite cannot alter a column in place; Alembic copies the table instead.
context.configure(connection=connection, render_as_batch=connection.dialect.name == "sqlite")
with context.begin_transaction():
    context.run_migrations()
