"""Connection poolers for tests: PgBouncer, and one of a hundred lines for machines without it."""

import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import psycopg2
from sqlalchemy import URL, make_url

from config.local.accounts import choose_server_account
from config.local.postgres import libpq_url

SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102
PARAMETERS = {
    "server_version": "18.0",
    "server_encoding": "UTF8",
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "integer_datetimes": "on",
    "standard_conforming_strings": "on",
}


class SmallPooler:
    """A pooler for the simple query protocol that psycopg2 speaks, with `size` sessions at most.

    With `mode` "transaction" a client has a session for each of its transactions: the one that was given back last, or
    with `in_turn` the one that was given back first. With "session" it has the same one until it disconnects.
    """

    def __init__(self, url: str, mode: str, size: int = 5, *, in_turn: bool = False) -> None:
        self.mode, self.in_turn = mode, in_turn
        self.clients_seen = 0
        # libpq authenticates; its sockets are then used directly.
        self._owners = [psycopg2.connect(libpq_url(url)) for _ in range(size)]
        self._free = [socket.socket(fileno=os.dup(owner.fileno())) for owner in self._owners]
        for session in self._free:
            session.setblocking(True)
        self._given_back = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = URL.create("postgresql", "ecm", "unused", "127.0.0.1", port, "ecm").render_as_string(False)
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        """Close everything."""
        self._listener.close()
        for owner in self._owners:
            owner.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.clients_seen += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        session = None
        try:
            if not self._greet(client):
                return
            while True:
                kind, message = _receive(client)
                if kind == b"X":
                    return
                assert kind == b"Q", kind
                session = session or self._take()
                session.sendall(message)
                if self._relay(session, client) == b"I" and self.mode == "transaction":
                    session = self._give_back(session)
        except OSError:
            pass
        finally:
            client.close()
            with suppress(OSError):  # the pooler is stopped
                if session is not None:
                    for reset in (b"ROLLBACK\0", b"DISCARD ALL\0"):
                        session.sendall(_message(b"Q", reset))
                        self._relay(session, None)
                    self._give_back(session)

    def _greet(self, client: socket.socket) -> bool:
        """Read what a client begins with, and log it in without a password, as PgBouncer would."""
        while True:
            length, code = struct.unpack("!ii", _exactly(client, 8))
            words = _exactly(client, length - 8)
            if code == CANCEL_REQUEST:
                return False
            if code not in (SSL_REQUEST, GSS_REQUEST):
                break
            client.sendall(b"N")
        if b"options\0" in words:
            client.sendall(_message(b"E", b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0"))
            return False
        client.sendall(_message(b"R", struct.pack("!i", 0)))
        for name, value in PARAMETERS.items():
            client.sendall(_message(b"S", f"{name}\0{value}\0".encode()))
        # The process is one of the pooler's own numbers.
        client.sendall(_message(b"K", struct.pack("!ii", 2**30 + self.clients_seen, 17)) + _message(b"Z", b"I"))
        return True

    def _take(self) -> socket.socket:
        with self._given_back:
            if not self._given_back.wait_for(lambda: self._free, 20):
                raise ConnectionError("no session is free")
            return self._free.pop(0 if self.in_turn else -1)

    def _give_back(self, session: socket.socket) -> None:
        with self._given_back:
            self._free.append(session)
            self._given_back.notify()

    @staticmethod
    def _relay(session: socket.socket, client: socket.socket | None) -> bytes:
        """Send a session's answer on; returns the state of its transaction, which is b"I" outside of one."""
        while True:
            kind, message = _receive(session)
            if client is not None:
                client.sendall(message)
            if kind == b"Z":
                return message[-1:]


def _message(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("!i", len(content) + 4) + content


def _receive(connection: socket.socket) -> tuple[bytes, bytes]:
    kind = _exactly(connection, 1)
    length = _exactly(connection, 4)
    return kind, kind + length + _exactly(connection, struct.unpack("!i", length)[0] - 4)


def _exactly(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        part = connection.recv(size - len(content))
        if not part:
            raise ConnectionError
        content += part
    return content


class PgBouncer:
    """PgBouncer in front of a database; needs the program."""

    def __init__(self, url: str, mode: str, directory: Path, size: int = 5) -> None:
        server = make_url(url)
        account = choose_server_account(directory / "none")  # it does not run as root either
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        host = server.host or server.query["host"]
        behind = f"host={host} port={server.port or server.query['port']} dbname={server.database}"
        configuration = Path("/tmp") / f"ecm-test-pgbouncer-{port}.ini"
        configuration.write_text(
            f"[databases]\necm = {behind} user={server.username} password={server.password}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
            f"pool_mode = {mode}\ndefault_pool_size = {size}\n"
        )
        self._configuration = configuration
        if account is not None:
            os.chown(configuration, account.uid, account.gid)
        configuration.chmod(0o600)
        self._process = subprocess.Popen(
            [program(), configuration],
            user=account and account.uid,
            group=account and account.gid,
            extra_groups=None if account is None else [],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.url = URL.create("postgresql", "ecm", "unused", "127.0.0.1", port, "ecm").render_as_string(False)
        end = time.monotonic() + 20
        while True:
            try:
                psycopg2.connect(self.url).close()
            except psycopg2.OperationalError:
                if time.monotonic() > end or self._process.poll() is not None:
                    self.stop()
                    raise
                time.sleep(0.1)
            else:
                return

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(10)
        self._configuration.unlink()


def program() -> str | None:
    """Return the path of PgBouncer, which packages put where only root looks for it; None without it."""
    return shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
