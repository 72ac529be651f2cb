"""The embedded servers: how they start, who can connect, and which data survives a kill."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import psycopg2
import pytest
import redis

from config.local.accounts import choose_server_account
from config.local.home import HomeError
from config.local.postgres import data_directory, libpq_url, prepare_postgres, start_postgres
from config.local.sockets import LONGEST_SOCKET_PATH
from config.local.valkey import start_valkey


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server(home):
    server = start_postgres(home, durable=False)
    yield server
    server.stop()


def query(url, statement):
    connection = psycopg2.connect(libpq_url(url))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone() if cursor.description else None
    finally:
        connection.close()


def test_the_application_is_no_superuser_and_owns_its_database(server):
    assert query(server.url, "SELECT current_user, rolsuper FROM pg_roles WHERE rolname = current_user") == (
        "ecm",
        False,
    )
    assert query(server.url, "SELECT pg_get_userbyid(datdba), pg_encoding_to_char(encoding) FROM pg_database "
                             "WHERE datname = current_database()") == ("ecm", "UTF8")  # fmt: skip


def test_nobody_connects_without_the_password(server):
    wrong = libpq_url(server.url).replace("ecm:", "ecm:not")
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(wrong)
    with pytest.raises(psycopg2.OperationalError, match=r"no pg_hba\.conf entry"):
        psycopg2.connect(wrong.replace("ecm:", "postgres:"))


def test_a_killed_server_restarts_at_its_url_with_the_committed_data(server):
    url, pid = server.url, server.pid
    query(url, "CREATE TABLE kept (n int)")
    query(url, "INSERT INTO kept VALUES (7)")
    server.kill()
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(libpq_url(url))
    server.start()
    assert (server.url, query(url, "SELECT n FROM kept")) == (url, (7,))
    assert server.pid != pid
    query(url, "DROP TABLE kept")


def test_data_is_private_to_an_account_that_is_not_root(server, home):
    found = data_directory(home).stat()
    assert found.st_uid != 0
    assert stat.S_IMODE(found.st_mode) == 0o700
    assert stat.S_IMODE((home / "servers.json").stat().st_mode) == 0o600


def test_a_cluster_of_another_major_version_is_refused_with_the_way_to_upgrade(server, home):
    version = data_directory(home) / "PG_VERSION"
    ours = version.read_text()
    version.write_text("15\n")
    try:
        with pytest.raises(HomeError, match=r"PostgreSQL 15.*To upgrade.*backup.*restore"):
            prepare_postgres(home)
    finally:
        version.write_text(ours)


def test_a_half_created_cluster_is_created_again_and_a_long_path_gets_a_short_socket(tmp_path):
    home = tmp_path / ("long" * 30)
    (home / "postgres" / "data.new").mkdir(parents=True)
    (home / "postgres" / "data.new" / "PG_VERSION").write_text("18\n")
    (home / "postgres").chmod(0o711)
    server = start_postgres(home, durable=False)
    try:
        assert query(server.url, "SELECT 1") == (1,)
        socket = Path(server.socket, ".s.PGSQL.5432")
        assert len(os.fsencode(socket)) <= LONGEST_SOCKET_PATH
        assert stat.S_IMODE(server.socket.stat().st_mode) == 0o700
    finally:
        server.stop()
    assert not server.socket.exists()


def test_a_lock_file_with_the_id_of_another_process_does_not_keep_the_server_from_starting(server, home):
    server.stop()
    owner = choose_server_account(data_directory(home))
    # PostgreSQL respects a lock file if its process id belongs to any process of the same account.
    other = subprocess.Popen(["sleep", "60"], user=owner.uid if owner else None)
    try:
        lock = data_directory(home) / "postmaster.pid"
        lock.write_text(f"{other.pid}\n{data_directory(home)}\n1\n5432\n\n\n 1 1\n")
        if owner:
            os.chown(lock, owner.uid, owner.gid)
        server.start()
        assert query(server.url, "SELECT 1") == (1,)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_valkey_asks_for_its_password_and_starts_empty_at_the_same_url(tmp_path):
    server = start_valkey(tmp_path)
    url = server.url
    try:
        with redis.Redis.from_url(url) as client:
            client.set("message", 1)
        with redis.Redis.from_url(url.replace(url.split("@")[0], "redis://")) as client:
            with pytest.raises(redis.AuthenticationError):
                client.ping()
        server.kill()
        server.start()
        assert server.url == url
        with redis.Redis.from_url(url) as client:
            assert client.dbsize() == 0
            assert client.config_get("bind") == {"bind": "127.0.0.1"}
    finally:
        server.stop()


def test_with_both_urls_set_nothing_embedded_is_imported():
    script = (
        "import sys; from ingest.commands import up;"
        "print(up._prepare_servers(None, {'DATABASE_URL': 'x', 'REDIS_URL': 'y'}),"
        "[name for name in sys.modules if 'embedded' in name or 'pgserver' in name])"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "() []"
