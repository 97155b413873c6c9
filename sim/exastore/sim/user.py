"""Functions that users write: lives of devices, the order of repair, placement, decisions.

A scenario names them: "module:function", "path/to/file.py:function", or what `register` gave back
for a function at hand. Lives and priorities are compiled by numba and called by address: the engine
is the same code whoever is called, so that a user's function costs its own compilation and no
other. What they get and give is in `docs/simulator.md`, "Your own functions".
"""

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numba
import numpy as np
import pyarrow as pa
from numba.core import types
from numba.core.errors import NumbaError
from numba.extending import intrinsic

from exastore.erasure.jit import njit
from exastore.sim.errors import DecisionError, Problem, ScenarioError
from exastore.sim.streams import mix64

if TYPE_CHECKING:
    from exastore.sim.scenario import Scenario

#: Arrow ships no types.
Table = Any
Function = Callable[..., Any]

#: Ages and streams at which a law of life is tried before the run.
_PROBE_AGES_S = (0.0, 1e6, 1e8, 3e8)
_REGISTERED: dict[str, Function] = {}
_PREFIX = "registered:"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a decision may go by, beside the table of devices.

    Attributes:
        trial: Which trial.
        time_s: Since its start.
        slot_bytes: Bytes of one chunk run now.
        missing_runs: Chunk runs that are missing: waiting for a rebuild or in work.
        degraded_pgs: Placement groups that miss any.
        waiting_runs: Runs for which no device could be found.
    """

    trial: int
    time_s: float
    slot_bytes: float
    missing_runs: int
    degraded_pgs: int
    waiting_runs: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What a decision may change.

    Attributes:
        write_bandwidth_bytes_per_s: Of one device for rebuilds that start from now on; None: as is.
        read_bandwidth_bytes_per_s: The same for reads.
        wants_plan: Whether the balancer shall plan anew now; needs `balance.every_s`.
        moves: Arrow table with integer columns `pg`, `slot`, `target_device`: moves that go before
            those of the balancer, within the same budget and rule; needs `balance.every_s`.
    """

    write_bandwidth_bytes_per_s: float | None = None
    read_bandwidth_bytes_per_s: float | None = None
    wants_plan: bool = False
    moves: Table = None


def register(function: Function, name: str = "") -> str:
    """Makes a function known for this process; the text that a scenario names it by."""
    name = name or f"{function.__module__}.{function.__qualname__}"
    _REGISTERED[name] = function
    return _PREFIX + name


@njit
def uniform(stream: int, number: int) -> float:
    """The `number`-th uniform number of a stream, strictly between 0 and 1. For laws of life."""
    return (
        float(mix64(mix64(np.uint64(stream)) ^ np.uint64(number)) >> np.uint64(11)) + 0.5
    ) * 2.0**-53


def load_function(spec: str, key: str, arguments: tuple[str, ...]) -> Function:
    """The function that `spec` names.

    Args:
        spec: See the module.
        key: The scenario's key, for errors.
        arguments: Names of what it is called with, for errors; it must take so many.

    Raises:
        ScenarioError: There is none, or it takes other arguments.
    """
    function = _find(spec, key)
    shown = f"({', '.join(arguments)})"
    try:
        signature = inspect.signature(getattr(function, "py_func", function))
        signature.bind(*arguments)
    except TypeError as error:
        text = f"{spec!r} cannot be called with {shown}: {error}; give it these arguments"
        raise ScenarioError(spec, [Problem(key, text)]) from None
    return function


def _find(spec: str, key: str) -> Function:
    def fail(text: str) -> ScenarioError:
        hint = 'write "module:function" or "path/to/file.py:function"'
        return ScenarioError(spec, [Problem(key, f"{spec!r} {text}; {hint}")])

    if spec.startswith(_PREFIX):
        if spec.removeprefix(_PREFIX) not in _REGISTERED:
            raise fail("was not registered in this process")
        return _REGISTERED[spec.removeprefix(_PREFIX)]
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise fail("names no function")
    try:
        module = _module_of_file(place) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:
        raise fail(f"cannot be loaded: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise fail(f"is not there: {place} has no function {name}")
    return cast(Function, found)


@cache
def _module_of_file(path: str) -> Any:
    file = Path(path).resolve()
    spec = importlib.util.spec_from_file_location(f"exastore_user_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compiled(function: Function) -> Function:
    return function if hasattr(function, "py_func") else cast(Any, numba).njit(function)


#: What keeps compiled functions alive while the engine holds their addresses, by name and type.
_ENTRIES: dict[tuple[Any, ...], Any] = {}


def _address(entry_key: tuple[Any, ...], make: Callable[[], Any], spec: str, key: str) -> int:
    if entry_key not in _ENTRIES:
        try:
            _ENTRIES[entry_key] = make()
        except NumbaError as error:
            first = next(line for line in str(error).splitlines() if line.strip())
            text = f"{spec!r} cannot be compiled by numba: {first}; see docs/simulator.md"
            raise ScenarioError(spec, [Problem(key, text)]) from error
    return int(_ENTRIES[entry_key].address)


LIFE_ARGUMENTS = ("params", "stream", "age_s")
PRIORITY_ARGUMENTS = ("remaining_redundancy", "pg", "slot")


def life_address(spec: str, params: tuple[float, ...], key: str) -> int:
    """Where the engine calls a law of life.

    Raises:
        ScenarioError: It cannot be found, compiled, or gives what is no time.
    """
    function = load_function(spec, key, LIFE_ARGUMENTS)
    values = np.array(params, np.float64)
    inner = _compiled(function)

    def make() -> Any:
        @numba.cfunc(types.float64(types.uint64, types.float64))
        def entry(stream: int, age_s: float) -> Any:
            return inner(values, stream, age_s)

        return entry

    address = _address((function, params), make, spec, key)
    entry = _ENTRIES[function, params].ctypes
    for age_s in _PROBE_AGES_S:
        for stream in range(1, 65):
            found = float(entry(stream * 0x9E3779B97F4A7C15 & (2**64 - 1), age_s))
            if isnan(found) or found < 0.0:
                text = (
                    f"{spec!r} gives {found} s to a device {age_s:g} s old; a life left is at least"
                    " 0, or infinite"
                )
                raise ScenarioError(spec, [Problem(key, text)])
    return address


def priority_address(spec: str, key: str) -> int:
    """Where the engine calls an order of repair.

    Raises:
        ScenarioError: It cannot be found or compiled.
    """
    function = load_function(spec, key, PRIORITY_ARGUMENTS)
    inner = _compiled(function)

    def make() -> Any:
        @numba.cfunc(types.int64(types.int64, types.int64, types.int64))
        def entry(remaining_redundancy: int, pg: int, slot: int) -> Any:
            return inner(remaining_redundancy, pg, slot)

        return entry

    return _address((function,), make, spec, key)


def _call(builder: Any, context: Any, signature: Any, arguments: Any) -> Any:
    """Calls the function whose address is the first argument with the others."""
    from llvmlite import ir

    result = context.get_value_type(signature.return_type)
    kinds = [context.get_value_type(kind) for kind in signature.args[1:]]
    pointer = builder.inttoptr(arguments[0], ir.FunctionType(result, kinds).as_pointer())
    return builder.call(pointer, arguments[1:])


def _caller(signature: Any) -> Any:
    """An intrinsic that calls what is at its first argument with the others."""

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return _call(builder, context, sig, arguments)

    return signature, generate


def _call_life(typing: Any, address: Any, stream: Any, age_s: Any) -> Any:
    """A law of life at an address: (address, stream, age_s) -> seconds."""
    return _caller(types.float64(types.int64, types.uint64, types.float64))


def _call_priority(typing: Any, address: Any, remaining: Any, pg: Any, slot: Any) -> Any:
    """An order of repair at an address: (address, remaining redundancy, pg, slot) -> key."""
    return _caller(types.int64(types.int64, types.int64, types.int64, types.int64))


call_life: Any = intrinsic(_call_life)
call_priority: Any = intrinsic(_call_priority)


def check_functions(scenario: "Scenario") -> None:
    """Finds, compiles and tries all functions of a scenario, before any work.

    Raises:
        ScenarioError: One is missing or wrong.
    """
    for i, model in enumerate(scenario.models):
        if model.life:
            life_address(model.life, model.life_params, f"model.{i}.life")
    if scenario.repair.priority:
        priority_address(scenario.repair.priority, "repair.priority")
    if scenario.placement.policy_function:
        spec = scenario.placement.policy_function
        load_function(spec, "placement.policy_function", POLICY_ARGUMENTS)
    if scenario.decisions.function:
        load_function(scenario.decisions.function, "decisions.function", DECISION_ARGUMENTS)


POLICY_ARGUMENTS = ("columns", "device_state", "seed", "rows")
DECISION_ARGUMENTS = ("devices", "facts")


def decide(function: Function, devices: Table, facts: Facts, *, can_move: bool) -> Decision:
    """Asks a user's function.

    Raises:
        DecisionError: What it gives back is no decision, or one that cannot be carried out.
    """
    found = function(devices, facts)
    if found is None:
        return Decision()
    if not isinstance(found, Decision):
        raise DecisionError(f"it gave {type(found).__name__}; give a Decision or None")
    for name in ("write_bandwidth_bytes_per_s", "read_bandwidth_bytes_per_s"):
        value = getattr(found, name)
        if value is not None and not value > 0:
            raise DecisionError(f"{name} is {value}; give more than 0, or None for no change")
    if (found.wants_plan or found.moves is not None) and not can_move:
        raise DecisionError("it moves runs, but balance.every_s is 0; set it in the scenario")
    return found


def move_rows(moves: Table, pg_devices: Any) -> Any:
    """Shape (M, 4): the moves of a decision as pg, slot, source and target.

    Raises:
        DecisionError: A column is missing, or a number is out of its range.
    """
    limits = {"pg": len(pg_devices), "slot": pg_devices.shape[1], "target_device": 2**31}
    columns: list[Any] = []
    for name, limit in limits.items():
        if not isinstance(moves, pa.Table) or name not in moves.column_names:
            raise DecisionError(f"moves lacks the column {name}; give an Arrow table with it")
        values = np.asarray(moves[name].to_numpy(), np.int64)
        if len(values) and not (0 <= values.min() and values.max() < limit):
            raise DecisionError(f"moves.{name} is not from 0 to {limit - 1} everywhere")
        columns.append(values)
    pg, slot, target = columns
    return np.stack([pg, slot, pg_devices[pg, slot], target], axis=1).astype(np.int32)
