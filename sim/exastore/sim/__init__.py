"""The simulator: years of a cluster, event by event, decided by the cluster's own code.

from exastore.sim import load_scenario, run
results = run(load_scenario("tiny"), trials=100, seed=7, workers=2)
results.write("out")
"""

from exastore.sim.durability import Durability, durability
from exastore.sim.errors import DecisionError, ResultsError, ScenarioError, SimError
from exastore.sim.overlap_model import OverlapOptions
from exastore.sim.overlap_rare import estimate_rare_loss
from exastore.sim.overlap_run import (
    DurabilityEstimate,
    DurabilityResults,
    RareEstimate,
    estimate_durability,
    simulate_durability,
)
from exastore.sim.results import Provenance, Results
from exastore.sim.run import Placement, place, run
from exastore.sim.scenario import (
    Scenario,
    load_scenario,
    parse_scenario,
    preset_names,
    scenario_toml,
)
from exastore.sim.summary import summarize
from exastore.sim.user import Decision, Facts, register

__all__ = [
    "Decision",
    "DecisionError",
    "Durability",
    "DurabilityEstimate",
    "DurabilityResults",
    "Facts",
    "OverlapOptions",
    "Placement",
    "Provenance",
    "RareEstimate",
    "Results",
    "ResultsError",
    "Scenario",
    "ScenarioError",
    "SimError",
    "durability",
    "estimate_durability",
    "estimate_rare_loss",
    "load_scenario",
    "parse_scenario",
    "place",
    "preset_names",
    "register",
    "run",
    "scenario_toml",
    "simulate_durability",
    "summarize",
]
