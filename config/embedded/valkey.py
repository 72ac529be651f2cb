"""The embedded Valkey: the broker, and the place of heartbeats and rate limits.

It keeps nothing on disk. Messages are only a doorbell: what must happen is a row in the database, and upkeep rings
again for whatever a broker forgot. It listens on 127.0.0.1 alone and asks for a password.
"""

import contextlib
import signal
from pathlib import Path

from config.embedded.launch import Launch, Server
from config.embedded.software import valkey_binary
from config.home import own_directory, remember, remembered, server_owner
from config.processes import free_port, is_free


def valkey_url(home: Path, port: int | None = None) -> str:
    """The URL of the embedded Valkey of `home`, at `port`, or else at the port that the home remembers.

    The remembered port is kept as long as it is free or ours; otherwise another is chosen and remembered.
    """
    known = remembered(home, "valkey")
    port = port or known.get("port") or free_port()
    remember(home, "valkey", port=port)
    return f"redis://:{known['password']}@127.0.0.1:{port}/0"


def choose_port(home: Path) -> None:
    """Forget a remembered port that somebody else has taken meanwhile. Only for when our own server is not running."""
    port = remembered(home, "valkey").get("port")
    if port and not is_free("127.0.0.1", port):
        remember(home, "valkey", port=free_port())


def valkey_launch(home: Path) -> Launch:
    """Make everything ready for the server of `home` to start; returns how to start it."""
    directory = home / "valkey"
    owner = server_owner(directory)
    own_directory(directory, owner)
    valkey_url(home)  # settles the port
    known = remembered(home, "valkey")
    config = directory / "valkey.conf"
    config.unlink(missing_ok=True)
    config.touch(mode=0o600)
    config.write_text(
        f"bind 127.0.0.1\nport {known['port']}\nrequirepass {known['password']}\n"
        'daemonize no\nsave ""\nappendonly no\nmaxmemory-policy noeviction\ntcp-backlog 511\nloglevel notice\n'
    )
    # The configuration comes by standard input: the password must not show in the list of processes, and `owner`
    # may not be able to reach the file.
    return Launch([str(valkey_binary(home, owner)), "-"], directory, owner, signal.SIGTERM, stdin=config)


def start_valkey(home: Path, port: int | None = None) -> Server:
    """Start the embedded Valkey of `home` and wait until it answers. It starts empty, always."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "logs").mkdir(mode=0o700, exist_ok=True)
    url = valkey_url(home, port)
    server = Server(
        "Valkey", url, home / "logs" / "valkey.log", lambda: valkey_answers(url), lambda: valkey_launch(home)
    )
    server.start()
    return server


def valkey_answers(url: str) -> bool:
    """Whether the broker at `url` answers within 2 s."""
    import redis

    try:
        with contextlib.closing(redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False
