"""What every rule stands on: the unit of work, errors, the audit trail, job rows, cursors, advisory-lock keys.

`unit_of_work` is the only module of the project that commits. Statements of frequent operations are constants of
their modules throughout, because SQLAlchemy takes longer to build a statement than PostgreSQL to execute it.
May import: models and config.
"""
