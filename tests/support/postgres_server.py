"""A PostgreSQL server of a test run's own: in a new folder, on a free loopback port."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import psutil
import psycopg
from tests.support.ports import free_port
from tests.support.programs import program

_START_S = 60.0
_USER = "exastore"


class PostgresServer:
    """A server that can be killed and started again; `with` stops it and removes its folder.

    Args:
        fsync: Whether commits reach the disk. Off is as good as long as only processes die and the
            test does not measure.
        settings: More of PostgreSQL's settings.
    """

    def __init__(self, *, fsync: bool = False, **settings: str) -> None:
        self._postgres = program("/usr/lib/postgresql/15/bin/postgres", "postgres")
        self._initdb = program("/usr/lib/postgresql/15/bin/initdb", "initdb")
        self.port = free_port()
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "on" if fsync else "off",
            "max_connections": "60",
            "shared_buffers": "64MB",
            "logging_collector": "off",
            **settings,
        }
        self._folder = Path(tempfile.mkdtemp(prefix="exastore-postgres-"))
        self._data = self._folder / "data"
        self._log = self._folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._init()
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def url(self, schema: str = "public") -> str:
        """Where an engine finds it; each schema is a store of its own. The schema must be there."""
        options = quote(f"-c search_path={schema}")
        return f"postgresql://{_USER}@127.0.0.1:{self.port}/postgres?options={options}"

    def new_url(self, schema: str) -> str:
        """The URL of a new, empty store."""
        self.execute(f"CREATE SCHEMA {schema}")
        return self.url(schema)

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run one statement; its rows."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    @property
    def pid(self) -> int:
        """The main process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it serves."""
        settings = [f"--{name}={value}" for name, value in self._settings.items()]
        with self._log.open("ab") as log:
            self._process = self._popen(
                [self._postgres, "-D", str(self._data), *settings], stdout=log
            )
        deadline_s = time.monotonic() + _START_S
        while True:
            try:
                self.execute("SELECT 1")
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline_s:
                    raise RuntimeError(self._log.read_text()[-2000:]) from error
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL to all its processes at once; the main one first, so that it starts no others."""
        assert self._process is not None
        try:
            children = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
        self._process.kill()
        for child in children:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(children, timeout=10)
        self._process.wait(10)
        self._process = None

    def stop(self) -> None:
        """Stop it, if it runs."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(20)
            self._process = None
        except subprocess.TimeoutExpired:
            self.kill()

    def _init(self) -> None:
        user = self._user()
        if user is not None:
            os.chown(self._folder, user.pw_uid, user.pw_gid)
        command = [self._initdb, "-D", str(self._data), "-U", _USER, "--auth=trust"]
        command += ["--no-sync", "--locale=C", "--encoding=UTF8"]
        process = self._popen(command, stdout=subprocess.PIPE)
        out, _ = process.communicate(timeout=_START_S)
        if process.returncode != 0:
            raise RuntimeError(out.decode())

    def _popen(self, command: list[str], stdout: Any) -> subprocess.Popen[bytes]:
        user = self._user()
        return subprocess.Popen(
            command,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            cwd=self._folder,
            text=False,
            user=None if user is None else user.pw_uid,
            group=None if user is None else user.pw_gid,
            extra_groups=None if user is None else [],
        )

    @staticmethod
    def _user() -> pwd.struct_passwd | None:
        """PostgreSQL refuses to run as root: whom it runs as then."""
        return pwd.getpwnam("nobody") if os.geteuid() == 0 else None
