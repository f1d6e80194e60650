"""A PostgreSQL server of our own for the tests: a fresh cluster in a temporary folder, on a free port, gone afterwards.

The binaries come from the system (`make test` installs Debian's package). PostgreSQL refuses to run as root, so for
root everything runs as the `postgres` user that the package makes.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import create_engine, text


@contextlib.contextmanager
def serve_postgres() -> Iterator[str]:
    """Yield the SQLAlchemy URL of an empty database."""
    binaries = _find_binaries()
    folder = Path(tempfile.mkdtemp(prefix="klein-pg-"))
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
    data, port = folder / "data", _free_port()
    try:
        _run(binaries / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        _run(binaries / "pg_ctl", "-D", data, "-o", options, "-l", folder / "log", "-w", "start")
        try:
            yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
        finally:
            _run(binaries / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_database(url: str) -> str:
    """Make another empty database of the server at `url`, and return its own URL."""
    name = f"lab_{uuid.uuid4().hex}"
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return engine.url.set(database=name).render_as_string(hide_password=False)


def _find_binaries() -> Path:
    """Return the folder of initdb and pg_ctl, the newest version first."""
    on_path = shutil.which("initdb")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    folders = [Path(on_path).parent] if on_path else found
    if not folders:
        raise FileNotFoundError("PostgreSQL is not installed: apt-get install postgresql (`make test` does).")
    return folders[-1]


def _run(*command: str | Path) -> None:
    as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    # The server inherits what it is given: without files of its own it would keep a pipe open for ever.
    ended = subprocess.run(
        [*as_postgres, *map(str, command)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        check=False,
    )
    if ended.returncode:
        raise RuntimeError(f"{command[0]} ended with status {ended.returncode}: {' '.join(map(str, command))}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
