"""What tenants are billed for besides what they store: requests and bytes, by day.

    (traffic, tenant, day)       Traffic         day as in "2026-11-24", UTC
    (batches, gateway)           two numbers     the last batch of a gateway's run, and when it came

Gateways count in memory and send batches. A batch is counted once: the row of its gateway says
which was the last, and one that is not newer is a repetition. What a gateway had not sent when it
died is not billed.
"""

import struct
from datetime import UTC, datetime

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.keys import pack, prefix_range, unpack
from exastore.metadata.namespace.errors import InvalidArgument
from exastore.proto.v1 import access_pb2

TENANT_COUNT_MAX = 40
#: Rows of gateways that sent nothing for so long are forgotten.
SILENT_S = 7 * 86400.0
_SILENT_CHECKED = 20
_BATCH = struct.Struct("<Qd")


def add(txn: Transaction, request: access_pb2.AddTrafficRequest, now_s: float) -> bool:
    """Count a batch; whether it is counted now, not before. Raises InvalidArgument."""
    tenants = {item.tenant for item in request.traffic}
    if not request.gateway_id or not request.sequence:
        raise InvalidArgument("a batch of traffic names its gateway and has a number from 1")
    if len(tenants) > TENANT_COUNT_MAX or len(tenants) != len(request.traffic):
        raise InvalidArgument(f"a batch of traffic has 1 to {TENANT_COUNT_MAX} different tenants")
    batch_key = pack("batches", request.gateway_id)
    known = txn.get(batch_key)
    if known is None:
        _forget_silent(txn, now_s)
    elif _BATCH.unpack(known)[0] >= request.sequence:
        return False
    day = f"{datetime.fromtimestamp(now_s, UTC):%Y-%m-%d}"
    for item in request.traffic:
        key = pack("traffic", item.tenant, day)
        value = txn.get(key)
        total = access_pb2.Traffic() if value is None else access_pb2.Traffic.FromString(value)
        _merge(total, item)
        txn.put(key, total.SerializeToString())
    txn.put(batch_key, _BATCH.pack(request.sequence, now_s))
    return True


def read(txn: Transaction, request: access_pb2.GetTrafficRequest) -> access_pb2.GetTrafficResponse:
    """The days of a tenant, oldest first."""
    found = access_pb2.GetTrafficResponse()
    for key, value in txn.scan(*prefix_range(pack("traffic", request.tenant))):
        day = unpack(key)[2]
        assert isinstance(day, str)
        if day >= request.first_day and (not request.last_day or day <= request.last_day):
            found.days.add(day=day, traffic=access_pb2.Traffic.FromString(value))
    return found


def _merge(total: access_pb2.Traffic, item: access_pb2.Traffic) -> None:
    total.tenant = item.tenant
    total.received_bytes += item.received_bytes
    total.sent_bytes += item.sent_bytes
    for kind, count in item.requests.items():
        total.requests[kind] += count


def _forget_silent(txn: Transaction, now_s: float) -> None:
    for key, value in txn.scan(*prefix_range(pack("batches")), limit=_SILENT_CHECKED):
        if _BATCH.unpack(value)[1] < now_s - SILENT_S:
            txn.delete(key)
