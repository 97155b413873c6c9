"""The points at which a process may die: every phase of a write, a delete, a repair, an upkeep.

Code says where it is with `reach(Phase.X)`. In production nobody listens and a call costs an empty
loop (some 50 ns). A process that is started with EXASTORE_FAILPOINTS has a listener that kills,
stops or fails it there; see `exastore.deploy.failpoints` and `docs/faults.md`.
"""

from collections.abc import Callable
from enum import StrEnum


class Phase(StrEnum):
    """Where an operation is; the part before the dot says which process is there."""

    # A body on its way in.
    BODY_READ = "gateway.body_read"  #: the first bytes of an extent arrived, nothing was sent
    ENCODED = "gateway.encoded"  #: the extent is encoded, no chunk was sent
    FRAME_HALF_SENT = "gateway.frame_half_sent"  #: a part of a chunk is with the system
    CHUNK_ANSWERED = "gateway.chunk_answered"  #: one node answered, the quorum is open
    QUORUM_REACHED = "gateway.quorum_reached"  #: enough chunks are durable
    COMMIT_SENDING = "gateway.commit_sending"  #: all bytes are durable, metadata knows nothing
    COMMITTED = "gateway.committed"  #: the commit is durable, the client knows nothing
    # The other acts of a client.
    DELETE_SENDING = "gateway.delete_sending"
    DELETED = "gateway.deleted"
    COMPLETE_SENDING = "gateway.complete_sending"
    COMPLETED = "gateway.completed"

    # A chunk on a node.
    FRAME_HALF_RECEIVED = "node.frame_half_received"  #: the rest is with the system, or to come
    CHUNK_RECEIVED = "node.chunk_received"  #: the frame is in memory
    CHUNK_APPENDING = "node.chunk_appending"  #: the write() is about to begin
    CHUNK_APPENDED = "node.chunk_appended"  #: written, not fsynced
    CHUNK_SYNCING = "node.chunk_syncing"  #: fsync is about to begin
    CHUNK_SYNCED = "node.chunk_synced"  #: durable, in no index, nobody knows
    CHUNK_ANSWERING = "node.chunk_answering"  #: durable and visible, the gateway knows nothing
    CHUNK_READ = "node.chunk_read"  #: read and not answered
    ANSWER_HALF_SENT = "node.answer_half_sent"  #: a part of a chunk that was read is on its way
    TOMBSTONES_APPENDED = "node.tombstones_appended"  #: deleted, not fsynced
    TOMBSTONES_DURABLE = "node.tombstones_durable"  #: deleted, metadata does not know it
    # A slot that a node takes over.
    REBUILD_PULLED = "node.rebuild_pulled"  #: computed from others or copied, not written
    REBUILD_WRITTEN = "node.rebuild_written"  #: durable, not read back
    REBUILD_VERIFIED = "node.rebuild_verified"  #: read back and compared
    # Small objects that a node packs into a stripe.
    PACK_READ = "node.pack_read"  #: all objects are in memory, nothing is written
    PACK_STORED = "node.pack_stored"  #: all its chunks are durable, metadata knows nothing
    # Compaction of a segment.
    COMPACT_MOVING = "node.compact_moving"  #: a live record is about to be written again
    COMPACT_MOVED = "node.compact_moved"  #: all live records are durable elsewhere
    COMPACT_REMOVED = "node.compact_removed"  #: the old segment is gone
    # The index file.
    CHECKPOINTED = "node.checkpointed"  #: written and not yet used

    # Transactions.
    COMMIT_RECEIVED = "metadata.commit_received"
    COMMIT_DURABLE = "metadata.commit_durable"  #: the gateway knows nothing
    PART_RECEIVED = "metadata.part_received"
    PART_DURABLE = "metadata.part_durable"
    COMPLETE_RECEIVED = "metadata.complete_received"
    COMPLETE_DURABLE = "metadata.complete_durable"
    DELETE_RECEIVED = "metadata.delete_received"
    DELETE_DURABLE = "metadata.delete_durable"
    # A transaction of any kind, within the engine's client.
    ENGINE_COMMITTING = "metadata.engine_committing"  #: all is read and written, COMMIT is next
    ENGINE_COMMITTED = "metadata.engine_committed"  #: durable, who waits for it knows nothing
    # Background work.
    TRASH_CHUNKS_DELETED = "metadata.trash_chunks_deleted"  #: the row of the trash is still there
    SLOT_BEGUN = "metadata.slot_begun"  #: a node is about to be told to take a slot
    SLOT_VERIFIED = "metadata.slot_verified"  #: it did, the map does not say so
    SLOT_CLEAN = "metadata.slot_clean"  #: the map says so
    PACK_BEGUN = "metadata.pack_begun"  #: a node is about to be told to pack a stripe
    PACK_WRITTEN = "metadata.pack_written"  #: it did, nothing refers to the stripe
    PACK_SWAPPED = "metadata.pack_swapped"  #: objects refer to it
    MOVES_BEGUN = "metadata.moves_begun"  #: the map says what moves, nothing was copied


#: Phases around the transaction of a call, by the name of the call.
PHASES_OF_CALL = {
    "CommitObject": (Phase.COMMIT_RECEIVED, Phase.COMMIT_DURABLE),
    "CommitPart": (Phase.PART_RECEIVED, Phase.PART_DURABLE),
    "CompleteUpload": (Phase.COMPLETE_RECEIVED, Phase.COMPLETE_DURABLE),
    "DeleteObjects": (Phase.DELETE_RECEIVED, Phase.DELETE_DURABLE),
}

_listeners: list[Callable[[Phase], None]] = []


def reach(phase: Phase) -> None:
    """Say that `phase` is reached; a listener may end the process here, or raise OSError."""
    for listener in _listeners:
        listener(phase)


def is_listened_to() -> bool:
    """Whether anybody is told of phases."""
    return bool(_listeners)


def listen(listener: Callable[[Phase], None]) -> None:
    """Call `listener` at every phase, in whatever thread reaches it, until the process ends."""
    _listeners.append(listener)
