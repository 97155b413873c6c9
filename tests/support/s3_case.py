"""What a wrong request is, for every kind of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.support.s3_examples import Example
from tests.support.s3_signer import Spec, Wire


@dataclass(frozen=True)
class Case:
    """One wrong request."""

    name: str
    spec: Spec
    code: str
    """The code of the refusal; "": it is none."""
    tamper: Callable[[Wire], Wire] | None = None
    """Done to the request after it was signed."""
    is_harmless: bool = False
    """Whether it is taken without a change: a refusal within an answer."""
    is_local: bool = False
    """Whether a real HTTP client or server would not let it pass."""


Cases = Iterator[Case]


def is_signed(example: Example) -> bool:
    return not example.traits & {"form", "preflight"}
