"""`backup` and `restore`: a restored home equals the saved one, and a failed restore changes nothing."""

import tarfile

import psycopg2
import pytest
from click.testing import CliRunner

from config.local.home import lock_home, prepare_home
from config.local.postgres import libpq_url, start_postgres
from ingest.commands.backup import backup, restore
from models import migrate

pytestmark = pytest.mark.stack


@pytest.fixture
def home(tmp_path):
    """A home whose database holds one project and whose residues hold one file; nothing runs."""
    home = prepare_home(tmp_path / "home")
    server = start_postgres(home, durable=False)
    migrate.upgrade(server.url)
    server.stop()
    projects(home, "INSERT INTO projects (name) VALUES ('Cunningham') RETURNING name")
    (home / "residues" / "7").write_bytes(b"METHOD=ECM;\x00\xff")
    return home


def projects(home, statement="SELECT name FROM projects ORDER BY name"):
    server = start_postgres(home, durable=False)
    connection = psycopg2.connect(libpq_url(server.url))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return [name for (name,) in cursor.fetchall()]
    finally:
        connection.close()
        server.stop()


def run(command, *arguments):
    done = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def test_a_backup_is_restored_in_another_home(home, tmp_path):
    file = tmp_path / "saved.tar"
    assert run(backup, file, "--home", home)[0] == 0
    assert file.stat().st_mode & 0o777 == 0o600
    code, output = run(restore, file, "--home", tmp_path / "other")
    assert (code, "restored" in output) == (0, True)
    assert projects(tmp_path / "other") == ["Cunningham"]
    assert (tmp_path / "other" / "residues" / "7").read_bytes() == b"METHOD=ECM;\x00\xff"


def test_data_is_replaced_only_by_force_and_a_damaged_backup_replaces_nothing(home, tmp_path):
    file = tmp_path / "saved.tar"
    run(backup, file, "--home", home)
    projects(home, "INSERT INTO projects (name) VALUES ('repunits') RETURNING name")
    (home / "residues" / "8").write_bytes(b"later")

    code, output = run(restore, file, "--home", home)
    assert code == 1
    assert "rows in projects" in output
    assert "--force" in output

    damaged = tmp_path / "damaged.tar"
    content = bytearray(file.read_bytes())
    with tarfile.open(file) as tar:
        dump = tar.getmember("database.dump")
    middle = dump.offset_data + dump.size * 3 // 4
    content[middle : middle + 200] = b"?" * 200
    damaged.write_bytes(content)
    code, output = run(restore, damaged, "--home", home, "--force")
    assert code == 1
    assert "nothing was changed" in output
    assert projects(home) == ["Cunningham", "repunits"]
    assert (home / "residues" / "8").read_bytes() == b"later"

    assert run(restore, file, "--home", home, "--force")[0] == 0
    assert projects(home) == ["Cunningham"]
    assert [path.name for path in (home / "residues").iterdir()] == ["7"]


def test_the_database_of_a_running_up_can_be_saved_but_not_restored(home, tmp_path):
    file = tmp_path / "saved.tar"
    server = start_postgres(home, durable=False)
    try:
        with lock_home(home):
            assert run(backup, file, "--home", home)[0] == 0
            code, output = run(restore, file, "--home", home, "--force")
    finally:
        server.stop()
    assert code == 1
    assert "stop it first" in output


def test_an_external_database_is_saved_and_restored_by_its_url(home, tmp_path, monkeypatch):
    file = tmp_path / "saved.tar"
    server = start_postgres(home, durable=False)
    try:
        monkeypatch.setenv("DATABASE_URL", server.url.replace("+psycopg2", ""))  # as people write it
        monkeypatch.setenv("ECM_HOME", str(tmp_path / "client"))
        assert run(backup, file)[0] == 0
        assert run(restore, file)[0] == 1
        assert run(restore, file, "--force")[0] == 0
    finally:
        server.stop()
    assert not (tmp_path / "client" / "postgres").exists()


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100])
def test_a_file_that_is_not_a_backup_is_refused(tmp_path, content):
    file = tmp_path / "other"
    file.write_bytes(content)
    code, output = run(restore, file, "--home", tmp_path / "home")
    assert code == 1
    assert "is not a backup" in output


@pytest.mark.parametrize("name", ["../outside", "residues/../../outside", "/tmp/outside", "link"])
def test_a_backup_that_would_write_elsewhere_is_refused(tmp_path, name):
    file = tmp_path / "hostile.tar"
    member = tarfile.TarInfo(name)
    if name == "link":
        member.type, member.linkname = tarfile.SYMTYPE, "/tmp"
    with tarfile.open(file, "w") as tar:
        tar.addfile(member)
    code, output = run(restore, file, "--home", tmp_path / "home")
    assert code == 1
    assert "neither a file nor a directory of a backup" in output
    assert not (tmp_path / "outside").exists()
