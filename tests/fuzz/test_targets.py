"""A short run of each fuzz target, the same every time. `make fuzz` runs them for longer."""

import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fuzz.targets import SEEDS, TARGETS

#: What syntax is made of: inserted into seeds, it changes what they mean.
_TOKENS = (
    *(
        b"\r\n",
        b"\n",
        b":",
        b"=",
        b"&",
        b"?",
        b"/",
        b"%",
        b"%00",
        b"%zz",
        b"+",
        b",",
        b";",
        b'"',
        b"'",
    ),
    *(
        b"<",
        b">",
        b"</",
        b"<!DOCTYPE a [",
        b"<!ENTITY x 'y'>",
        b"&x;",
        b"]]>",
        b"\x00",
        b"\xff",
        b"\xc3",
    ),
    *(
        b"-1",
        b"0",
        b"99999999999999999999",
        b"bytes=",
        b"*",
        b"{",
        b"}",
        b"[",
        b"null",
        b"\xc2\xa0",
    ),
)


@st.composite
def mutated(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A seed with some bytes cut out and others put in."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 0, 1, 2, 8, 40])))
        middle = draw(st.one_of(st.sampled_from(_TOKENS), st.binary(max_size=6)))
        data = data[:start] + middle + data[end:]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_taken_or_refused(name: str) -> None:
    target, seeds = TARGETS[name], SEEDS[name]
    for seed in seeds:
        target(seed)

    @settings(
        max_examples=300,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.one_of(mutated(seeds), mutated(seeds), st.binary(max_size=200)))
    def run(data: bytes) -> None:
        target(data)

    logging.disable(logging.CRITICAL)
    try:
        run()
    finally:
        logging.disable(logging.NOTSET)
