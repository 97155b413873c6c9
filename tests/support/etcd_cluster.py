"""An etcd of a test run's own: three members, in new folders, on free loopback ports."""

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from tests.support.ports import free_port
from tests.support.programs import program

from exastore.proto.v1 import etcd_pb2

_START_S = 60.0


class EtcdCluster:
    """Members that can be killed and started again; `with` stops them and removes their folders.

    Args:
        member_count: Members.
        options: More of etcd's options.
    """

    def __init__(self, member_count: int = 3, *options: str) -> None:
        self._etcd = program("etcd")
        self._options = options
        self._folder = Path(tempfile.mkdtemp(prefix="exastore-etcd-"))
        self.endpoints = [f"127.0.0.1:{free_port()}" for _ in range(member_count)]
        self._peers = [f"http://127.0.0.1:{free_port()}" for _ in range(member_count)]
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * member_count

    def __enter__(self) -> Self:
        try:
            for index in range(len(self.endpoints)):
                self.start(index)
            for index in range(len(self.endpoints)):
                self.wait_for(index)
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
        for index in range(len(self.endpoints)):
            self.kill(index)
        shutil.rmtree(self._folder, ignore_errors=True)

    def url(self, prefix: str) -> str:
        """Where an engine finds it; each prefix is a store of its own."""
        return f"etcd://{','.join(self.endpoints)}/{prefix}"

    def start(self, index: int) -> None:
        """Start a member, with what its folder holds."""
        name = f"member-{index}"
        command = [
            self._etcd,
            *("--name", name, "--data-dir", str(self._folder / name)),
            *("--listen-client-urls", f"http://{self.endpoints[index]}"),
            *("--advertise-client-urls", f"http://{self.endpoints[index]}"),
            *("--listen-peer-urls", self._peers[index]),
            *("--initial-advertise-peer-urls", self._peers[index]),
            "--initial-cluster",
            ",".join(f"member-{n}={peer}" for n, peer in enumerate(self._peers)),
            # On loopback the others are near; a new leader is found within a second.
            *("--heartbeat-interval", "50", "--election-timeout", "500"),
            *("--logger", "zap", "--log-level", "error"),
            *self._options,
        ]
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[index] = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=self._folder
            )

    def wait_for(self, index: int) -> None:
        """Wait until a member serves."""
        deadline_s = time.monotonic() + _START_S
        while self.leader_of(index) == 0:
            process = self._processes[index]
            if time.monotonic() > deadline_s or process is None or process.poll() is not None:
                log = self._folder / f"member-{index}.log"
                raise RuntimeError(log.read_text()[-2000:])
            time.sleep(0.02)

    def leader_of(self, index: int) -> int:
        """The identity of the leader that a member follows; 0: none, or it does not answer."""
        return self._status(index).leader

    def leader(self) -> int:
        """The index of the leader."""
        for index in range(len(self.endpoints)):
            status = self._status(index)
            if status.leader and status.leader == status.header.member_id:
                return index
        raise RuntimeError("no member is the leader")

    def pid(self, index: int) -> int:
        """The process of a member."""
        process = self._processes[index]
        assert process is not None
        return process.pid

    def signal(self, index: int, number: int) -> None:
        """Send a signal to a member."""
        process = self._processes[index]
        assert process is not None
        process.send_signal(number)

    def kill(self, index: int) -> None:
        """SIGKILL to a member, if it runs."""
        process, self._processes[index] = self._processes[index], None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait(10)

    def revision(self) -> int:
        """The newest revision."""
        asked = etcd_pb2.EtcdRangeRequest(key=b"\x00").SerializeToString()
        answer = self.ask(0, "/etcdserverpb.KV/Range", asked)
        return etcd_pb2.EtcdRangeResponse.FromString(answer).header.revision

    def is_compacted(self, revision: int) -> bool:
        """Whether a revision can no longer be read."""
        asked = etcd_pb2.EtcdRangeRequest(key=b"\x00", revision=revision)
        try:
            self.ask(0, "/etcdserverpb.KV/Range", asked.SerializeToString())
        except grpc.RpcError as error:
            return "compacted" in str(error)
        return False

    def ask(self, index: int, method: str, request: bytes) -> bytes:
        """Call a member. Raises grpc.RpcError."""
        options = (("grpc.enable_http_proxy", 0),)
        with grpc.insecure_channel(self.endpoints[index], options=options) as channel:
            call: Callable[..., bytes] = channel.unary_unary(method)
            return call(request, timeout=2.0)

    def _status(self, index: int) -> etcd_pb2.EtcdStatusResponse:
        try:
            answer = self.ask(index, "/etcdserverpb.Maintenance/Status", b"")
        except grpc.RpcError:
            return etcd_pb2.EtcdStatusResponse()
        return etcd_pb2.EtcdStatusResponse.FromString(answer)
