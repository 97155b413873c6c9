"""Every engine behaves like a dictionary: one state machine, also with two servers on a store."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.support.engine_stores import KINDS, SHARED_KINDS, EngineStores
from tests.support.fake_store import FakeStore
from tests.support.kv_history import Dictionary, Seen, Step, perform

from exastore.metadata.kv.contract import Engine, Transaction
from exastore.metadata.kv.memory import MemoryEngine
from exastore.metadata.kv.open import open_engine

#: Few bytes, so that keys meet and are each other's prefixes; the longest key that there may be.
KEYS = st.one_of(
    st.lists(st.sampled_from([0x00, 0x61, 0x62, 0xFF]), max_size=3).map(bytes),
    st.sampled_from([2047, 2048]).map(lambda length: b"k" * length),
)
VALUES = st.one_of(st.binary(max_size=4), st.sampled_from([3000, 65536]).map(bytes))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("get"), KEYS),
        st.tuples(
            st.just("scan"),
            KEYS,
            KEYS,
            st.one_of(st.none(), st.integers(0, 4)),
            st.booleans(),
            st.booleans(),
        ),
        st.tuples(st.just("put"), KEYS, VALUES),
        st.tuples(st.just("delete"), KEYS),
        st.tuples(st.just("copy"), KEYS, KEYS),
        st.tuples(st.just("count"), KEYS, KEYS, KEYS),
    ),
    max_size=8,
)
READS = STEPS.map(lambda steps: [step for step in steps if step[0] in ("get", "scan")])


class Refused(Exception):
    """What a function raises that changes its mind."""


class EngineMachine(RuleBasedStateMachine):
    """Random transactions on engines and on the model, one after the other and at once."""

    #: Whether two engines can open it at once, and whether it outlives them.
    is_shared: ClassVar[bool]
    is_kept: ClassVar[bool]

    def __init__(self) -> None:
        super().__init__()
        self._open = self.new_store()
        self._runner = asyncio.Runner()
        self.engines: list[Engine] = [
            self._run(self._opened()) for _ in range(2 if self.is_shared else 1)
        ]
        self.model = Dictionary()
        self._turn = 0

    @classmethod
    def new_store(cls) -> Callable[[], Engine]:
        """A function that opens engines on one new store."""
        raise NotImplementedError

    def teardown(self) -> None:
        for engine in self.engines:
            self._run(engine.close())
        self._runner.close()

    async def _opened(self) -> Engine:
        return self._open()

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(coroutine)

    @property
    def engine(self) -> Engine:
        """Another one each time."""
        self._turn += 1
        return self.engines[self._turn % len(self.engines)]

    @rule(steps=STEPS)
    def transact(self, steps: list[Step]) -> None:
        seen = self._run(self.engine.transact(lambda txn: perform(txn, steps)))
        assert seen == perform(self.model, steps)

    @rule(steps=READS)
    def read(self, steps: list[Step]) -> None:
        seen = self._run(self.engine.read(lambda txn: perform(txn, steps)))
        assert seen == perform(self.model, steps)

    @rule(steps=STEPS)
    def transact_and_change_its_mind(self, steps: list[Step]) -> None:
        def fn(txn: Transaction) -> None:
            perform(txn, steps)
            raise Refused

        with pytest.raises(Refused):
            self._run(self.engine.transact(fn))

    @rule(batch=st.lists(STEPS, min_size=2, max_size=4))
    def transact_at_once_with_disjoint_keys(self, batch: list[list[Step]]) -> None:
        """Each sees its own writes whatever the others do, for they use keys of their own."""

        def lane(number: int, steps: list[Step]) -> list[Step]:
            own = b"lane %d " % number
            return [
                (step[0], own + step[1][:2000], *step[2:])
                for step in steps
                if step[0] in ("get", "put", "delete")
            ]

        lanes = [lane(number, steps) for number, steps in enumerate(batch)]

        async def all_at_once() -> list[list[Seen]]:
            return await asyncio.gather(
                *(
                    self.engine.transact(lambda txn, steps=steps: perform(txn, steps))  # type: ignore[misc]
                    for steps in lanes
                )
            )

        for steps, seen in zip(lanes, self._run(all_at_once()), strict=True):
            assert seen == perform(self.model, steps)

    @precondition(lambda self: self.is_kept)
    @rule()
    def open_again(self) -> None:
        self._run(self.engines[0].close())
        self.engines[0] = self._run(self._opened())

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        rows = self._run(self.engine.read(lambda txn: txn.scan(b"", b"\xff" * 4)))
        assert rows == sorted(self.model.values.items())


@pytest.mark.parametrize("kind", [*KINDS, "fake"])
def test_engines_behave_like_a_dictionary(kind: str, engine_stores: EngineStores) -> None:
    flips = iter([True, False, False] * 100_000)

    class Machine(EngineMachine):
        is_shared = kind in (*SHARED_KINDS, "fake")
        is_kept = kind != "memory"

        @classmethod
        def new_store(cls) -> Callable[[], Engine]:
            if kind == "memory":
                return lambda: MemoryEngine(conflicts=lambda: next(flips))
            if kind == "fake":
                return FakeStore(1).engine
            url = engine_stores.url(kind)
            return lambda: open_engine(url)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=8 if kind in SHARED_KINDS else 20,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
        ),
    )
