"""Other erasure coders, called from Python on the same NumPy arrays.

All are optional and found at run time; what is not there is said, with the reason.

- ISA-L through ctypes: every `libisal` there is, Debian's and the one inside of pyeclib's wheel
  (which is newer and has GFNI). Its tables are made by its own `ec_init_tables` ahead.
- pyeclib and zfec by their own interfaces, on `bytes`, which is what they take.
"""

import ctypes
import ctypes.util
import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Stripe:
    """What to compute: `outputs = matrix * inputs`."""

    k: int
    m: int
    #: The chunks read, k of them, and those written, m of them.
    inputs: list[Bytes]
    outputs: list[Bytes]
    #: The coefficients. Shape: [m, k].
    matrix: Bytes
    #: All n chunks in the order of their indexes; `lost` are the indexes of `outputs`.
    chunks: list[Bytes]
    lost: tuple[int, ...]

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk."""
        return self.inputs[0].size

    @property
    def is_encode(self) -> bool:
        """Whether the parity is lost, and nothing else."""
        return self.lost == tuple(range(self.k, self.k + self.m))


class Peer(Protocol):
    """Another coder."""

    @property
    def name(self) -> str:
        """Its name, without spaces, its version, and details."""
        ...

    @property
    def writes_outputs(self) -> bool:
        """Whether it writes the stripe's outputs, byte for byte as we do."""
        ...

    def works(self, stripe: Stripe) -> dict[str, Work]:
        """Calls to time, by the way of calling ("call" and perhaps "kernel"); {} if it cannot."""
        ...


def _addresses(arrays: Sequence[Bytes]) -> Any:
    starts = [array.__array_interface__["data"][0] for array in arrays]
    return (ctypes.c_void_p * len(starts))(*starts)


class Isal:
    """One ISA-L. "kernel": pointers made ahead; "call": pointers of the arrays made in the call."""

    writes_outputs = True

    def __init__(self, path: Path, kernel: str) -> None:
        library = ctypes.CDLL(str(path))
        content = path.read_bytes()
        found = re.search(rb"isa-l-(\d+\.\d+\.\d+)", content)
        self.version: Final = (
            # The file's name says `2.0.30` for 2.30.
            found[1].decode()
            if found
            else path.resolve().name.split(".so.")[-1].replace(".0.", ".")
        )
        self.has_gfni: Final = hasattr(library, "ec_encode_data_avx512_gfni")
        names = {
            "avx512": ("ec_encode_data_avx512", "ec_init_tables_base"),
            "avx2": ("ec_encode_data_avx2", "ec_init_tables_base"),
            "gfni256": ("ec_encode_data_avx2_gfni", "ec_init_tables_gfni"),
        }
        function, tables = names.get(kernel, ("ec_encode_data", "ec_init_tables"))
        if not hasattr(library, function):
            function, tables = "ec_encode_data", "ec_init_tables"
        if not hasattr(library, tables):
            tables = "ec_init_tables"
        self.function: Final = function
        where = "pyeclib's" if "pyeclib" in str(path) else "the system's"
        self.name: Final = f"isal {self.version} ({where}, {function})"
        self._encode: Any = getattr(library, function)
        self._encode.argtypes = [ctypes.c_int] * 3 + [ctypes.c_void_p] * 3
        self._encode.restype = None
        self._init: Any = getattr(library, tables)
        self._init.argtypes = [ctypes.c_int] * 2 + [ctypes.c_void_p] * 2
        self._init.restype = None

    def works(self, stripe: Stripe) -> dict[str, Work]:
        """See `Peer.works`."""
        k, m, length = stripe.k, stripe.m, stripe.chunk_bytes
        tables = np.zeros(32 * k * m, dtype=np.uint8)
        matrix = np.ascontiguousarray(stripe.matrix)
        self._init(k, m, matrix.ctypes.data, tables.ctypes.data)
        encode, sources, targets = (
            self._encode,
            _addresses(stripe.inputs),
            _addresses(stripe.outputs),
        )
        inputs, outputs, table = stripe.inputs, stripe.outputs, tables.ctypes.data

        def kernel(_kept: Any = tables) -> None:
            encode(length, k, m, table, sources, targets)

        def call(_kept: Any = tables) -> None:
            encode(inputs[0].size, k, m, table, _addresses(inputs), _addresses(outputs))

        return {"call": call, "kernel": kernel}


class Pyeclib:
    """OpenStack's coder, over ISA-L. It returns new `bytes` with a header each."""

    writes_outputs = False

    def __init__(self) -> None:
        from importlib.metadata import version

        self.name: Final = f"pyeclib {version('pyeclib')} (isa_l_rs_cauchy)"

    def works(self, stripe: Stripe) -> dict[str, Work]:
        """See `Peer.works`. Its decode rebuilds the data from the fragments that are left."""
        module: Any = importlib.import_module("pyeclib.ec_iface")
        driver = module.ECDriver(k=stripe.k, m=stripe.m, ec_type="isa_l_rs_cauchy")
        data = b"".join(chunk.tobytes() for chunk in stripe.chunks[: stripe.k])
        if stripe.is_encode:
            return {"call": lambda: driver.encode(data)}
        fragments = driver.encode(data)
        left = [f for i, f in enumerate(fragments) if i not in stripe.lost]
        return {"call": lambda: driver.decode(left)}


class Zfec:
    """Tahoe-LAFS's coder, in C without vectors. It returns new `bytes`."""

    writes_outputs = False

    def __init__(self) -> None:
        from importlib.metadata import version

        self.name: Final = f"zfec {version('zfec')}"

    def works(self, stripe: Stripe) -> dict[str, Work]:
        """See `Peer.works`."""
        zfec: Any = importlib.import_module("zfec")
        k, n = stripe.k, stripe.k + stripe.m
        data = [chunk.tobytes() for chunk in stripe.chunks[:k]]
        encoder = zfec.Encoder(k, n)
        if stripe.is_encode:
            parity = list(range(k, n))
            return {"call": lambda: encoder.encode(data, parity)}
        blocks = encoder.encode(data, list(range(n)))
        have = [index for index in range(n) if index not in stripe.lost]
        left = [blocks[index] for index in have]
        decoder = zfec.Decoder(k, n)
        return {"call": lambda: decoder.decode(left, have)}


FAMILIES: Final = ("isal", "pyeclib", "zfec")


def find_peers(families: Sequence[str], kernel: str) -> tuple[list[Peer], dict[str, str]]:
    """The peers there are of these families, the newest first, and why others are missing.

    Args:
        families: names out of `FAMILIES`.
        kernel: our kernel; ISA-L's functions for the same instructions are compared with.
    """
    found: list[Peer] = []
    missing: dict[str, str] = {}
    if "isal" in families:
        libraries = [Isal(path, kernel) for path in _isal_libraries()]
        libraries.sort(key=lambda isal: (isal.has_gfni, isal.version), reverse=True)
        found += libraries
        if not libraries:
            missing["isal"] = "no libisal: install Debian's libisal2, or pyeclib, which brings one"
    makers: dict[str, Callable[[], Peer]] = {"pyeclib": Pyeclib, "zfec": Zfec}
    for family, make in makers.items():
        if family not in families:
            continue
        if importlib.util.find_spec(family) is None:
            missing[family] = f"not installed: pip install {family}"
        else:
            found.append(make())
    return found, missing


def _isal_libraries() -> list[Path]:
    paths: list[Path] = []
    spec = importlib.util.find_spec("pyeclib")
    if spec is not None and spec.origin is not None:
        paths += Path(spec.origin).parent.parent.glob("pyeclib.libs/libisal*.so*")
    name = ctypes.util.find_library("isal")
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib"):
        if name is not None and (Path(folder) / name).exists():
            paths.append((Path(folder) / name).resolve())
            break
    return paths
