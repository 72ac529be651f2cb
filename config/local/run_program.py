"""What supervisord starts each program through: `python -P -m config.local.run_program HOME NAME [COMMAND]`.

It kills the stray processes of the program's last run, and then becomes the program. The servers `postgres` and
`valkey` have no COMMAND.
"""

import os
import sys
from pathlib import Path

from config.local.home import HomeError
from config.local.processes import TAG, die_with_parent, kill_strays, program_tag
from config.local.strays import server_signatures


def main(arguments: list[str]) -> None:
    """Kill the strays of the program that `arguments` name, and become it. Raises HomeError if a server cannot."""
    home, name = Path(arguments[0]), arguments[1]
    killed = kill_strays(home, name, server_signatures(home).get(name))
    if killed:
        print(f"killed {killed} processes of the last run of {name}", flush=True)
    os.environ[TAG] = program_tag(home, name)
    if name == "postgres":
        from config.local.postgres import prepare_postgres

        prepare_postgres(home).become()
    elif name == "valkey":
        from config.local.valkey import prepare_valkey

        prepare_valkey(home).become()
    else:
        die_with_parent()
        os.execv("/bin/sh", ["/bin/sh", "-c", f"exec {arguments[2]}"])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except HomeError as error:
        sys.exit(str(error))
