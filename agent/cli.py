"""`ecm-coordinator agent` and its commands."""

import click

from agent.run_command import run_command, send_command
from agent.stage_commands import stage1_command, stage2_command
from agent.work_command import work_command


@click.group()
def agent() -> None:
    """Run ECM curves with GMP-ECM and send the results to a coordinator."""


for command in (run_command, send_command, work_command, stage1_command, stage2_command):
    agent.add_command(command)
