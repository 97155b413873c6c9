"""A cluster of which one node has a slow link: run in a network namespace of its own.

    unshare --net --map-root-user python -m tests.chaos.slow_link DIR

The node lives in a second namespace, behind a pair of veth devices; `tc` lets a token bucket filter
hold its packets back, each way. Prints figures as JSON.
"""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from exastore.deploy.config import render_table

NEAR, FAR = "10.99.0.1", "10.99.0.2"
#: About 75 KB/s, behind a queue of up to 0.4 s.
SLOW = ["tbf", "rate", "600kbit", "burst", "16kb", "latency", "400ms"]
EXASTORE = (sys.executable, "-m", "exastore.deploy")
BUCKET, OBJECTS, BODY_BYTES = "slow", 24, 300_000
NODES = 5


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


def start(
    stack: ExitStack, folder: Path, noun: str, name: str, values: dict[str, object], *enter: str
) -> None:
    """Start a process and wait until it serves."""
    ready, config, log = (folder / f"{name}.{suffix}" for suffix in ("json", "toml", "log"))
    process = {"ready_file": str(ready), "metrics_address": ""}
    config.write_text(f"{render_table('process', process)}\n{render_table(noun, values)}")
    output = stack.enter_context(log.open("wb"))
    command = [
        *enter,
        sys.executable,
        "-m",
        "exastore.deploy",
        noun,
        "run",
        "--config",
        str(config),
    ]
    child = subprocess.Popen(command, stdout=output, stderr=output)
    stack.callback(child.wait)
    stack.callback(child.terminate)
    deadline_s = time.monotonic() + 120
    while not ready.exists():
        assert child.poll() is None and time.monotonic() < deadline_s, log.read_text()
        time.sleep(0.05)


def body_of(key: str) -> bytes:
    return hashlib.shake_256(key.encode()).digest(BODY_BYTES)


def timed(call: Any) -> float:
    begun_s = time.monotonic()
    call()
    return time.monotonic() - begun_s


def read(s3: Any, key: str) -> None:
    assert s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() == body_of(key), key


def scenario(folder: Path) -> dict[str, list[float]]:
    """Seconds of reads and writes, before the link is slow and while it is."""
    metadata = [f"{NEAR}:7001"]
    with ExitStack() as stack:
        enter = stack.enter_context(far_namespace())
        start(stack, folder, "metadata", "metadata", {
            "address": metadata[0], "engine": f"sqlite://{folder / 'meta.db'}", "code": "rs-2-2",
            "pg_count": 10, "bootstrap_device_count": NODES, "down_after_s": 60.0,
        })  # fmt: skip
        for number in range(1, NODES + 1):
            is_far = number == NODES
            (folder / f"device-{number}").mkdir()
            values: dict[str, object] = {
                "address": f"{FAR if is_far else NEAR}:{7100 + number}",
                "node_id": f"node-{number}",
                "devices": [str(folder / f"device-{number}")],
                "metadata": metadata,
            }
            start(stack, folder, "node", f"node-{number}", values, *(enter if is_far else ()))
        start(stack, folder, "gateway", "gateway", {
            "address": f"{NEAR}:9000", "metadata": metadata, "access_key": "A" * 20,
            "secret_key": "B" * 40,
        })  # fmt: skip
        s3: Any = boto3.client(
            "s3", endpoint_url=f"http://{NEAR}:9000", aws_access_key_id="A" * 20,
            aws_secret_access_key="B" * 40, region_name="us-east-1",
            config=Config(
                retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, proxies={}
            ),
        )  # fmt: skip
        stack.callback(s3.close)
        deadline_s = time.monotonic() + 60
        while True:
            try:
                s3.create_bucket(Bucket=BUCKET)
                s3.put_object(Bucket=BUCKET, Key="first", Body=b"1" * BODY_BYTES)
                break
            except Exception:
                assert time.monotonic() < deadline_s
                time.sleep(0.2)
        keys = [str(number) for number in range(OBJECTS)]

        def put(key: str) -> None:
            s3.put_object(Bucket=BUCKET, Key=key, Body=body_of(key))

        figures = {"write_before": [timed(lambda key=key: put(key)) for key in keys]}
        figures["read_before"] = [timed(lambda key=key: read(s3, key)) for key in keys]
        run("tc", "qdisc", "add", "dev", "near", "root", *SLOW)
        run(*enter, "tc", "qdisc", "add", "dev", "far", "root", *SLOW)
        figures["read_during"] = [timed(lambda key=key: read(s3, key)) for key in keys]
        late = [f"late-{key}" for key in keys]
        figures["write_during"] = [timed(lambda key=key: put(key)) for key in late]
        run("tc", "qdisc", "del", "dev", "near", "root")
        run(*enter, "tc", "qdisc", "del", "dev", "far", "root")
        for key in [*keys, *late]:
            read(s3, key)
        return figures


if __name__ == "__main__":
    print(json.dumps(scenario(Path(sys.argv[1]))))
