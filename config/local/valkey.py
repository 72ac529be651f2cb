"""The embedded Valkey: the broker, which also holds heartbeats and rate limits.

It stores nothing on disk. Messages only wake workers: all work to do is in the database, and beat publishes again what
a broker forgot. The server listens on 127.0.0.1 only and requires a password.
"""

import contextlib
import os
import signal
from pathlib import Path

from config.local.accounts import choose_server_account, make_private_directory
from config.local.binaries import valkey_binary
from config.local.launch import Launch, Server
from config.local.ports import free_port, is_free
from config.local.server_records import ensure_server_record, read_server_record, update_server_record


def valkey_url(home: Path) -> str:
    """Return the URL of the embedded Valkey of `home`, at the port of its last start.

    Raises HomeError if it was never started.
    """
    record = read_server_record(home, "valkey")
    return f"redis://:{record['password']}@127.0.0.1:{record['port']}/0"


def change_occupied_port(home: Path) -> None:
    """Choose another port if another program listens on the recorded one. Our own server must not be running."""
    port = ensure_server_record(home, "valkey").get("port")
    if port and not is_free("127.0.0.1", port):
        update_server_record(home, "valkey", port=free_port())


def prepare_valkey(home: Path, port: int | None = None) -> Launch:
    """Prepare the start of the server of `home` at `port` (None: the port of its last start); return how to start it.

    Raises HomeError if it cannot be run at all.
    """
    directory = home / "valkey"
    account = choose_server_account(directory)
    make_private_directory(directory, account)
    record = ensure_server_record(home, "valkey")
    port = port or record.get("port") or free_port()
    program = valkey_binary(home, account)
    update_server_record(home, "valkey", port=port, program=os.path.realpath(program))
    config = directory / "valkey.conf"
    config.unlink(missing_ok=True)
    config.touch(mode=0o600)
    config.write_text(
        f"bind 127.0.0.1\nport {port}\nrequirepass {record['password']}\n"
        'daemonize no\nsave ""\nappendonly no\nmaxmemory-policy noeviction\ntcp-backlog 511\nloglevel notice\n'
    )
    # The server reads its configuration from standard input: the list of processes must not show the password, and
    # `account` may not be able to reach the file.
    return Launch([str(program), "-"], directory, account, signal.SIGTERM, stdin=config)


def start_valkey(home: Path, port: int | None = None) -> Server:
    """Start the embedded Valkey of `home`, which is empty then, and wait until it answers."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "logs").mkdir(mode=0o700, exist_ok=True)
    prepare_valkey(home, port)  # chooses the port
    url = valkey_url(home)
    server = Server(
        "Valkey", url, home / "logs" / "valkey.log", lambda: valkey_answers(url), lambda: prepare_valkey(home)
    )
    server.start()
    return server


def valkey_answers(url: str) -> bool:
    """Return whether the broker at `url` answers within 2 s."""
    import redis

    try:
        with contextlib.closing(redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False
