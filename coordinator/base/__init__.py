"""The foundation of all rules: the unit of work, errors, the audit trail, job rows, cursors, advisory-lock keys.

`unit_of_work` is the only module of the project that commits. Every package of coordinator/ keeps the statements of its
frequent operations as constants, because SQLAlchemy takes longer to build a statement than PostgreSQL to execute it.
May import: models and config.
"""
