"""How many objects a loss takes, and how many bytes they have: expectations. Pure.

The simulator follows placement groups, not objects. Objects of size s_i make up the share w_i of
all; with U user bytes there are N = U / sum_i w_i s_i. The cluster cuts an object into
e_i = ceil(s_i / E) extents, E the user bytes of one stripe, and gives each to a placement group
that it chooses without regard to the object's other extents (small objects share stripes, e = 1).

Groups. If L of P groups are lost, an object survives if none of its extents lies in them:

    objects lost        = N sum_i w_i     (1 - (1 - L/P)^e_i)
    their bytes         = N sum_i w_i s_i (1 - (1 - L/P)^e_i)

Stripes. Of a lost stripe (latent errors) the user bytes are those of objects of size s_i with the
probability b_i = w_i s_i / sum_j w_j s_j. It takes max(1, E/s_i) of them, of max(E, s_i) bytes.

Assumptions. Sizes are spread over the groups alike; extents of one object lie in groups drawn
independently (drawn without repetition, an object of few extents loses the same to first order in
e L/P); stripes are full. Losses of one month count together, and of different months apart, as the
engine takes a lost group to be restored from outside: an object hit in two months counts twice.
An object is lost as soon as one of its extents is; `user_bytes_lost` is only what lies in the lost
groups and stripes, so that it is the least, and the bytes here the most, that clients miss.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from exastore.metadata.core.topology import Float64Array
from exastore.sim.fleet import user_bytes_at

if TYPE_CHECKING:
    from exastore.sim.scenario import Scenario


class ObjectLoss(NamedTuple):
    """Expected losses.

    Attributes:
        objects: Objects that miss something for good.
        object_bytes: All bytes of these objects.
    """

    objects: float
    object_bytes: float


def object_count(scenario: "Scenario", years: float = 0.0) -> float:
    """How many objects there are at a time."""
    sizes, shares = _mix(scenario)
    return user_bytes_at(scenario, years) / float(shares @ sizes)


def objects_lost(
    scenario: "Scenario", pgs_lost: Float64Array, stripes_lost: Float64Array
) -> ObjectLoss:
    """What the losses of a trial take; the module says by which formula.

    Args:
        scenario: What was simulated.
        pgs_lost: Shape (months,). Placement groups lost in each.
        stripes_lost: Shape (months,). Single stripes of others lost in each.
    """
    sizes, shares = _mix(scenario)
    extent = scenario.stripe_bytes
    extents = np.ceil(sizes / extent)
    by_bytes = shares * sizes / (shares @ sizes)
    objects = float(stripes_lost.sum() * (by_bytes @ np.maximum(1.0, extent / sizes)))
    object_bytes = float(stripes_lost.sum() * (by_bytes @ np.maximum(extent, sizes)))
    for month in np.flatnonzero(pgs_lost):
        lost = min(1.0, float(pgs_lost[month]) / scenario.placement.pg_count)
        hit = object_count(scenario, month / 12) * shares * (1.0 - (1.0 - lost) ** extents)
        objects += float(hit.sum())
        object_bytes += float(hit @ sizes)
    return ObjectLoss(objects, object_bytes)


def object_problems(scenario: "Scenario") -> list[tuple[str, str]]:
    """What is wrong with the sizes of objects: (key, what)."""
    mix = scenario.objects
    if mix.sizes_bytes and len(mix.sizes_bytes) == len(mix.shares):
        return []
    text = (
        f"has {len(mix.shares)} shares for {len(mix.sizes_bytes)} sizes; give one for each of"
        " objects.sizes_bytes, and at least one size"
    )
    return [("objects.shares", text)]


def _mix(scenario: "Scenario") -> tuple[Float64Array, Float64Array]:
    shares = np.array(scenario.objects.shares)
    return np.array(scenario.objects.sizes_bytes), shares / shares.sum()
