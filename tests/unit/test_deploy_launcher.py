"""The launcher's checks before anything is started, and its files."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from exastore.deploy.children import Child, recorded, spawn, stop
from exastore.deploy.clock import SystemClock
from exastore.deploy.errors import BadInput, ClusterUnhealthy, EnvironmentUnfit
from exastore.deploy.files import read_json_object, tail, write_json
from exastore.deploy.launcher import LocalCluster
from exastore.deploy.layout import ClusterPaths, process_names, read_cluster_file
from exastore.deploy.spec import (
    ClusterOptions,
    changed_spec,
    check_directory,
    new_spec,
    port_is_free,
    quiet_port,
    read_spec,
    write_spec,
)


def up(directory: Path, **options: object) -> None:
    LocalCluster.at(directory).up(ClusterOptions(**options), lambda _text: None)  # type: ignore[arg-type]


def test_a_code_wider_than_the_cluster_is_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        up(tmp_path / "c", nodes=5, code="rs-4-2")
    assert str(caught.value) == (
        "rs-4-2 needs 6 nodes, you asked for 5: "
        "use --nodes 6 or more, or a smaller code such as rs-3-2"
    )
    assert not (tmp_path / "c").exists(), "nothing is made for wrong input"


def test_an_unknown_code_lists_the_forms_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"xor-3.*rs-K-M"):
        up(tmp_path / "c", code="xor-3")


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert not port_is_free(port)
        with pytest.raises(EnvironmentUnfit, match=f"port {port} is in use") as caught:
            up(tmp_path / "c", s3_port=port)
    assert "--s3-port 0" in caught.value.hint


class ClockWhileHeld(SystemClock):
    """A clock that lets a port go while somebody waits."""

    __slots__ = ("held", "waits")

    def __init__(self, held: socket.socket, waits: int) -> None:
        self.held, self.waits = held, waits

    def monotonic_s(self) -> float:
        return 0.0

    def sleep_blocking(self, duration_s: float) -> None:
        self.waits -= 1
        if not self.waits:
            self.held.close()


def test_a_port_at_which_the_cluster_served_is_waited_for(tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    paths = ClusterPaths(tmp_path / "c")
    paths.make()
    write_json(paths.addresses, {"metadata": f"127.0.0.1:{port}"})
    local = LocalCluster(paths, ClockWhileHeld(listener, 3))
    spec = replace(new_spec(ClusterOptions()), s3_port=port)
    write_spec(paths.spec, spec)
    local.check_s3_port(spec)
    assert port_is_free(port)
    assert local.address_for("metadata", must_keep=True) == f"127.0.0.1:{port}"


def test_ports_to_be_kept_are_none_that_outgoing_connections_get(tmp_path: Path) -> None:
    known = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not known.exists():
        pytest.skip("this system does not tell its ports of outgoing connections")
    first = int(known.read_text().split()[0])
    ports = {quiet_port() for _ in range(20)}
    assert all(0 < port < first for port in ports) and len(ports) > 10
    local = LocalCluster.at(tmp_path / "c")
    local.paths.make()
    assert 0 < int(local.address_for("metadata").rpartition(":")[2]) < first
    assert local.address_for("node-1") == "127.0.0.1:0", "nodes tell where they serve"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_after_s": 1.0}, "--out-after-s 1 must be at least --down-after-s 3"),
        ({"down_after_s": 0.2}, "--down-after-s 0.2 must be more than the heartbeat"),
        ({"s3_port": 70_000}, "--s3-port 70000 is not a port"),
        ({"pg_count": 0}, "--pg-count must be at least 1"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        new_spec(ClusterOptions(**options))  # type: ignore[arg-type]


def test_a_file_in_the_way_of_the_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentUnfit, match="cannot write in"):
        check_directory(tmp_path / "file" / "c")


def test_a_nearly_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 10 * 2**20

    def usage_of(path: Path) -> type[Usage]:
        return Usage

    monkeypatch.setattr("shutil.disk_usage", usage_of)
    with pytest.raises(EnvironmentUnfit, match="nearly full: 10 MiB free, at least 512 MiB"):
        check_directory(tmp_path)


def test_what_a_cluster_is_cannot_change_and_the_rest_only_while_it_is_stopped() -> None:
    spec = new_spec(ClusterOptions(nodes=7))
    with pytest.raises(BadInput, match="holds a cluster with --nodes 7, not 8"):
        changed_spec(spec, ClusterOptions(nodes=8), running=False)
    with pytest.raises(BadInput, match=r"runs with --out-after-s 900\.0, not 5\.0"):
        changed_spec(spec, ClusterOptions(out_after_s=5.0), running=True)
    assert changed_spec(spec, ClusterOptions(nodes=7, out_after_s=5.0), running=False) == replace(
        spec, out_after_s=5.0
    )


def test_a_stored_cluster_reads_back_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    spec = new_spec(ClusterOptions(nodes=9))
    path = tmp_path / "spec.toml"
    write_spec(path, spec)
    assert read_spec(path) == spec
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_spec(tmp_path / "none.toml") is None
    assert new_spec(ClusterOptions()).secret_key != spec.secret_key


def test_down_and_status_say_when_there_is_no_cluster(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no cluster in"):
        LocalCluster.at(tmp_path).down()
    with pytest.raises(ClusterUnhealthy, match="no cluster is up in"):
        read_cluster_file(tmp_path)
    (tmp_path / "cluster.json").write_text('{"s3": ')
    with pytest.raises(ClusterUnhealthy, match="cannot be used"):
        read_cluster_file(tmp_path)


def test_processes_start_in_the_order_metadata_nodes_gateway() -> None:
    assert process_names(3) == ["metadata", "node-1", "node-2", "node-3", "gateway"]
    assert process_names(1, gateway_count=2) == ["metadata", "node-1", "gateway", "gateway-2"]


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": 1}, mode=0o600)
    write_json(path, {"a": 2}, mode=0o600)
    assert read_json_object(path) == {"a": 2}
    assert [entry.name for entry in tmp_path.iterdir()] == ["value.json"]
    path.write_text("[1]")
    assert read_json_object(path) is None
    assert tail(tmp_path / "none.log") == ""
    path.write_text("\n".join(str(number) for number in range(100)))
    assert tail(path, line_count=2) == "98\n99"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this test's own that ignores SIGTERM; its command line names a config."""
    code = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('ready', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, "conf/node-1.toml"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


def test_only_a_process_proven_ours_is_signalled(sleeper: subprocess.Popen[bytes]) -> None:
    start_time_s = psutil.Process(sleeper.pid).create_time()
    ours = Child("node-1", sleeper.pid, start_time_s, "conf/node-1.toml")
    another_config = replace(ours, config="conf/node-2.toml")
    another_time = replace(ours, start_time_s=start_time_s - 60)
    gone = replace(ours, pid=2**22 - 1)
    assert ours.alive
    for stranger in (another_config, another_time, gone, replace(ours, pid=os.getpid())):
        assert not stranger.alive
        assert not stranger.send(signal.SIGKILL)
    assert sleeper.poll() is None


def test_a_process_that_ignores_sigterm_is_killed_after_its_grace(
    sleeper: subprocess.Popen[bytes],
) -> None:
    start_time_s = psutil.Process(sleeper.pid).create_time()
    child = Child("node-1", sleeper.pid, start_time_s, "conf/node-1.toml")
    clock = SystemClock()
    killed = stop([child], grace_s=0.1, now_s=clock.monotonic_s, sleep=clock.sleep_blocking)
    assert killed == ["node-1"]
    assert sleeper.wait(10) == -signal.SIGKILL


def test_two_commands_do_not_start_one_cluster_at_once(tmp_path: Path) -> None:
    import fcntl

    write_spec(ClusterPaths(tmp_path).spec, new_spec(ClusterOptions()))
    with ClusterPaths(tmp_path).lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(EnvironmentUnfit, match="another command is starting or stopping"):
            LocalCluster.at(tmp_path).down()


def test_the_cluster_file_names_what_the_architecture_promises(tmp_path: Path) -> None:
    value: dict[str, object] = {"s3": {}, "metadata": [], "nodes": [], "gateways": []}
    (tmp_path / "cluster.json").write_text(json.dumps(value))
    assert set(read_cluster_file(tmp_path)) == {"s3", "metadata", "nodes", "gateways"}


def test_a_process_started_while_an_interrupt_arrives_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(name: str, config: Path) -> list[str]:
        # The interrupt comes at the worst moment: just before the process is there.
        signal.raise_signal(signal.SIGINT)
        return [sys.executable, "-c", "import time; time.sleep(600)", str(config)]

    monkeypatch.setattr("exastore.deploy.children.service_command", command)
    paths = ClusterPaths(tmp_path)
    paths.make()
    with pytest.raises(KeyboardInterrupt):
        spawn(paths, "node-1")
    child = recorded(paths, "node-1")
    assert child is not None
    assert child.alive
    clock = SystemClock()
    stop([child], grace_s=10.0, now_s=clock.monotonic_s, sleep=clock.sleep_blocking)
    assert not child.alive


def test_a_command_that_leaves_its_processes_running_ends_without_a_word(tmp_path: Path) -> None:
    """Living and dead children alike; warnings are errors in there."""
    script = """
import os, signal, sys
from pathlib import Path
from exastore.deploy import children
from exastore.deploy.layout import ClusterPaths

children.service_command = lambda name, config: [
    sys.executable, "-c", "import time; time.sleep(600)", str(config)
]
paths = ClusterPaths(Path(sys.argv[1]))
paths.make()
dead, living = children.spawn(paths, "node-1"), children.spawn(paths, "node-2")
os.kill(dead.pid, signal.SIGKILL)
os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
killed_elsewhere = children.spawn(paths, "node-3")
os.kill(killed_elsewhere.pid, signal.SIGKILL)
os.waitpid(killed_elsewhere.pid, 0)
assert [child.alive for child in (dead, living, killed_elsewhere)] == [False, True, False]
"""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", script, str(tmp_path)]
    paths = ClusterPaths(tmp_path)
    try:
        ended = subprocess.run(command, capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (0, "")
    finally:
        left = recorded(paths, "node-2")
        assert left is not None and left.alive
        clock = SystemClock()
        stop([left], grace_s=10.0, now_s=clock.monotonic_s, sleep=clock.sleep_blocking)
    assert not left.alive
