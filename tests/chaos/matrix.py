"""Kills, stops or fails processes of a cluster at every phase of its operations, and judges it.

One case: arm a phase, do the operation that passes it, see the process die, start it again, and
wait until the cluster is fully redundant. Then what was acknowledged must read back byte for byte,
and what was not must be there whole or not at all.
"""

import hashlib
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import psutil
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from tests.integration.conftest import LiveCluster, exastore, exastore_here, wait_until

from exastore.deploy.errors import ClusterUnhealthy
from exastore.deploy.failpoints import Action, arm, disarm, fired_by
from exastore.deploy.launcher import LocalCluster
from exastore.deploy.spec import ClusterOptions
from exastore.deploy.status import fetch_status
from exastore.metadata.core.phases import Phase

BUCKET = "chaos"
MIB = 1 << 20
#: Sizes of what is overwritten: two extents of rs-2-2, so that one may be there and one not.
BODY_BYTES = 3 * MIB
PART_BYTES = 5 * MIB + 17

#: Client operations that write an object; each over an old one but "new".
WRITES = ("put", "new", "copy", "multipart", "small", "inline")
_STRIPED = ("put", "new", "copy", "multipart", "small")
_CHUNKS = ("put", "copy", "multipart", "small")
_COMMITS = ("put", "new", "copy", "small", "inline")

#: What is done to pass a phase, the usual first; nothing: see test_device_phases.py.
OPERATIONS_OF: dict[Phase, tuple[str, ...]] = {
    Phase.BODY_READ: _STRIPED,
    Phase.ENCODED: _STRIPED,
    Phase.FRAME_HALF_SENT: ("put", "copy", "multipart"),
    Phase.CHUNK_ANSWERED: _STRIPED,
    Phase.QUORUM_REACHED: _STRIPED,
    Phase.COMMIT_SENDING: WRITES,
    Phase.COMMITTED: WRITES,
    Phase.DELETE_SENDING: ("delete",),
    Phase.DELETED: ("delete",),
    Phase.COMPLETE_SENDING: ("multipart",),
    Phase.COMPLETED: ("multipart",),
    Phase.FRAME_HALF_RECEIVED: ("put", "copy", "multipart"),
    Phase.CHUNK_RECEIVED: _CHUNKS,
    Phase.CHUNK_APPENDING: _CHUNKS,
    Phase.CHUNK_APPENDED: _CHUNKS,
    Phase.CHUNK_SYNCING: _CHUNKS,
    Phase.CHUNK_SYNCED: _CHUNKS,
    Phase.CHUNK_ANSWERING: _CHUNKS,
    Phase.CHUNK_READ: ("get", "copy"),
    Phase.ANSWER_HALF_SENT: ("get", "copy"),
    Phase.TOMBSTONES_APPENDED: ("delete", "put"),
    Phase.TOMBSTONES_DURABLE: ("delete", "put"),
    Phase.REBUILD_PULLED: ("rebuild",),
    Phase.REBUILD_WRITTEN: ("rebuild",),
    Phase.REBUILD_VERIFIED: ("drain",),
    Phase.PACK_READ: ("pack",),
    Phase.PACK_STORED: ("pack",),
    Phase.COMPACT_MOVING: (),
    Phase.COMPACT_MOVED: (),
    Phase.COMPACT_REMOVED: (),
    Phase.CHECKPOINTED: (),
    Phase.COMMIT_RECEIVED: _COMMITS,
    Phase.COMMIT_DURABLE: _COMMITS,
    Phase.PART_RECEIVED: ("multipart",),
    Phase.PART_DURABLE: ("multipart",),
    Phase.COMPLETE_RECEIVED: ("multipart",),
    Phase.COMPLETE_DURABLE: ("multipart",),
    Phase.DELETE_RECEIVED: ("delete",),
    Phase.DELETE_DURABLE: ("delete",),
    Phase.ENGINE_COMMITTING: ("put", "inline", "multipart", "delete"),
    Phase.ENGINE_COMMITTED: ("put", "inline", "multipart", "delete"),
    Phase.TRASH_CHUNKS_DELETED: ("delete", "put"),
    Phase.SLOT_BEGUN: ("rebuild",),
    Phase.SLOT_VERIFIED: ("rebuild",),
    Phase.SLOT_CLEAN: ("rebuild",),
    Phase.PACK_BEGUN: ("pack",),
    Phase.PACK_WRITTEN: ("pack",),
    Phase.PACK_SWAPPED: ("pack",),
    Phase.MOVES_BEGUN: ("drain",),
}
_BODY_BYTES = {"small": 60_000, "inline": 900}
PACKED_COUNT, PACKED_BYTES = 24, 40_000

#: An error there is one of the device.
FENCING = {Phase.CHUNK_APPENDING, Phase.CHUNK_SYNCING, Phase.CHUNK_SYNCED}


@dataclass(frozen=True, slots=True)
class Case:
    """A phase, the operation that passes it, and what happens there.

    Attributes:
        during: Done while the process stands still, which its action has to be; named in tables.
    """

    phase: Phase
    action: Action
    operation: str
    during: str = ""

    def __str__(self) -> str:
        return f"{self.phase} {self.fault} {self.operation}"

    @property
    def fault(self) -> str:
        return self.during or str(self.action)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one case.

    Attributes:
        victim: The process that reached the phase.
        answer: "acknowledged", "refused", or "none" where no client waited.
        found: "old", "new": what the key held afterwards; "-" where none was written.
    """

    phase: Phase
    fault: str
    operation: str
    victim: str
    answer: str
    found: str


def body_of(text: str, size_bytes: int = BODY_BYTES) -> bytes:
    return hashlib.shake_256(text.encode()).digest(size_bytes)


def client_of(live: LiveCluster, *, attempts: int) -> Any:
    """A client that gives up after so many attempts, and waits long for an answer."""
    s3 = live.info["s3"]
    config = Config(
        retries={"total_max_attempts": attempts, "mode": "standard"},
        s3={"addressing_style": "path"},
        proxies={},
        read_timeout=60,
    )
    client = boto3.client(
        "s3", endpoint_url=s3["endpoint"], aws_access_key_id=s3["access_key"],
        aws_secret_access_key=s3["secret_key"], region_name="us-east-1", config=config,
    )  # fmt: skip
    live.clients.append(client)
    return client


@dataclass
class Chaos:
    """A cluster whose processes listen to `failpoints`, and what must be in it."""

    live: LiveCluster
    failpoints: Path
    outcomes: list[Outcome] = field(default_factory=list[Outcome])
    #: What may be done while a process stands still, by its name in `Case.during`.
    during: dict[str, Callable[[], None]] = field(default_factory=dict[str, Callable[[], None]])
    #: What each key must hold; None: nothing.
    expected: dict[str, bytes | None] = field(default_factory=dict[str, bytes | None])

    def __post_init__(self) -> None:
        self._count = 0
        self._client = client_of(self.live, attempts=1)
        self._reader = client_of(self.live, attempts=6)
        self._pool = ThreadPoolExecutor(1)
        self._reader.create_bucket(Bucket=BUCKET)
        for name, size_bytes in (("inline", 900), ("small", 60_000), ("large", BODY_BYTES)):
            self._reader.put_object(Bucket=BUCKET, Key=name, Body=body_of(name, size_bytes))
            self.expected[name] = body_of(name, size_bytes)

    # ---- one case ----

    def run(self, case: Case) -> Outcome:
        """Do what passes the phase, let the process do the action there, heal, judge."""
        phase, action, operation = case.phase, case.action, case.operation
        begun_s = time.monotonic()
        self._count += 1
        key = f"{operation}-{self._count}"
        is_client = operation in (*WRITES, "get", "delete")
        old: bytes | None = None
        if is_client and operation != "new":
            old = body_of(f"{key} old", _BODY_BYTES.get(operation, BODY_BYTES))
            self._reader.put_object(Bucket=BUCKET, Key=key, Body=old)
        if operation == "pack":
            self._put_packable(key)
        arm(self.failpoints, phase, action)
        names = {child.pid: name for name, child in self._local.children().items()}
        answer, new, done = self._operate(operation, key)
        try:
            wait_until(lambda: fired_by(self.failpoints, phase) is not None, f"{phase} is reached")
        finally:
            disarm(self.failpoints, phase)
        pid = fired_by(self.failpoints, phase)
        assert pid is not None
        self._revive(pid, case)
        if action is Action.ERROR and phase in FENCING:
            wait_until(lambda: bool(self.live.status().fenced_node_ids), "the device is fenced")
            self._mend_fenced()
        word = self._answer(answer)
        done()
        self.heal()
        found = self._judge(key, old, new, word) if is_client else "-"
        self._check(["inline", "small", "large"])
        if operation == "pack":
            self._check([k for k in self.expected if k.startswith(f"{key}/")])
        victim = names[pid].split("-")[0]
        outcome = Outcome(phase, case.fault, operation, victim, word, found)
        print(f"{case}: {word}, {found}, {time.monotonic() - begun_s:.1f} s", flush=True)
        self.outcomes.append(outcome)
        return outcome

    def heal(self) -> None:
        """Wait until nothing is missing, and nothing moves."""
        wait_until(self._is_healed, "fully redundant again")

    def _is_healed(self) -> bool:
        try:
            status = self.live.status()
        except ClusterUnhealthy:
            return False  # it answers late on a busy machine
        return status.fully_redundant and not status.repair.active and status.moves.is_still

    def _operate(
        self, operation: str, key: str
    ) -> tuple[Future[None] | None, bytes | None, Callable[[], None]]:
        """Begin: the client's answer to come, what it writes, and what is to be done in the end."""
        if operation in ("put", "new", "small", "inline"):
            new = body_of(f"{key} new", _BODY_BYTES.get(operation, BODY_BYTES))
            put = self._client.put_object
            return self._pool.submit(put, Bucket=BUCKET, Key=key, Body=new), new, _nothing
        if operation == "copy":
            source = {"Bucket": BUCKET, "Key": "large"}
            copy = self._client.copy_object
            answer = self._pool.submit(copy, Bucket=BUCKET, Key=key, CopySource=source)
            return answer, body_of("large"), _nothing
        if operation == "get":
            return self._pool.submit(self._get, key), None, _nothing
        if operation == "pack":
            command = ("cluster", "pack", "--apply", "--dir", self.live.directory)
            packing = self._pool.submit(exastore, *command)
            return None, None, lambda: _nothing(packing.result(timeout=120))
        if operation == "delete":
            return self._pool.submit(
                self._client.delete_object, Bucket=BUCKET, Key=key
            ), None, _nothing  # fmt: skip
        if operation == "multipart":
            parts = [body_of(f"{key} part {n}", PART_BYTES) for n in (1, 2)]
            return self._pool.submit(self._multipart, key, parts), b"".join(parts), _nothing
        node = self._fullest()
        if operation == "rebuild":
            child = self._local.children()[node]
            child.send(signal.SIGKILL)
            return None, None, _nothing
        begun = self.live.run("cluster", "drain", node, "--apply", "--no-wait")
        assert begun.code == 0, begun.text

        def undrain() -> None:
            ended = self.live.run("cluster", "drain", node, "--cancel", "--apply", "--no-wait")
            assert ended.code == 0, ended.text

        return None, None, undrain

    def _put_packable(self, key: str) -> None:
        """Objects that are copies now, and worth a stripe."""
        for number in range(PACKED_COUNT):
            name = f"{key}/{number}"
            self.expected[name] = body_of(name, PACKED_BYTES)
            self._reader.put_object(Bucket=BUCKET, Key=name, Body=self.expected[name])

    def _get(self, key: str) -> None:
        """What a client reads while the fault happens must be right, too."""
        body = self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        assert body == body_of(f"{key} old"), f"{key}: other bytes than were written"

    def _multipart(self, key: str, parts: list[bytes]) -> None:
        where = {"Bucket": BUCKET, "Key": key}
        upload = {**where, "UploadId": self._client.create_multipart_upload(**where)["UploadId"]}
        done = [
            {
                "PartNumber": number,
                "ETag": self._client.upload_part(**upload, PartNumber=number, Body=part)["ETag"],
            }
            for number, part in enumerate(parts, 1)
        ]
        self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": done})

    def _revive(self, pid: int, case: Case) -> None:
        """Bring back who died or stands still; also nodes that the operation killed."""
        if case.action is Action.PAUSE:
            wait_until(
                lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "it stands still"
            )
            name = next(n for n, child in self._local.children().items() if child.pid == pid)
            if name.startswith("node"):
                wait_until(lambda: self._state_of(name) != "up", f"{name} is missed")
            if case.during:
                self.during[case.during]()
            os.kill(pid, signal.SIGCONT)
        elif case.action is Action.KILL:
            wait_until(lambda: pid not in self._pids(), "it is dead")
        self._up()

    def change_map(self) -> None:
        """Lose a node and see its chunks rebuilt elsewhere: who slept meanwhile has an old map."""
        epoch = self.live.status().epoch
        self._local.children()[self._fullest()].send(signal.SIGKILL)
        wait_until(lambda: self.live.status().epoch > epoch, "the loss is noticed")
        self.heal()

    def lose_lease(self) -> None:
        """See another metadata server do the background work."""
        others = [
            server["address"]
            for server in self.live.info["metadata"]
            if psutil.Process(server["pid"]).status() != psutil.STATUS_STOPPED
        ]
        assert others
        wait_until(lambda: fetch_status(others).does_background_work, "another has the lease")

    def _mend_fenced(self) -> None:
        """What an operator does with a device that had an error: empty it, check it, use it."""
        for node in set(self.live.status().fenced_node_ids):
            wait_until(self._is_healed, "its chunks are elsewhere")
            child = self._local.children()[node]
            child.send(signal.SIGTERM)
            wait_until(lambda child=child: not child.alive, f"{node} has stopped")  # type: ignore[misc]
            device = self.live.directory / "data" / node
            checked = exastore_here("node", "fsck", device, "--lift-fence", "--json")
            assert checked.code == 0, checked.out
            assert checked.json["fence"], "the device does not remember its error"
            self._up()

    def _answer(self, answer: "Future[None] | None") -> str:
        if answer is None:
            return "none"
        try:
            answer.result(timeout=90)
        except (ClientError, BotoCoreError) as error:
            if isinstance(error, ClientError):
                response: Any = error.response
                assert response["ResponseMetadata"]["HTTPStatusCode"] != 500, response
            return "refused"
        return "acknowledged"

    def _judge(self, key: str, old: bytes | None, new: bytes | None, answer: str) -> str:
        """Whether the key holds the old or the new; an acknowledged write must be there."""
        found = self._read(key)
        if key.startswith("get-"):
            new = old
        assert found in (old, new), f"{key} holds neither the old nor the new, after {answer}"
        if answer == "acknowledged":
            assert found == new, f"{key}: an acknowledged write is gone"
        self.expected[key] = found
        return "old" if found == old else "new"

    # ---- all of it ----

    def check_all(self) -> None:
        """Every key that was ever acknowledged, and every chunk."""
        self._check(list(self.expected))
        scrubbed = self.live.run("cluster", "scrub", "--json")
        assert scrubbed.code == 0, scrubbed.out

    def collect_orphans(self) -> int:
        """Reclaim what writes that were cut off left behind, and nothing else; chunks reclaimed."""
        before = self._gc()
        after = self._gc()
        assert after["orphan_chunks"] == 0, after
        self._check(list(self.expected))
        reclaimed: int = before["deleted_chunks"]
        print(f"orphans: {reclaimed} chunks, {before['orphan_bytes']} bytes reclaimed", flush=True)
        return reclaimed

    def _gc(self) -> Any:
        """A collection that looked everywhere."""
        reports: list[Any] = []

        def is_whole() -> bool:
            ended = self.live.run("cluster", "gc", "--apply", "--older-than-s", "1", "--json")
            assert ended.code == 0, ended.text
            reports.append(ended.json)
            return ended.json["skipped_pgs"] == 0 and not ended.json["message"]

        self.heal()
        wait_until(is_whole, "every placement group was searched for orphans")
        total = {
            name: sum(report[name] for report in reports)
            for name in ("deleted_chunks", "orphan_bytes")
        }
        return {**reports[-1], **total}

    def _check(self, keys: list[str]) -> None:
        for key in keys:
            assert self._read(key) == self.expected[key], key

    def _read(self, key: str) -> bytes | None:
        try:
            body: bytes = self._reader.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        except ClientError as error:
            response: Any = error.response
            assert response["Error"]["Code"] == "NoSuchKey", response
            return None
        return body

    def _up(self) -> None:
        """Start who does not run."""
        self.live.info = self._local.up(ClusterOptions(), _silent).cluster

    def _fullest(self) -> str:
        """The node with the most slots: without any, nobody would miss it."""
        nodes = self.live.status().nodes
        return max(nodes, key=lambda node: sum(d.slot_count for d in node.devices)).id

    @property
    def _local(self) -> LocalCluster:
        return LocalCluster.at(self.live.directory)

    def _pids(self) -> set[int]:
        return {child.pid for child in self._local.children().values()}

    def _state_of(self, node_id: str) -> str:
        return next(n.devices[0].state for n in self.live.status().nodes if n.id == node_id)


def _nothing(_: object = None) -> None:
    pass


def _silent(_: str) -> None:
    pass
