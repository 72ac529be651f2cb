"""The subcommands of `ecm-coordinator`, one module per subject; ingest/cli.py imports a module when its command runs.

Commands work on the database directly, through the same functions of coordinator/ as the routes. They may import
everything below ingest/ and the answers that its routes shape; slow libraries are imported inside functions, so that
--help is quick.
"""
