"""The `ecm-coordinator` command. It imports a subcommand only when that is run, so that --help is quick."""

import importlib

import click

COMMANDS = {
    "up": "ingest.commands.up:up",
    "migrate": "ingest.commands.migrate_command:migrate",
    "backup": "ingest.commands.backup:backup",
    "restore": "ingest.commands.backup:restore",
    "composites": "ingest.commands.composites_commands:composites",
    "projects": "ingest.commands.projects_commands:projects",
    "factors": "ingest.commands.factors_commands:factors",
    "submissions": "ingest.commands.submissions_commands:submissions",
    "doctor": "ingest.commands.doctor:doctor",
    "work": "ingest.commands.leases_commands:work",
    "tlevel": "ingest.commands.tlevel:tlevel",
    "clients": "ingest.commands.clients_commands:clients",
    "agent": "agent.cli:agent",
    "demo": "ingest.commands.demo:demo",
}
SUMMARIES = {
    "up": "Run the whole coordinator on this machine.",
    "migrate": "Migrate the database schema to this version.",
    "backup": "Write the database and the residue files to one file.",
    "restore": "Restore the database and the residue files from a backup.",
    "composites": "Import, list, change and delete numbers.",
    "projects": "List, create and delete projects.",
    "factors": "List factors and export them to a file.",
    "submissions": "List and retry failed results.",
    "doctor": "Check every invariant of the live database.",
    "work": "List and cancel leases; pause and resume numbers.",
    "tlevel": "Compute the t-level that curves amount to.",
    "clients": "Add, list and revoke the keys of clients.",
    "agent": "Run GMP-ECM and submit its results.",
    "demo": "Demonstrate the whole coordinator on a private server.",
}


class LazyGroup(click.Group):
    """A group that lists its subcommands by name and imports one when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUMMARIES[name]) for name in COMMANDS])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ecm-coordinator")
def main() -> None:
    """Run and administer ECM Coordinator, the server of a distributed factorization effort."""
