"""Faults that last until the operator acts: each is named with its remedy, and never called temporary."""

import contextlib
import errno
import os
import pwd
import shutil
import socketserver
import ssl
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from clustercert.cli.session import require_database
from clustercert.model.errors import StoreFault, Unavailable
from clustercert.pki.certificates import chain_pem
from clustercert.pki.client_ca import new_client_ca
from clustercert.pki.keys import key_pem, new_key
from clustercert.server.tls_files import new_server_certificate
from clustercert.settings import load
from clustercert.store.engine.database import Database
from clustercert.store.engine.failures import failures_translated
from support import postgres
from support.stores import Store, event, sqlite_url

NOBODY = 65534


@contextlib.asynccontextmanager
async def opened(url: str, data_dir: Path | None = None) -> AsyncIterator[Database]:
    database = Database(url, busy_seconds=0.5, data_dir=data_dir)
    try:
        yield database
    finally:
        await database.close()


async def faults(database: Database) -> set[str]:
    """What is said about a read, a write, and a certificate's way to the ledger."""

    async def read() -> None:
        await database.ping()

    async def write() -> None:
        await database.record(event())

    async def run() -> None:
        await database.run(lambda _connection: None)

    said = set()
    for attempt in (read, write, run):
        with pytest.raises(StoreFault) as caught:
            await attempt()
        assert caught.value.message == "The service can't use its database. Ask its operator to read the log."
        assert caught.value.retry_after is None
        said.add(caught.value.reason)
    return said


async def fault(database: Database) -> str:
    [reason] = await faults(database)
    return reason


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    file = tmp_path / "garbage.db"
    file.write_bytes(b"This is a letter to my grandmother." * 1000)
    async with opened(sqlite_url(file)) as database:
        assert f"{file} is not an SQLite database" in await fault(database)


async def test_a_damaged_file(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[100:] = bytes([0xA5]) * (len(content) - 100)
    file.write_bytes(content)
    async with opened(sqlite_url(file)) as database:
        with pytest.raises(StoreFault) as caught:
            await database.ping()
    assert "damaged. Stop the service and restore a backup" in caught.value.reason


async def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    async with opened(sqlite_url(tmp_path / "missing" / "some.db")) as database:
        assert f"The folder {tmp_path / 'missing'} does not exist. Create it" in await fault(database)


async def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    async with opened(sqlite_url(tmp_path)) as database:
        assert f"{tmp_path} is a folder." in await fault(database)


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that every user can enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Run as a user who is not root."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("denied", ["file", "folder"])
async def test_missing_permissions(file: Path, public_folder: Path, denied: str) -> None:
    path = Path(shutil.copy(file, public_folder / "some.db"))
    path.chmod(0o444 if denied == "file" else 0o666)
    public_folder.chmod(0o777 if denied == "file" else 0o555)
    async with opened(sqlite_url(path)) as database:
        with unprivileged(), pytest.raises(StoreFault) as caught:
            await database.record(event())
    named = path if denied == "file" else public_folder
    if os.geteuid() == 0:
        assert f"has no read and write access to {named}, which belongs to " in caught.value.reason
        assert caught.value.reason.endswith(f"or change the owner and mode of {named}.")
    else:
        assert f" owns {named}, but its mode " in caught.value.reason
        assert caught.value.reason.endswith(f" {named}`.")


async def test_a_folder_that_may_not_be_entered(public_folder: Path) -> None:
    data = public_folder / "data"
    data.mkdir(mode=0o700 if os.geteuid() == 0 else 0o000)
    settings = load(None, data_dir=data)
    try:
        async with opened(sqlite_url(data / "clustercert.db")) as database:
            with unprivileged():
                assert not settings.demo
                # It says nothing here, since the file may exist.
                require_database(settings, None)
                with pytest.raises(StoreFault) as caught:
                    await database.ping()
    finally:
        data.chmod(0o700)
    assert f" {data}, " in caught.value.reason
    assert "clustercert.db" not in caught.value.reason


async def test_a_folder_below_one_that_may_not_be_entered(public_folder: Path) -> None:
    private = public_folder / "private"
    private.mkdir(mode=0o700 if os.geteuid() == 0 else 0o000)
    try:
        async with opened(sqlite_url(private / "data" / "clustercert.db")) as database:
            with unprivileged(), pytest.raises(StoreFault) as caught:
                await database.ping()
    finally:
        private.chmod(0o700)
    # It says nothing of the folder `data`, which does not exist.
    assert f"can't enter the folder {private}, which belongs to " in caught.value.reason
    assert f"{private}/" not in caught.value.reason


@pytest.mark.parametrize(
    ("denied", "remedy"),
    [("file", "0444 denies reading or writing. Run `chmod u+rw"), ("folder", "0500 denies")],
)
async def test_a_mode_that_denies_access_to_the_owner(
    file: Path, public_folder: Path, denied: str, remedy: str
) -> None:
    path = Path(shutil.copy(file, public_folder / "some.db"))
    path.chmod(0o444 if denied == "file" else 0o600)
    public_folder.chmod(0o700 if denied == "file" else 0o500)
    if os.geteuid() == 0:
        for each in (public_folder, path):
            os.chown(each, NOBODY, -1)
    async with opened(sqlite_url(path)) as database:
        with unprivileged(), pytest.raises(StoreFault) as caught:
            await database.record(event())
    named = path if denied == "file" else public_folder
    assert f" owns {named}, but its mode {remedy}" in caught.value.reason


async def test_a_read_only_file_system(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    shutil.copy(file, folder / "some.db")
    mount = f"mount --bind '{folder}' '{folder}' && mount -o remount,bind,ro '{folder}'"
    if os.geteuid() or os.system(mount + " 2>/dev/null"):  # noqa: S605 - a path of this test
        pytest.skip("only root can mount a file system")
    try:
        async with opened(sqlite_url(folder / "some.db")) as database:
            with pytest.raises(StoreFault) as caught:
                await database.record(event())
    finally:
        os.system(f"umount --lazy '{folder}'")  # noqa: S605 - the same
    assert f"The file system of {folder} is read-only." in caught.value.reason


async def test_what_may_pass_is_still_temporary(file: Path) -> None:
    async with opened(sqlite_url(file)) as one, opened(sqlite_url(file)) as other, one.transaction():
        with pytest.raises(Unavailable) as caught:
            await other.record(event())
    assert not isinstance(caught.value, StoreFault)
    assert caught.value.retry_after == 1


@pytest.mark.parametrize("error", [TimeoutError(), OSError(errno.ESTALE, "Stale file handle")])
def test_an_error_of_a_file_system_that_does_not_answer_may_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    probed: list[Path] = []
    statvfs = os.statvfs

    def stale(folder: Path) -> os.statvfs_result:
        # A service of other tests in this process measures its own disk.
        if Path(folder) != tmp_path:
            return statvfs(folder)
        probed.append(folder)
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "statvfs", stale)
    with pytest.raises(Unavailable), failures_translated(make_url(sqlite_url(tmp_path / "some.db"))):
        raise error
    assert bool(probed) is not isinstance(error, TimeoutError)


async def test_a_role_without_rights(on_postgresql: Store) -> None:
    role = f"weak_{os.urandom(4).hex()}"
    on_postgresql.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'weak'")
    url = make_url(on_postgresql.url).set(username=role, password="weak")
    try:
        async with opened(url.render_as_string(hide_password=False)) as database:
            reason = await fault_of_reading(database)
    finally:
        on_postgresql.execute(f"DROP ROLE {role}")
    assert f"The database role {role} lacks rights. Make it the owner" in reason


async def fault_of_reading(database: Database) -> str:
    with pytest.raises(StoreFault) as caught:
        await database.ping()
    return caught.value.reason


async def test_a_wrong_password_and_a_missing_database(on_postgresql: Store) -> None:
    url = make_url(on_postgresql.url)
    async with opened(url.set(password="wrong").render_as_string(hide_password=False)) as database:
        assert f"rejects the login of the role {url.username}." in await fault_of_reading(database)
    async with opened(url.set(database="missing").render_as_string(hide_password=False)) as database:
        assert "has no database missing. Create it" in await fault_of_reading(database)
    assert postgres.look(on_postgresql.url, "SELECT 1") == [(1,)]


async def test_a_rejected_login_names_the_password_file_and_its_fault(
    on_postgresql: Store, public_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(public_folder))
    monkeypatch.delenv("PGPASSFILE", raising=False)
    monkeypatch.delenv("PGPASSWORD", raising=False)
    url, file = make_url(on_postgresql.url), public_folder / ".pgpass"
    without_password = f"{url.drivername}://{url.username}@{url.host}:{url.port}/{url.database}"
    user = pwd.getpwuid(os.geteuid()).pw_name

    async def fault_of_login(address: str = without_password) -> str:
        async with opened(address, public_folder) as database:
            said = await fault_of_reading(database)
        assert f"rejects the login of the role {url.username}." in said
        return said

    assert (
        f"database_url and PGPASSWORD have no password, and {file} does not exist." in await fault_of_login()
    )
    monkeypatch.setenv("PGPASSFILE", str(public_folder / "other"))
    assert f"and {public_folder}/other does not exist." in await fault_of_login()
    monkeypatch.delenv("PGPASSFILE")
    file.write_text("*:*:*:*:wrong\n")
    file.chmod(0o640)
    assert f"{file} is ignored because of its mode 0640. Run `chmod 0600 {file}`." in await fault_of_login()
    file.chmod(0o000)
    with unprivileged():
        said = await fault_of_login()
        assert f"{pwd.getpwuid(os.geteuid()).pw_name} can't read {file}." in said
        assert (f"Run this program as {user}, which owns {public_folder}." in said) is (user == "root")
    file.chmod(0o600)
    said = await fault_of_login()
    assert f"Check the role and its password in {file}." in said
    assert "Run this program as" not in said
    said = await fault_of_login(on_postgresql.url.replace(f":{url.password}@", ":wrong@"))
    assert str(file) not in said


@pytest.mark.parametrize(
    ("parameter", "variable", "named"),
    [("?ssl=verify-full", "", "database_url has ssl=verify-full"), ("", "require", "PGSSLMODE is require")],
)
async def test_a_server_without_tls(
    on_postgresql: Store,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    parameter: str,
    variable: str,
    named: str,
) -> None:
    if variable:
        monkeypatch.setenv("PGSSLMODE", variable)
    ca = new_client_ca("database", new_key("ec-p256"), datetime.now(UTC), timedelta(days=1))
    (tmp_path / "ca.pem").write_bytes(chain_pem((ca,)))
    monkeypatch.setenv("PGSSLROOTCERT", str(tmp_path / "ca.pem"))
    async with opened(on_postgresql.url + parameter) as database:
        assert await fault_of_reading(database) == (
            f"The database server offers no TLS, but {named}. Enable TLS in the server, or remove this setting if "
            "the network is protected."
        )


async def test_a_missing_ca_of_the_database(
    on_postgresql: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PGSSLROOTCERT", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    async with opened(f"{on_postgresql.url}?ssl=verify-full") as database:
        assert await fault_of_reading(database) == (
            f"The file {tmp_path}/.postgresql/root.crt is missing. Put the CA of the database there, or set"
            " PGSSLROOTCERT."
        )
        monkeypatch.setenv("PGSSLROOTCERT", str(tmp_path / "ca.pem"))
        assert await fault_of_reading(database) == (
            f"The file {tmp_path}/ca.pem is missing. Put the CA of the database there, or correct PGSSLROOTCERT."
        )


class _TlsHandshake(socketserver.BaseRequestHandler):
    """Answers the request for TLS like PostgreSQL, and makes the handshake."""

    context: ssl.SSLContext

    def handle(self) -> None:
        self.request.recv(8)
        self.request.sendall(b"S")
        with (
            contextlib.suppress(OSError),
            self.context.wrap_socket(self.request, server_side=True) as connection,
        ):
            connection.recv(1)


@pytest.fixture
def tls_database(tmp_path: Path) -> Iterator[tuple[int, bytes]]:
    """The port of a server with a certificate for 127.0.0.1, and the certificate's CA in PEM.

    The PostgreSQL of these tests is built without TLS.
    """
    key = new_key("ec-p256")
    leaf, ca = new_server_certificate(key, ["127.0.0.1"], datetime.now(UTC), timedelta(days=1))
    (tmp_path / "server.pem").write_bytes(chain_pem((leaf,)) + key_pem(key))
    _TlsHandshake.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _TlsHandshake.context.load_cert_chain(tmp_path / "server.pem")
    _TlsHandshake.context.set_alpn_protocols(["postgresql"])
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _TlsHandshake) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        yield server.server_address[1], chain_pem((ca,))
        server.shutdown()


def url_of(port: int, host: str = "127.0.0.1") -> str:
    return f"postgresql+asyncpg://clustercert@{host}:{port}/clustercert?ssl=verify-full"


@pytest.fixture
def ca_file(public_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = public_folder / "ca.pem"
    monkeypatch.setenv("PGSSLROOTCERT", str(file))
    return file


async def test_a_certificate_of_the_database_that_is_refused(
    tls_database: tuple[int, bytes], ca_file: Path
) -> None:
    port, ca_pem = tls_database
    other = new_client_ca("other", new_key("ec-p256"), datetime.now(UTC), timedelta(days=1))
    ca_file.write_bytes(chain_pem((other,)))
    async with opened(url_of(port)) as database:
        said = await fault_of_reading(database)
    assert said.startswith(
        "The database server's certificate is refused: unable to get local issuer certificate."
    )
    assert said.endswith(
        f" Put the CA of the database into {ca_file}, or set PGSSLROOTCERT to the file with this CA."
    )
    ca_file.write_bytes(ca_pem)
    async with opened(url_of(port, "localhost")) as database:
        said = await fault_of_reading(database)
    assert "not valid for 'localhost'. Correct the host in database_url" in said


async def test_a_ca_file_of_the_database_that_cannot_be_used(ca_file: Path) -> None:
    async with opened(url_of(1)) as database:
        ca_file.write_text("no certificate")
        assert f"The file {ca_file} has no certificate in PEM." in await fault_of_reading(database)
        ca_file.chmod(0o000)
        with unprivileged():
            said = await fault_of_reading(database)
    assert f"can't read {ca_file}, the CA of the database. Change the owner or mode" in said
