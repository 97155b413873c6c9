"""Errors of the core.

CoreError
├── local misuse
│   ├── StalePlan           a plan made from another map
│   ├── StaleBalancePlan    moves of slots that are elsewhere by now
│   └── UnknownIndex        a device, node or domain that the map does not have
├── impossible request
│   ├── ImpossibleRule      a field of a rule that no placement can keep
│   │   └── TooFewDomains   the rule cannot place a single placement group
│   └── PolicyBrokeRule     a policy's own rows do not keep the rule
└── corruption
    ├── InvalidClusterMap   a map that breaks its laws
    └── InvalidMapDelta     a map delta that is damaged, or does not fit the map at hand
"""


class CoreError(Exception):
    """Any error of the core."""


class StalePlan(CoreError):
    """The plan's slots no longer hold what the plan saw."""

    def __init__(self, plan_epoch: int, map_epoch: int) -> None:
        super().__init__(f"the plan is for epoch {plan_epoch}, the cluster map is at {map_epoch}")
        self.plan_epoch = plan_epoch
        self.map_epoch = map_epoch


class StaleBalancePlan(CoreError):
    """Move `move` of the plan is for a slot that is not where the plan moves it from."""

    def __init__(self, move: int, pg: int, slot: int) -> None:
        super().__init__(
            f"move {move} of the plan: slot {slot} of PG {pg} is not on its source device"
        )
        self.move = move
        self.pg = pg
        self.slot = slot


class UnknownIndex(CoreError):
    """The map has no `kind` with this index."""

    def __init__(self, kind: str, index: int, count: int) -> None:
        super().__init__(f"there is no {kind} {index}: the cluster map has {count}")
        self.kind = kind
        self.index = index
        self.count = count


class ImpossibleRule(CoreError):
    """No placement keeps the rule: `field` has `value`; `remedy` says what would do."""

    def __init__(self, field: str, value: object, reason: str, remedy: str) -> None:
        super().__init__(f"placement rule: {field} = {value}: {reason}: {remedy}")
        self.field = field
        self.value = value
        self.remedy = remedy


class TooFewDomains(ImpossibleRule):
    """A placement group of `need` slots does not fit: only `have` slots keep the rule."""

    def __init__(
        self, need: int, have: int, level: str, max_per_domain: int, field: str = "max_per_domain"
    ) -> None:
        super().__init__(
            field,
            max_per_domain,
            f"{need} chunks of a stripe need a place, but at most {max_per_domain} per {level} "
            f"leaves room for {have}",
            f"add {level}s, relax the rule, or choose a narrower code",
        )
        self.need = need
        self.have = have


class PolicyBrokeRule(CoreError):
    """Row `pg` that policy `policy` made breaks the placement rule."""

    def __init__(self, policy: str, pg: int, row: list[int], broken_count: int) -> None:
        super().__init__(
            f"placement policy {policy}: {broken_count} rows break the rule, first PG {pg}: {row}"
        )
        self.policy = policy
        self.pg = pg
        self.row = row


class InvalidClusterMap(CoreError):
    """The map breaks one of its laws; `facts` says which and where."""

    def __init__(self, facts: str) -> None:
        super().__init__(f"invalid cluster map: {facts}")
        self.facts = facts


class InvalidMapDelta(CoreError):
    """The delta cannot be applied; a full map is needed."""
