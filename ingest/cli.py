"""The `ecm-coordinator` command; each subcommand is imported only when it is asked for, so that --help is quick."""

import importlib

import click

COMMANDS = {
    "up": "ingest.commands.up:up",
    "migrate": "ingest.commands.migrate_command:migrate",
    "backup": "ingest.commands.backup:backup",
    "restore": "ingest.commands.backup:restore",
    "recalculate-effort": "ingest.commands.recalculation_command:recalculate_effort",
    "composites": "ingest.commands.composites_commands:composites",
    "projects": "ingest.commands.projects_commands:projects",
    "factors": "ingest.commands.factors_commands:factors",
    "submissions": "ingest.commands.submissions_commands:submissions",
    "doctor": "ingest.commands.doctor:doctor",
    "work": "ingest.commands.leases_commands:work",
    "tlevel": "ingest.commands.tlevel:tlevel",
    "clients": "ingest.commands.clients_commands:clients",
    "agent": "agent.cli:agent",
    "demo": "bench.demo:demo",
}
SUMMARIES = {
    "up": "Run everything on this machine.",
    "migrate": "Bring the database's schema to this version.",
    "backup": "Write everything into one file.",
    "restore": "Read such a file back.",
    "recalculate-effort": "Check and correct every composite's effort from its attempts.",
    "composites": "Numbers: import a list, look, change, remove.",
    "projects": "Projects: look, make, delete.",
    "factors": "Factors: look, and write them into a file.",
    "submissions": "Dead letters: look, and send again.",
    "doctor": "Check every invariant on the live database.",
    "work": "Leases and numbers kept from work: look, cancel, pause, resume.",
    "tlevel": "How much has been done: t-level and missed-factor chances of curves.",
    "clients": "Keys that clients prove their names with: add, look, revoke.",
    "agent": "Run GMP-ECM and send its results.",
    "demo": "The main job end to end, on a private server and real numbers.",
}


class LazyGroup(click.Group):
    """A group that knows its subcommands by name and imports one when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUMMARIES[name]) for name in COMMANDS])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ecm-coordinator")
def main() -> None:
    """ECM Coordinator: the server that a distributed factorization effort runs on."""
