"""Repair of a real cluster stays within its budgets, which change while it runs."""

import os
import signal
import time

from tests.integration.conftest import LiveCluster, NewCluster, wait_until

RATE = 256 << 10


def read_bytes(live: LiveCluster) -> int:
    return live.status().repair.read_bytes


def test_a_rack_budget_holds_repair_back_until_it_is_lifted(new_cluster: NewCluster) -> None:
    live = new_cluster("--nodes", "6", "--code", "rs-2-2", "--pg-count", "12", "--rack", "a",
                       "--rack", "b", "--down-after-s", "1", "--out-after-s", "2")  # fmt: skip
    shown = live.run("cluster", "budget", "--rack", "256KiB")
    assert shown.code == 0 and "add --apply" in shown.text
    assert live.run("cluster", "budget", "--json").json["budgets"]["rack_bytes_per_s"] == 0
    s3 = live.client()
    s3.create_bucket(Bucket="rack")
    for number in range(48):
        s3.put_object(Bucket="rack", Key=f"{number}", Body=os.urandom(1 << 20))
    # Budgets that repair would need minutes for.
    assert live.run("cluster", "budget", "--rack", str(RATE), "--apply").code == 0
    pid = next(item["pid"] for item in live.info["nodes"] if item["id"] == "node-6")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: read_bytes(live) > 0, "the rebuild reads")
    begun_s, before = time.monotonic(), read_bytes(live)
    wait_until(
        lambda: any(
            rack["leased_bytes_per_s"] > 0
            for rack in live.run("cluster", "budget", "--json").json["racks"]
        ),
        "leases are given",
    )
    time.sleep(3)  # a rate can only be measured over time
    told = live.run("cluster", "budget", "--json").json
    elapsed_s = time.monotonic() - begun_s
    repair = live.status().repair
    assert repair.active
    # Of what is read about a half comes from the other rack, at most RATE into each of the two;
    # what may pass at once comes on top.
    assert repair.read_bytes - before < 2 * 2 * RATE * elapsed_s + (8 << 20)
    for rack in told["racks"]:
        assert rack["leased_bytes_per_s"] <= 1.001 * RATE
    lifted_s = time.monotonic()
    assert live.run("cluster", "budget", "--rack", "0", "--apply").code == 0
    wait_until(lambda: live.status().fully_redundant, "the rebuild ends", 30)
    print(f"held back for {elapsed_s:.1f} s, done {time.monotonic() - lifted_s:.1f} s later")
    assert live.run("cluster", "scrub").code == 0
