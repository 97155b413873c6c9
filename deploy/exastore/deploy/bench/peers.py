"""Other erasure coders, called on the same NumPy arrays as ours.

All are optional and found at run time; what is not there is said, with what to install.

- ISA-L: every `libisal` there is, Debian's and the one inside of pyeclib's wheel (which is newer
  and has GFNI), or one given by its path. Its tables are made by its own `ec_init_tables` ahead.
- pyeclib by its own interface, on `bytes`, which is all that it takes: each call copies the data
  into buffers of its own, and all that it made into new `bytes` with a header of 80 bytes each. Its
  decode gives the whole data back, joined. Both are in its time, as they are in its users'.
- zfec by its own interface, on NumPy arrays, which it reads without a copy. What it makes is new
  `bytes`. Its decode inverts the matrix in each call.
"""

import ctypes
import ctypes.util
import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from exastore.deploy.bench.timing import Repeat, native_repeat, python_repeat
from exastore.deploy.errors import BadInput, DeployError
from exastore.erasure.chunks import address_of
from exastore.erasure.kernels.native import host_features

Bytes = NDArray[np.uint8]

#: From Python, with NumPy arrays, as a program would; for ISA-L a bare ctypes call that makes its
#: two arrays of pointers and checks nothing.
CALL: Final = "call"
#: A ctypes call with the arrays of pointers made ahead.
POINTERS: Final = "pointers"
#: Machine code, called from machine code.
KERNEL: Final = "kernel"


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
    def n(self) -> int:
        """Chunks of the code."""
        return len(self.chunks)

    @property
    def is_encode(self) -> bool:
        """Whether the parity is lost, and nothing else."""
        return self.lost == tuple(range(self.k, self.n))

    @property
    def left(self) -> tuple[int, ...]:
        """The k chunks that are read, ascending."""
        return tuple(index for index in range(self.n) if index not in self.lost)[: self.k]

    def outputs_are_right(self) -> bool:
        """Whether the outputs hold what was lost."""
        pairs = zip(self.outputs, self.lost, strict=True)
        return all(np.array_equal(output, self.chunks[index]) for output, index in pairs)


@dataclass(frozen=True, slots=True)
class Work:
    """One way in which a contestant does a stripe."""

    repeat: Repeat
    #: Does it once and says whether the result is right.
    is_right: Callable[[], bool]


class WrongResult(DeployError):
    """A contestant computed something else than what is right, so its time means nothing."""

    def __init__(self, name: str, way: str, geometry: str) -> None:
        super().__init__(f"{name} ({way}) gives a wrong result for {geometry}")


class Peer(Protocol):
    """Another coder."""

    @property
    def name(self) -> str:
        """A short name with its version, without spaces."""
        ...

    @property
    def details(self) -> str:
        """Where it comes from, and what of it is called."""
        ...

    def works(self, stripe: Stripe) -> dict[str, Work]:
        """What to time, by the way of calling."""
        ...


def written(repeat: Repeat, stripe: Stripe) -> Work:
    """The work of a contestant that writes the stripe's outputs."""

    def is_right() -> bool:
        for output in stripe.outputs:
            output[:] = 0
        repeat(1)
        return stripe.outputs_are_right()

    return Work(repeat, is_right)


def _addresses(arrays: Sequence[Bytes]) -> Any:
    # The fastest way that we know, which is ours as well.
    starts = [address_of(array) for array in arrays]
    return (ctypes.c_void_p * len(starts))(*starts)


#: ISA-L's functions, by the end of their names, and what the processor must have for them.
ISAL_FUNCTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "own": (),
    "base": (),
    "sse": ("sse4_1",),
    "avx": ("avx",),
    "avx2": ("avx2",),
    "avx512": ("avx512f", "avx512bw", "avx512vl", "avx512dq"),
    "avx2_gfni": ("avx2", "gfni"),
    "avx512_gfni": ("avx512f", "avx512bw", "avx512vl", "avx512dq", "gfni"),
}
#: Its functions for the instructions of our kernels, best first; otherwise its own choice.
_SAME_INSTRUCTIONS: Final = {
    "avx512": ("avx512",),
    "gfni256": ("avx2_gfni", "avx2"),
    "avx2": ("avx2",),
    "portable": ("base",),
}


class Isal:
    """One ISA-L, by one of its sets of functions."""

    def __init__(self, path: Path, functions: str) -> None:
        """Load it.

        Args:
            path: the shared library.
            functions: a key of `ISAL_FUNCTIONS`.

        Raises:
            LookupError: this version has no such functions.
            OSError: it cannot be loaded.
        """
        library = ctypes.CDLL(str(path))
        function = "ec_encode_data" if functions == "own" else f"ec_encode_data_{functions}"
        tables = "ec_init_tables"
        if functions != "own":
            tables += "_gfni" if "gfni" in functions else "_base"
        if not hasattr(library, tables):
            # Before GFNI there was one kind of table.
            tables = "ec_init_tables"
        if not hasattr(library, function):
            raise LookupError(function)
        self.version: Final = _isal_version(library, path)
        origin = "in pyeclib's wheel" if "pyeclib" in str(path) else str(path)
        suffix = "" if functions == "own" else f"-{functions}"
        self.name: Final = f"isal-{self.version}{suffix}"
        self.details: Final = f"ISA-L {self.version} {origin}, {function}"
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
        encode, table = self._encode, tables.ctypes.data
        inputs, outputs = stripe.inputs, stripe.outputs
        sources, targets = _addresses(inputs), _addresses(outputs)
        address = ctypes.cast(encode, ctypes.c_void_p).value
        assert address is not None

        def pointers(_kept: Any = tables) -> None:
            encode(length, k, m, table, sources, targets)

        def call(_kept: Any = tables) -> None:
            encode(inputs[0].size, k, m, table, _addresses(inputs), _addresses(outputs))

        arguments = (length, k, m, table, ctypes.addressof(sources), ctypes.addressof(targets))
        kept = (self, stripe, tables, sources, targets)
        return {
            KERNEL: written(native_repeat(address, arguments, kept), stripe),
            POINTERS: written(python_repeat(pointers), stripe),
            CALL: written(python_repeat(call), stripe),
        }


def _isal_version(library: Any, path: Path) -> str:
    if hasattr(library, "isal_get_version_str"):
        library.isal_get_version_str.restype = ctypes.c_char_p
        return str(library.isal_get_version_str().decode())
    # The file's name says `libisal.so.2.0.30` for 2.30.0.
    numbers = path.resolve().name.partition(".so.")[2].split(".")
    return f"{numbers[0]}.{numbers[2]}.0" if len(numbers) == 3 else "unknown"


class Pyeclib:
    """OpenStack's coder, over the ISA-L inside of its wheel."""

    def __init__(self) -> None:
        self.name: Final = f"pyeclib-{version('pyeclib')}"
        self.details: Final = "isa_l_rs_cauchy, over the ISA-L in its wheel, copies in and out"

    def works(self, stripe: Stripe) -> dict[str, Work]:
        """See `Peer.works`. It decodes the data, all of it, from what is left."""
        module: Any = importlib.import_module("pyeclib.ec_iface")
        driver = module.ECDriver(k=stripe.k, m=stripe.n - stripe.k, ec_type="isa_l_rs_cauchy")
        data = b"".join(chunk.tobytes() for chunk in stripe.chunks[: stripe.k])
        if stripe.is_encode:

            def encoded_is_right() -> bool:
                fragments = driver.encode(data)
                return bool(driver.decode(fragments[-stripe.k :]) == data)

            work = python_repeat(lambda: driver.encode(data))
            return {CALL: Work(work, encoded_is_right)}
        fragments = driver.encode(data)
        left = [fragments[index] for index in stripe.left]
        work = python_repeat(lambda: driver.decode(left))
        return {CALL: Work(work, lambda: bool(driver.decode(left) == data))}


class Zfec:
    """Tahoe-LAFS's coder, in C without vectors."""

    def __init__(self) -> None:
        self.name: Final = f"zfec-{version('zfec')}"
        self.details: Final = "C without vectors, its decode inverts the matrix in each call"

    def works(self, stripe: Stripe) -> dict[str, Work]:
        """See `Peer.works`."""
        zfec: Any = importlib.import_module("zfec")
        k, n = stripe.k, stripe.n
        data = tuple(stripe.chunks[:k])
        encoder, decoder = zfec.Encoder(k, n), zfec.Decoder(k, n)

        def decodes(chunks: tuple[Any, ...], have: tuple[int, ...]) -> bool:
            made = decoder.decode(chunks, have)
            pairs = zip(made, data, strict=True)
            return all(np.array_equal(np.frombuffer(m, np.uint8), d) for m, d in pairs)

        if stripe.is_encode:
            parity = tuple(range(k, n))

            def encoded_is_right() -> bool:
                all_chunks = (*data, *encoder.encode(data, parity))
                return decodes(all_chunks[-k:], tuple(range(n))[-k:])

            work = python_repeat(lambda: encoder.encode(data, parity))
            return {CALL: Work(work, encoded_is_right)}
        made = encoder.encode(data, tuple(range(n)))
        left = tuple(np.frombuffer(made[index], np.uint8) for index in stripe.left)
        # As it wants them: a data chunk at the place of its number.
        work = python_repeat(lambda: decoder.decode(left, stripe.left))
        return {CALL: Work(work, lambda: decodes(left, stripe.left))}


FAMILIES: Final = ("isal", "pyeclib", "zfec")
_HINTS: Final = {
    "isal": "no libisal: `apt-get install libisal2`, or `pip install pyeclib`, whose wheel has one",
    "pyeclib": "not installed: `pip install pyeclib`",
    "zfec": "not installed: `pip install zfec`",
}


def find_peers(
    families: Sequence[str],
    kernel: str,
    *,
    isal_functions: str = "auto",
    isal_library: Path | None = None,
) -> tuple[list[Peer], dict[str, str]]:
    """The peers there are of these families, the newest first, and why others are missing.

    Args:
        families: names out of `FAMILIES`.
        kernel: our kernel. ISA-L is called by its functions for the same instructions, the
            fastest of our kernels being compared with ISA-L's own choice.
        isal_functions: a key of `ISAL_FUNCTIONS` instead.
        isal_library: one more library to compare with.

    Raises:
        BadInput: no such functions, this processor cannot run them, or no such library.
    """
    found: list[Peer] = []
    missing: dict[str, str] = {}
    if "isal" in families:
        libraries = _isal_libraries(isal_library)
        isals, without = _isals(libraries, _functions(kernel, isal_functions))
        found += isals
        missing |= without if libraries else {"isal": _HINTS["isal"]}
    makers: dict[str, Callable[[], Peer]] = {"pyeclib": Pyeclib, "zfec": Zfec}
    for family, make in makers.items():
        if family not in families:
            continue
        if importlib.util.find_spec(family) is None:
            missing[family] = _HINTS[family]
        else:
            found.append(make())
    return found, missing


def _functions(kernel: str, wanted: str) -> tuple[str, ...]:
    if wanted == "auto":
        return _SAME_INSTRUCTIONS.get(kernel, ("own",))
    if wanted not in ISAL_FUNCTIONS:
        raise BadInput(
            f"--isal-functions {wanted!r} is not one of auto, {', '.join(ISAL_FUNCTIONS)}"
        )
    if lacking := set(ISAL_FUNCTIONS[wanted]) - host_features():
        raise BadInput(f"--isal-functions {wanted}: this processor has no {min(lacking)}")
    return (wanted,)


def _isals(
    libraries: Sequence[Path], functions: Sequence[str]
) -> tuple[list[Isal], dict[str, str]]:
    found: dict[str, Isal] = {}
    missing: dict[str, str] = {}
    for path in libraries:
        for name in functions:
            try:
                isal = Isal(path, name)
            except LookupError as error:
                missing[str(path)] = f"it has no {error.args[0]}"
            except OSError as error:
                raise BadInput(f"cannot load {path}: {error}") from error
            else:
                missing.pop(str(path), None)
                found.setdefault(isal.name, isal)
                break
    newest_first = sorted(found.values(), key=lambda isal: _numbers(isal.version), reverse=True)
    return newest_first, missing


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(".") if part.isdigit()]


def _isal_libraries(given: Path | None) -> list[Path]:
    paths: list[Path] = []
    if given is not None:
        if not given.is_file():
            raise BadInput(f"--isal-library: there is no {given}")
        paths.append(given)
    spec = importlib.util.find_spec("pyeclib")
    if spec is not None and spec.origin is not None:
        paths += Path(spec.origin).parent.parent.glob("pyeclib.libs/libisal*.so*")
    name = ctypes.util.find_library("isal")
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib"):
        if name is not None and (Path(folder) / name).exists():
            paths.append((Path(folder) / name).resolve())
            break
    return paths
