"""Clients of metadata servers in a process of their own, as one gateway has them.

    python -m bench.metadata_clients FIRST_CLIENT CLIENT_COUNT ADDRESS...

Reads orders from stdin, one JSON object a line: {"method", "servers", "seconds"}; answers each with
{"calls"}: what was answered within those seconds. Client i asks server i modulo `servers`, call
after call. Commits are of new keys; look-ups are of keys committed by the same process before.
"""

import asyncio
import json
import os
import sys
import time

import grpc
import numpy as np
from bench.bench_namespace import BUCKET, object_of, pb

from exastore.gateway.batched_channel import BatchedChannel
from exastore.proto.channel import METADATA_MESSAGE_BYTES, channel_options
from exastore.proto.links import BulkDialer, ChunkTransport

#: Before the time begins that is measured.
WARM_UP_S = 0.5


class Clients:
    """The clients of one process."""

    def __init__(self, first: int, count: int, addresses: list[str]) -> None:
        options = channel_options(METADATA_MESSAGE_BYTES)
        self._channels = [grpc.aio.insecure_channel(at, options=options) for at in addresses]
        transport = ChunkTransport(os.environ.get("EXASTORE_BENCH_TRANSPORT", "local"))
        self._batched = [
            BatchedChannel(BulkDialer(address, channel, transport))
            for address, channel in zip(addresses, self._channels, strict=True)
        ]
        self._numbers = range(first, first + count)
        self._rng = np.random.default_rng(first)
        self._keys: list[str] = []

    async def run(self, method: str, server_count: int, seconds: float) -> int:
        """Calls answered within `seconds`, after a warm-up."""
        counted_from_s = time.perf_counter() + WARM_UP_S
        until_s = counted_from_s + seconds
        counts = await asyncio.gather(
            *(
                self._client(number, method, number % server_count, counted_from_s, until_s)
                for number in self._numbers
            )
        )
        return sum(counts)

    async def _client(
        self, number: int, method: str, server: int, counted_from_s: float, until_s: float
    ) -> int:
        call = self._batched[server].unary_unary(f"/MetadataService/{method}", bytes, bytes)
        rng = self._rng.spawn(1)[0]
        count = 0
        while (now_s := time.perf_counter()) < until_s:
            if method == "CommitObject":
                key = f"{rng.bytes(4).hex()}/{number}-{count}.jpg"
                commit = pb.CommitObjectRequest(object=object_of(count, key, rng))
                await call(commit.SerializeToString(), timeout=60.0)
                self._keys.append(key)
            else:
                key = self._keys[int(rng.integers(len(self._keys)))]
                look_up = pb.GetObjectRequest(bucket=BUCKET, key=key)
                await call(look_up.SerializeToString(), timeout=60.0)
            count += counted_from_s <= now_s and time.perf_counter() < until_s
        return count

    async def close(self) -> None:
        for batched, channel in zip(self._batched, self._channels, strict=True):
            await batched.close()
            await channel.close()


def main() -> None:
    first, count, *addresses = sys.argv[1:]
    with asyncio.Runner() as runner:

        async def opened() -> Clients:
            return Clients(int(first), int(count), addresses)

        clients = runner.run(opened())
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            calls = runner.run(clients.run(order["method"], order["servers"], order["seconds"]))
            print(json.dumps({"calls": calls}), flush=True)
        runner.run(clients.close())


if __name__ == "__main__":
    main()
