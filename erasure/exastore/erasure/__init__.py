"""Codes over GF(2^8): encode, decode, repair plans. Imports no other room.

from exastore.erasure import codec
c = codec("rs-10-4")
parity = c.encode(data)                          # uint8[10, L] -> uint8[4, L]
c.decode({index: chunk, ...}, want=[3])          # any 10 chunks -> {3: chunk}
"""

from exastore.erasure.contract import Codec
from exastore.erasure.errors import ErasureError, TooFewChunks, UnknownCode
from exastore.erasure.plan import RepairPlan
from exastore.erasure.registry import codec

__all__ = ["Codec", "ErasureError", "RepairPlan", "TooFewChunks", "UnknownCode", "codec"]
