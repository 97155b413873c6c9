"""The instruction sets that kernels are made of."""

from dataclasses import dataclass
from typing import Final, Literal

#: The functions in the code of a program, see `emit`.
FUNCTION: Final = "apply"
FETCHING_FUNCTION: Final = "apply_fetching"
STREAMING_FUNCTION: Final = "apply_streaming"
#: Ranges of the fetching and the streaming function are multiples of this.
ROUND_BYTES: Final = 128


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """What a kernel is made of."""

    name: str
    #: The CPU that code is generated for; fixed, so that the cache is valid on any host.
    cpu: str
    #: What a host must have, as LLVM calls it.
    features: tuple[str, ...]
    vector_bytes: Literal[32, 64]
    #: A product is one bit-matrix instruction (GFNI) or two table lookups of half a byte.
    has_gfni: bool
    #: Vectors of each input in one round of the loop; a round divides `ROUND_BYTES`.
    unroll: int
    #: The same of the loops for large stripes: a round writes whole cache lines, so that no line
    #: that is half full waits in a buffer that reads want.
    large_unroll: int
    #: Rows done at once, as many as have room in the registers.
    tile_rows: int
    #: Whether inputs in the second-level cache are fetched ahead: not where arithmetic is slower.
    fetches_near: bool

    @property
    def has_masks(self) -> bool:
        """Whether a part of a vector can be loaded and stored (AVX-512)."""
        return self.vector_bytes == 64

    @property
    def slot_bytes(self) -> int:
        """Bytes of the table of one coefficient."""
        return 8 if self.has_gfni else 32


GFNI512: Final = InstructionSet(
    name="gfni512",
    cpu="icelake-server",
    features=("avx512f", "avx512bw", "gfni"),
    vector_bytes=64,
    has_gfni=True,
    unroll=2,
    large_unroll=2,
    tile_rows=8,
    fetches_near=True,
)
GFNI256: Final = InstructionSet(
    name="gfni256",
    cpu="haswell",
    features=("avx2", "gfni"),
    vector_bytes=32,
    has_gfni=True,
    unroll=2,
    large_unroll=2,
    tile_rows=4,
    fetches_near=True,
)
AVX512: Final = InstructionSet(
    name="avx512",
    cpu="skylake-avx512",
    features=("avx512f", "avx512bw"),
    vector_bytes=64,
    has_gfni=False,
    unroll=1,
    large_unroll=1,
    tile_rows=8,
    fetches_near=True,
)
AVX2: Final = InstructionSet(
    name="avx2",
    cpu="haswell",
    features=("avx2",),
    vector_bytes=32,
    has_gfni=False,
    unroll=1,
    large_unroll=2,
    tile_rows=4,
    fetches_near=False,
)
#: Fastest first.
INSTRUCTION_SETS: Final = (GFNI512, GFNI256, AVX512, AVX2)
