"""The data: tables, migrations, the engine, and `models.wire`, what clients send and receive.

No rules: a constraint of a table or the shape of a body belongs here, what follows from them does not.
May import: config.
"""
