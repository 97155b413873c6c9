"""A cluster with nodes that are hard to reach: run in a network namespace of its own.

    unshare --net --map-root-user python -m tests.chaos.slow_link SCENARIO DIR

One node lives in a second namespace, behind a pair of veth devices, where `tc` holds its packets
back or drops them, each way. Prints figures as JSON.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

import boto3
from botocore.config import Config

from exastore.deploy.config import render_table

NEAR, FAR = "10.99.0.1", "10.99.0.2"
#: About 75 KB/s, behind a queue of up to 0.4 s.
NARROW = ["tbf", "rate", "600kbit", "burst", "16kb", "latency", "400ms"]
#: 0.2 s each way, 5 Mbit/s; where the kernel has no netem the node stands still for so long, again
#: and again, behind a link of that rate.
DISTANT = ["netem", "delay", "200ms", "rate", "5mbit"]
NEARLY = ["tbf", "rate", "5mbit", "burst", "32kb", "latency", "400ms"]
STILL_S, AWAKE_S = 0.4, 0.05
EXASTORE = (sys.executable, "-m", "exastore.deploy")
BUCKET, OBJECTS, BODY_BYTES = "slow", 24, 300_000
NODES = 5
BULK_PORT = 7200
#: Of a load: clients at once, and reads of each.
CLIENTS, READS = 4, 150


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def far_namespace() -> Generator[list[str]]:
    """How to run a command in the other namespace."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "near", "type", "veth", "peer", "name", "far")
    with subprocess.Popen(["unshare", "--net", "sleep", "600"]) as holder:
        try:
            enter = ["nsenter", "-t", str(holder.pid), "-n"]
            own = Path("/proc/self/ns/net").readlink()
            while Path(f"/proc/{holder.pid}/ns/net").readlink() == own:
                time.sleep(0.01)
            run("ip", "link", "set", "far", "netns", str(holder.pid))
            run("ip", "addr", "add", f"{NEAR}/24", "dev", "near")
            run("ip", "link", "set", "near", "up")
            run(*enter, "ip", "link", "set", "lo", "up")
            run(*enter, "ip", "addr", "add", f"{FAR}/24", "dev", "far")
            run(*enter, "ip", "link", "set", "far", "up")
            yield enter
        finally:
            holder.kill()


def body_of(key: str) -> bytes:
    return hashlib.shake_256(key.encode()).digest(BODY_BYTES)


def timed(call: Callable[[], None]) -> float:
    begun_s = time.monotonic()
    call()
    return time.monotonic() - begun_s


@dataclass
class World:
    """The cluster, and how its nodes are troubled."""

    folder: Path
    stack: ExitStack
    enter: list[str] = field(default_factory=list[str])
    pids: dict[str, int] = field(default_factory=dict[str, int])
    s3: Any = None

    def begin(self) -> None:
        """Start everything; the last node is the far one."""
        self.enter = self.stack.enter_context(far_namespace())
        metadata = [f"{NEAR}:7001"]
        self._start("metadata", "metadata", {
            "address": metadata[0], "engine": f"sqlite://{self.folder / 'meta.db'}",
            "code": "rs-2-2", "pg_count": 10, "bootstrap_device_count": NODES,
            "down_after_s": 300.0,
        })  # fmt: skip
        for number in range(1, NODES + 1):
            is_far = number == NODES
            (self.folder / f"device-{number}").mkdir()
            self._start("node", f"node-{number}", {
                "address": f"{FAR if is_far else NEAR}:{7100 + number}",
                "bulk_port": BULK_PORT + number,
                "node_id": f"node-{number}",
                "devices": [str(self.folder / f"device-{number}")],
                "metadata": metadata,
            }, *(self.enter if is_far else ()))  # fmt: skip
        self._start("gateway", "gateway", {
            "address": f"{NEAR}:9000", "metadata": metadata, "access_key": "A" * 20,
            "secret_key": "B" * 40,
        })  # fmt: skip
        self.s3 = boto3.client(
            "s3", endpoint_url=f"http://{NEAR}:9000", aws_access_key_id="A" * 20,
            aws_secret_access_key="B" * 40, region_name="us-east-1",
            config=Config(
                retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, proxies={}
            ),
        )  # fmt: skip
        self.stack.callback(self.s3.close)
        deadline_s = time.monotonic() + 60
        while True:
            try:
                self.s3.create_bucket(Bucket=BUCKET)
                self.s3.put_object(Bucket=BUCKET, Key="first", Body=b"1" * BODY_BYTES)
                return
            except Exception:
                assert time.monotonic() < deadline_s
                time.sleep(0.2)

    def _start(self, noun: str, name: str, values: dict[str, object], *enter: str) -> None:
        """Start a process and wait until it serves."""
        ready, config, log = (
            self.folder / f"{name}.{suffix}" for suffix in ("json", "toml", "log")
        )
        process = {"ready_file": str(ready), "metrics_address": ""}
        config.write_text(f"{render_table('process', process)}\n{render_table(noun, values)}")
        output = self.stack.enter_context(log.open("wb"))
        command = [*enter, *EXASTORE, noun, "run", "--config", str(config)]
        child = subprocess.Popen(command, stdout=output, stderr=output)
        self.stack.callback(child.wait)
        self.stack.callback(child.terminate)
        self.pids[name] = child.pid
        deadline_s = time.monotonic() + 120
        while not ready.exists():
            ended = child.poll()
            assert ended is None, f"{name} ended with {ended}: {log.read_text()}"
            assert time.monotonic() < deadline_s, f"{name} is not ready: {log.read_text()}"
            time.sleep(0.05)

    # ---- requests ----

    def put(self, key: str) -> None:
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=body_of(key))

    def read(self, key: str) -> None:
        assert self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() == body_of(key), key

    def put_all(self, keys: list[str]) -> list[float]:
        return [timed(lambda key=key: self.put(key)) for key in keys]  # type: ignore[misc]

    def read_all(self, keys: list[str]) -> list[float]:
        return [timed(lambda key=key: self.read(key)) for key in keys]  # type: ignore[misc]

    def load(self, keys: list[str]) -> list[float]:
        """Several clients that read one object after the other."""

        def client(first: int) -> list[float]:
            return self.read_all([keys[(first + turn) % len(keys)] for turn in range(READS)])

        with ThreadPoolExecutor(CLIENTS) as pool:
            return [s for found in pool.map(client, range(0, 5 * CLIENTS, 5)) for s in found]

    # ---- faults ----

    def shape(self, discipline: list[str]) -> None:
        """Hold the packets of the far node back, each way."""
        run("tc", "qdisc", "add", "dev", "near", "root", *discipline)
        run(*self.enter, "tc", "qdisc", "add", "dev", "far", "root", *discipline)

    def unshape(self) -> None:
        run("tc", "qdisc", "del", "dev", "near", "root")
        run(*self.enter, "tc", "qdisc", "del", "dev", "far", "root")

    @contextmanager
    def distant(self) -> Generator[None]:
        """The far node answers late."""
        try:
            self.shape(DISTANT)
        except subprocess.CalledProcessError:
            self.shape(NEARLY)
            with self._dozing(self.pids[f"node-{NODES}"]):
                yield
        else:
            yield
        self.unshape()

    @contextmanager
    def _dozing(self, pid: int) -> Generator[None]:
        ended = Event()

        def doze() -> None:
            while not ended.is_set():
                os.kill(pid, signal.SIGSTOP)
                ended.wait(STILL_S)
                os.kill(pid, signal.SIGCONT)
                ended.wait(AWAKE_S)

        dozing = Thread(target=doze)
        dozing.start()
        try:
            yield
        finally:
            ended.set()
            dozing.join()

    def drop_chunks(self, verb: str = "add") -> None:
        """Let nothing come from the far node's port for chunks; gRPC goes on."""
        run(*self.enter, "ip", "rule", verb, "ipproto", "tcp", "sport",
            str(BULK_PORT + NODES), "blackhole")  # fmt: skip


def narrow(world: World, keys: list[str]) -> dict[str, list[float]]:
    """A node behind a link that carries next to nothing."""
    figures = {"read_before": world.read_all(keys)}
    world.shape(NARROW)
    figures["read_during"] = world.read_all(keys)
    late = [f"late-{key}" for key in keys]
    figures["write_during"] = world.put_all(late)
    world.unshape()
    world.read_all([*keys, *late])
    return figures


def troubled(world: World, keys: list[str]) -> dict[str, list[float]]:
    """Of five nodes one is distant and one stands still, and no map says so."""
    figures = {"read_before": world.load(keys)}
    with world.distant():
        figures["read_distant"] = world.load(keys)
        os.kill(world.pids["node-1"], signal.SIGSTOP)
        try:
            figures["read_both"] = world.load(keys)
        finally:
            os.kill(world.pids["node-1"], signal.SIGCONT)
    figures["read_after"] = world.load(keys)
    return figures


def firewalled(world: World, keys: list[str]) -> dict[str, list[float]]:
    """The port for chunks of one node is cut off in the middle of everything, gRPC is not."""
    figures = {"read_before": world.load(keys), "write_before": world.put_all(keys)}
    world.drop_chunks()
    figures["read_during"] = world.load(keys)
    slow: list[float] = []
    quick: list[float] = []
    begun_s = time.monotonic()
    # Until gRPC is used, writes wait for that node as for any that is slow.
    while len(quick) < OBJECTS:
        assert time.monotonic() - begun_s < 90, (slow, quick)
        [taken_s] = world.put_all([f"during-{len(slow) + len(quick)}"])
        (quick if taken_s < 1 else slow).append(taken_s)
        if taken_s >= 1:
            quick.clear()
    figures["write_during"] = slow
    figures["write_over_grpc"] = quick
    figures["grpc_after"] = [time.monotonic() - begun_s]
    world.drop_chunks("del")
    figures["read_after"] = world.load(keys)
    return figures


SCENARIOS = {scenario.__name__: scenario for scenario in (narrow, troubled, firewalled)}


def main(scenario: str, folder: Path) -> dict[str, list[float]]:
    """Seconds of reads and writes, by what happens meanwhile."""
    with ExitStack() as stack:
        world = World(folder, stack)
        world.begin()
        keys = [str(number) for number in range(OBJECTS)]
        first = world.put_all(keys)
        return {"write_before": first, **SCENARIOS[scenario](world, keys)}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))
