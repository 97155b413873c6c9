"""What was measured, as records: each is a line of JSON, and a sample of OpenMetrics."""

from dataclasses import asdict, dataclass
from typing import Final

from exastore.deploy.bench.provenance import Provenance
from exastore.deploy.bench.stripes import Case, size_label

SUITE: Final = "erasure"
OURS: Final = "exastore"
ROOFLINE: Final = "roofline"
PRODUCTS: Final = "products"


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast one contestant was in one cell."""

    #: "speed" or "lrc".
    table: str
    code: str
    operation: str
    chunk_bytes: int
    #: Our kernel that the cell is about.
    kernel: str
    #: "exastore", "roofline", "products" (ours, without memory), a coder with its
    #: version; of table "lrc", the code compared with.
    peer: str
    #: "kernel", "pointers" or "call", see `peers`.
    way: str
    #: Median over the rounds.
    call_s: float
    data_bytes_per_s: float
    #: Our speed over theirs: median over the rounds of the ratio in a round; 1 for ourselves.
    ratio: float
    #: Between these are the middle half of the rounds.
    ratio_low: float
    ratio_high: float
    #: Rounds in which this one took part.
    rounds: int
    #: CRC-32 of what is written.
    checksum_crc32: int

    @property
    def geometry(self) -> str:
        """For example "encode-rs-10-4-64KiB"."""
        return Case(self.code, self.chunk_bytes, self.operation).geometry


@dataclass(frozen=True, slots=True)
class Overhead:
    """What a call costs when there is next to nothing to do."""

    peer: str
    way: str
    kernel: str
    call_s: float

    table = "overhead"

    @property
    def geometry(self) -> str:
        """The cell that is taken for nothing to do."""
        return "call"


@dataclass(frozen=True, slots=True)
class Repair:
    """One chunk rebuilt by a code with cheap repair, and by Reed-Solomon."""

    code: str
    peer: str
    chunk_bytes: int
    lost_index: int
    kernel: str
    read_bytes: int
    peer_read_bytes: int
    #: Medians of what was measured.
    compute_s: float
    peer_compute_s: float
    #: The model: bytes read at this rate, then computed.
    read_rate_bytes_per_s: float
    total_s: float
    peer_total_s: float
    #: Their time over ours.
    ratio: float
    #: Reads faster than this make the other one faster; None if none do.
    break_even_bytes_per_s: float | None

    table = "repair"

    @property
    def geometry(self) -> str:
        """For example "repair-clay-10-4-13-1MiB-lost0"."""
        return f"repair-{self.code}-{size_label(self.chunk_bytes)}-lost{self.lost_index}"


@dataclass(frozen=True, slots=True)
class FirstUse:
    """How long a new process takes for its first stripe. Medians."""

    code: str
    kernel: str
    #: "warm": compiled code is on the disk; "empty": it is not.
    cache: str
    #: From the start of the process until the first stripe is encoded.
    first_stripe_s: float
    #: From `import exastore.erasure` until then.
    import_to_stripe_s: float
    #: From the start of a process until it has imported NumPy, which nobody can do without.
    numpy_s: float
    rounds: int

    table = "first-use"
    peer = OURS

    @property
    def geometry(self) -> str:
        """For example "first-use-rs-10-4-warm"."""
        return f"first-use-{self.code}-{self.cache}"


Record = Speed | Overhead | Repair | FirstUse


def as_json(record: Record, provenance: Provenance) -> dict[str, object]:
    """One line of the JSON lines: which cell it is, the result, and what it was measured on."""
    return {
        "suite": SUITE,
        "table": record.table,
        "id": f"{record.geometry}-{record.kernel}",
        "geometry": record.geometry,
        "peer": record.peer,
        **asdict(record),
        **asdict(provenance),
    }
