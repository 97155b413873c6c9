"""Asks for memory before it is needed: what is computed does not change.

At 100 EiB nearly every row that an event touches misses the caches and the table of pages, and a
core that waits for one after the other spends most of its time so. What the next events and the
next rebuilds will touch is known: it stands in the queue.
"""

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils, config

from exastore.erasure.jit import inner_njit
from exastore.metadata.core.placement import DRAW_DEVICE, DRAW_PG, PlacementColumns
from exastore.sim.state import NONE, State
from exastore.sim.streams import wide

numba_config = cast(Any, config)

#: So many plans before its own the memory of a plan is asked for.
PLANS_AHEAD = 4

if numba_config.DISABLE_JIT:

    def prefetch(array: Any, index: int, /) -> None:
        """Nothing, without the compiler."""

    def prefetch_cell(array: Any, row: int, column: int, /) -> None:
        """Nothing, without the compiler."""

else:
    _cgutils, _ir, _types = cast(Any, cgutils), cast(Any, ir), cast(Any, types)

    def _ask(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type = signature.args[0]
        array = context.make_array(array_type)(context, builder, arguments[0])
        at = _cgutils.get_item_pointer(
            context, builder, array_type, array, list(arguments[1:]), wraparound=False
        )
        byte, word = _ir.IntType(8).as_pointer(), _ir.IntType(32)
        kind = _ir.FunctionType(_ir.VoidType(), [byte, word, word, word])
        function = _cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        # To be read; to be kept in all caches; data.
        flags = [_ir.Constant(word, value) for value in (0, 3, 1)]
        builder.call(function, [builder.bitcast(at, byte), *flags])
        return context.get_dummy_value()

    def _prefetch(_typing_context: Any, array: Any, index: Any) -> Any:
        return _types.none(array, _types.intp), _ask

    def _prefetch_cell(_typing_context: Any, array: Any, row: Any, column: Any) -> Any:
        return _types.none(array, _types.intp, _types.intp), _ask

    _intrinsic = cast(Any, extending).intrinsic
    #: The line of array[index], which may be out of bounds.
    prefetch = cast(Callable[[Any, int], None], _intrinsic(_prefetch))
    #: The line of array[row, column].
    prefetch_cell = cast(Callable[[Any, int, int], None], _intrinsic(_prefetch_cell))


@inner_njit
def prefetch_plan(columns: PlacementColumns, state: State, at: int) -> None:
    """Asks for what `choose_drawn` and `start_next` will read."""
    target = wide(state.draws[DRAW_DEVICE, at])
    prefetch(columns.domain_of_device, target)
    prefetch(columns.device_weight, target)
    prefetch(state.device_state, target)
    prefetch(state.devices, target)
    for device in state.pg_devices[state.draws[DRAW_PG, at]]:
        prefetch(columns.domain_of_device, device)
        prefetch(state.device_state, device)
        prefetch(state.streams, device)


@inner_njit
def prefetch_rebuilt(state: State, device: int) -> None:
    """Asks for what `finish` will read of a device, whose record is at hand."""
    run = wide(state.devices[device].active)
    if run != NONE:
        prefetch_cell(state.slots, device, wide(state.devices[device].slot_count))
        for source in state.sources[run]:
            prefetch(state.streams, source)


@inner_njit
def prefetch_list(state: State, device: int) -> None:
    """Asks for the list of a device, for `hide_runs` or `show_runs`: a line has 16 slots."""
    for at in range(0, state.devices[device].slot_count, 16):
        prefetch_cell(state.slots, device, at)
