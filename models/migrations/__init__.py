"""Alembic's migrations of the schema, one module for each revision in `versions`. May import: models.tables."""
