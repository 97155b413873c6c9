"""NodeHealth: from heartbeats to device states.

Laws:
1. A device that a heartbeat names is serving: UP, or what the operator intends for it.
2. Not named for `down_after_s`, it is DOWN; for `out_after_s`, counted from the same last
   heartbeat, it is OUT. Silence of a node is silence of all its devices; a node that answers but
   leaves a device out of its heartbeat (fenced, pulled) loses that device alone.
3. A device that was never seen is not counted: it has no state here and no deadline.
4. What the operator set OUT stays OUT, whether it answers or not. A DRAINING device that falls
   silent goes DOWN and OUT like any other, and is DRAINING again when it answers.
5. One command per change: a state that holds already is not commanded again.
6. Silence takes out at most `max_out_fraction` of the weight of the devices that the operator did
   not set OUT. When more are silent at once, a network is broken rather than disks, and rebuilding
   on the rest would fill it: those beyond are *held*, that is, stay DOWN until others are back or
   the operator decides. Intents are not limited.

Theory of operation: heartbeats only move deadlines later, so a lower bound of all deadlines is kept
and corrected when it comes due. A heartbeat costs O(1) per device, a deadline O(D), and deadlines
come at most about once per `down_after_s`.

Fault model: heartbeats may be late, repeated or reordered by up to `down_after_s` without effect;
`now` never goes back. A shell that starts again passes the states of the cluster map as `known`:
those devices count as seen at `now`, so that a restart never declares anything dead by itself.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from exastore.metadata.core.topology import DeviceState

#: Entries of a device's story that are kept.
STORY_LENGTH = 16


@dataclass(frozen=True, slots=True)
class HealthOptions:
    """When silence becomes a state.

    Attributes:
        down_after_s: Seconds without a heartbeat until DOWN: chunks are waited for.
        out_after_s: Seconds without a heartbeat until OUT: chunks are rebuilt elsewhere.
        max_out_fraction: Share of the devices' weight, 0 to 1, that may be OUT by silence at once.
    """

    down_after_s: float = 3.0
    out_after_s: float = 900.0
    max_out_fraction: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.down_after_s <= self.out_after_s:
            raise ValueError(
                f"need 0 < down_after_s <= out_after_s, got {self.down_after_s}, {self.out_after_s}"
            )
        if not 0 <= self.max_out_fraction <= 1:
            raise ValueError(f"need 0 <= max_out_fraction <= 1, got {self.max_out_fraction}")


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A node says that these devices serve."""

    node: int
    devices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Intent:
    """The operator says what a device is while it answers: UP, DRAINING or OUT."""

    device: int
    state: DeviceState


@dataclass(frozen=True, slots=True)
class Weights:
    """The share of data of every device, by index; devices beyond count as 1."""

    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SetDeviceState:
    """Command: record this state in the cluster map."""

    device: int
    state: DeviceState


HealthEvent = Heartbeat | Intent | Weights


class NodeHealth:
    """The five-method core; see the module's text."""

    def __init__(
        self,
        options: HealthOptions,
        known: Mapping[int, DeviceState] | None = None,
        now: float = 0.0,
    ) -> None:
        self.options = options
        #: State of each device ever seen, as last commanded or known.
        self.state: dict[int, DeviceState] = {}
        #: When each device of `state` was last named; same keys.
        self.last_seen_s: dict[int, float] = {}
        #: What devices are while they answer; UP if absent. Values: DRAINING, OUT.
        self.intent: dict[int, DeviceState] = {}
        #: Silent for `out_after_s`, but kept DOWN by law 6; they have no deadline.
        self.held: set[int] = set()
        self._weights: tuple[float, ...] = ()
        #: Not later than any device's deadline; None only if no device has one.
        self._next_s: float | None = None
        self._stories: dict[int, deque[str]] = {}
        for device, state in (known or {}).items():
            self.state[device] = state
            self.last_seen_s[device] = now
            if state == DeviceState.DRAINING:
                self.intent[device] = state
            self._tell(device, now, f"known as {state.name}")
            self._wait_for(device)

    def handle(self, event: HealthEvent, now: float) -> list[SetDeviceState]:
        """Takes one event; returns what the shell has to record."""
        match event:
            case Heartbeat(node, devices):
                return [
                    command
                    for device in devices
                    for command in self._answered(device, f"heartbeat of node {node}", now)
                ]
            case Intent(device, state):
                return self._intended(device, state, now)
            case Weights(weights):
                if weights != self._weights:
                    self._weights = weights
                    self._release_held()
                return []

    def next_deadline(self) -> float | None:
        """When to call `on_deadline`, perhaps in vain; None: nothing to wait for."""
        return self._next_s

    def on_deadline(self, now: float) -> list[SetDeviceState]:
        """Turns silence that has lasted long enough into states, devices in order."""
        commands: list[SetDeviceState] = []
        self._next_s = None
        room = self._out_room()
        for device in sorted(self.state):
            if (
                self.state[device] != DeviceState.OUT
                and device not in self.held
                and self._due_s(device) <= now
            ):
                last_seen_s = self.last_seen_s[device]
                is_out = now >= last_seen_s + self.options.out_after_s
                if is_out and self._weight(device) > room:
                    is_out = False
                    self.held.add(device)
                    self._tell(device, now, "held DOWN: too much would be OUT at once")
                elif is_out:
                    room -= self._weight(device)
                state = DeviceState.OUT if is_out else DeviceState.DOWN
                why = f"silent for {now - last_seen_s:.3f} s"
                commands += self._become(device, state, why, now)
            self._wait_for(device)
        return commands

    def validate(self) -> None:
        """Checks the invariants of the attributes."""
        assert self.state.keys() == self.last_seen_s.keys()
        for device, state in self.state.items():
            if device in self.held:
                assert state == DeviceState.DOWN
            elif state != DeviceState.OUT:
                assert self._next_s is not None and self._next_s <= self._due_s(device)
        assert set(self.intent.values()) <= {DeviceState.DRAINING, DeviceState.OUT}
        for device, intent in self.intent.items():
            if intent == DeviceState.OUT and device in self.state:
                assert self.state[device] == DeviceState.OUT

    def story(self, key: int) -> list[str]:
        """What happened to device `key`, oldest first."""
        return list(self._stories.get(key, ()))

    def silence_s(self, device: int, now: float) -> float | None:
        """Seconds since the device was last named; None if it was never seen."""
        last_seen_s = self.last_seen_s.get(device)
        return None if last_seen_s is None else now - last_seen_s

    def _due_s(self, device: int) -> float:
        is_down = self.state[device] == DeviceState.DOWN
        wait_s = self.options.out_after_s if is_down else self.options.down_after_s
        return self.last_seen_s[device] + wait_s

    def _answered(self, device: int, why: str, now: float) -> list[SetDeviceState]:
        self.last_seen_s[device] = max(now, self.last_seen_s.get(device, now))
        return self._become(device, self.intent.get(device, DeviceState.UP), why, now)

    def _intended(self, device: int, state: DeviceState, now: float) -> list[SetDeviceState]:
        if state == DeviceState.DOWN:
            raise ValueError("DOWN is observed, not intended: use OUT or DRAINING")
        if state == DeviceState.UP:
            self.intent.pop(device, None)
        else:
            self.intent[device] = state
        self._release_held()
        before = self.state.get(device)
        if before is None:
            return []
        is_silent = before == DeviceState.DOWN or (
            before == DeviceState.OUT
            and now >= self.last_seen_s[device] + self.options.down_after_s
        )
        if is_silent and state != DeviceState.OUT:
            return []  # takes effect when it answers
        return self._become(device, state, "intent of the operator", now)

    def _become(
        self, device: int, state: DeviceState, why: str, now: float
    ) -> list[SetDeviceState]:
        before = self.state.get(device)
        if before == state:
            return []
        self.state[device] = state
        if state != DeviceState.DOWN:
            self.held.discard(device)
        if before is None or before == DeviceState.OUT:
            self._release_held()
        self._tell(device, now, f"{before.name if before else 'unseen'} -> {state.name}: {why}")
        self._wait_for(device)
        return [SetDeviceState(device, state)]

    def _wait_for(self, device: int) -> None:
        """Brings the next deadline forward to the device's, if it has one."""
        if self.state[device] != DeviceState.OUT and device not in self.held:
            due_s = self._due_s(device)
            self._next_s = due_s if self._next_s is None else min(self._next_s, due_s)

    def _weight(self, device: int) -> float:
        return self._weights[device] if device < len(self._weights) else 1.0

    def _out_room(self) -> float:
        """Weight that may still go OUT by silence."""
        total = silent = 0.0
        for device, state in self.state.items():
            if self.intent.get(device) != DeviceState.OUT:
                total += self._weight(device)
                silent += self._weight(device) if state == DeviceState.OUT else 0.0
        # Equal weights that add up to the limit exactly are within it.
        return self.options.max_out_fraction * total * (1 + 1e-9) - silent

    def _release_held(self) -> None:
        """There may be room now: the next deadline tells."""
        released, self.held = self.held, set()
        for device in released:
            self._wait_for(device)

    def _tell(self, device: int, now: float, line: str) -> None:
        story = self._stories.setdefault(device, deque(maxlen=STORY_LENGTH))
        story.append(f"{now:.3f} s: {line}")
