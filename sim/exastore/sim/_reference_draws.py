"""What the plain twin draws: lives, incidents and how long they last. See `_reference`."""

from math import inf, log
from typing import Any

import numpy as np

from exastore.sim.scenario import Scenario
from exastore.sim.user import LIFE_ARGUMENTS, load_function

_WORD = 2**64 - 1
_LIFE, GAP, _DURATION, REPLACEMENT, _DURATION_ROW, AGE = 1, 2, 3, 4, 5, 6
LAW, _HIT, DEATH, _BURST_SIZE, _BURST_PLACE = 7, 8, 9, 10, 11
YEAR_S = 365.25 * 86_400.0


def mix64(x: int) -> int:
    """splitmix64 on Python's integers."""
    x = (x + 0x9E3779B97F4A7C15) & _WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return x ^ (x >> 31)


class Draws:
    """Random numbers by address, and the laws."""

    def __init__(self, scenario: Scenario, seed: int, trial: int) -> None:
        self.scenario = scenario
        self.key = mix64(mix64(seed) ^ trial)

    def bits(self, stream: int, entity: int, draw: int) -> int:
        return mix64(mix64(self.key ^ (stream << 56 | entity)) ^ draw)

    def uniform(self, stream: int, entity: int, draw: int) -> float:
        return ((self.bits(stream, entity, draw) >> 11) + 0.5) * 2.0**-53

    def exponential(self, stream: int, entity: int, draw: int) -> float:
        return -log(self.uniform(stream, entity, draw))

    def life_s(self, device: int, law: int, draw: int, age: float) -> float:
        model = self.scenario.models[law]
        if self.scenario.device.trace:
            return inf
        if model.life:
            function: Any = load_function(model.life, "life", LIFE_ARGUMENTS)
            stream = np.uint64(self.bits(_LIFE, device, draw))
            params = np.array(model.life_params)
            return max(0.0, float(getattr(function, "py_func", function)(params, stream, age)))
        if model.hazard_from_years:
            return self.piecewise_life_s(device, law, draw, age)
        if model.afr_per_year == 0:
            return inf
        horizon = model.afr_horizon_years if model.life_shape != 1.0 else 1.0
        rate = -horizon * np.log1p(-model.afr_per_year)
        scale = float(horizon / rate ** (1.0 / model.life_shape) * YEAR_S)
        x = self.exponential(_LIFE, device, draw)
        if age > 0.0:
            x += (age / scale) ** model.life_shape
        end = scale * x if model.life_shape == 1.0 else scale * x ** (1.0 / model.life_shape)
        return max(0.0, end - age)

    def piecewise_life_s(self, device: int, law: int, draw: int, age: float) -> float:
        model = self.scenario.models[law]
        starts = [years * YEAR_S for years in model.hazard_from_years]
        rates = [float(-np.log1p(-afr)) / YEAR_S for afr in model.hazard_afr_per_year]
        before = [0.0]
        for i in range(1, len(starts)):
            before.append(before[-1] + (starts[i] - starts[i - 1]) * rates[i - 1])
        total = self.exponential(_LIFE, device, draw)
        if age > 0.0:
            i = max(j for j, start in enumerate(starts) if start <= age)
            total += before[i] + (age - starts[i]) * rates[i]
        i = 0
        while i + 1 < len(starts) and before[i + 1] <= total:
            i += 1
        if rates[i] == 0.0:
            return inf
        return max(0.0, starts[i] + (total - before[i]) / rates[i] - age)

    def duration_s(self, number: int, entity: int, draw: int) -> float:
        incident = self.scenario.incidents[number]
        value = incident.duration_s
        if len(incident.durations_s) > 1:
            share = self.uniform(_DURATION_ROW, entity, draw)
            until = np.cumsum(incident.duration_shares) / np.sum(incident.duration_shares)
            until[-1] = 1.0
            row = next(i for i, end in enumerate(until) if end >= share)
            value = incident.durations_s[row]
        elif incident.durations_s:
            value = incident.durations_s[0]
        if incident.duration_law == "fixed":
            return value
        return value * self.exponential(_DURATION, entity, draw)

    def hit_nodes(self, number: int, domain: int, draw: int) -> list[int]:
        incident = self.scenario.incidents[number]
        if incident.level != "cluster":
            size = self.scenario.nodes_per_domain(incident)
            count = self.scenario.tree.node_count
            nodes = range(domain * size, min((domain + 1) * size, count))
            if incident.level == "upgrade":
                nodes = range(domain, count, incident.upgrade_domains)
            return [
                node
                for node in nodes
                if incident.hit_share >= 1.0
                or self.uniform(_HIT, number << 28 | node, draw) < incident.hit_share
            ]
        spread = incident.burst_max - incident.burst_min + 1
        share = self.uniform(_BURST_SIZE, number << 28, draw)
        per_rack = self.scenario.cluster.nodes_per_rack
        hit: list[int] = []
        rack = 0
        for i in range(incident.burst_min + int(share * spread)):
            address = number << 28 | i
            place = self.uniform(_BURST_PLACE, address, draw)
            stays = self.uniform(_BURST_SIZE, address + 1, draw) < incident.rack_affinity
            if i > 0 and stays:
                hit.append(rack * per_rack + int(place * per_rack))
            else:
                hit.append(int(place * self.scenario.tree.node_count))
                rack = hit[-1] // per_rack
        return hit
