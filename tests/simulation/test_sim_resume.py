"""A run that is cut and resumed ends with the same bits, whatever the scenario switches on."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from tests.simulation.test_sim_change import GROWTH, changing
from tests.simulation.test_sim_checkpoints import Stopped, same_tables
from tests.simulation.test_sim_engine import INCIDENTS, MODELS, rough
from tests.simulation.test_sim_latent import BAD
from tests.simulation.test_sim_limits import NARROW, SPARES

from exastore.sim import Decision, Scenario, register, run


def arrow_decisions(devices: Any, facts: Any) -> Decision:
    """A policy over Arrow: moves from the fullest device, bandwidth by the backlog."""
    compute: Any = pc
    fullest = int(compute.sort_indices(devices, sort_keys=[("slots", "descending")])[0].as_py())
    open_devices = devices.filter(compute.greater(devices["weight"], 0))
    order = compute.sort_indices(open_devices, sort_keys=[("slots", "ascending")])
    emptiest = open_devices["device"][order[0].as_py()].as_py()
    moves = {"pg": [facts.missing_runs % 160], "slot": [fullest % 6], "target_device": [emptiest]}
    return Decision(
        write_bandwidth_bytes_per_s=4e6 if facts.missing_runs > 10 else 2e7,
        read_bandwidth_bytes_per_s=3e7 if facts.degraded_pgs > 5 else 1e7,
        moves=pa.table(moves),
        wants_plan=facts.degraded_pgs > 40,
    )


DECISIONS = f'[decisions]\nfunction = "{register(arrow_decisions)}"\nevery_s = 300000.0\n'
REQUESTS = "[foreground]\nreads_per_s = 2.0\nwrites_per_s = 0.5\n"
CASES: dict[str, Scenario] = {
    "growth": changing(leaves=0.6, grows=0.3),
    "decisions": rough(years=1.0, more=GROWTH + DECISIONS),
    "growth-and-decisions": changing(leaves=0.6, grows=0.2, more=GROWTH + INCIDENTS + DECISIONS),
    "models-and-incidents": rough(years=1.0, more=MODELS + INCIDENTS),
    "latent": rough(years=1.0, write=1e6, read=3e6, racks=6, more=BAD),
    "requests": rough(years=1.0, more=REQUESTS),
    "limits": rough(
        years=1.0,
        links=NARROW + 'transfer = "pipelined"\nlazy_redundancy = 0\nfill_limit = 0.35',
        more=SPARES + INCIDENTS,
        outages=5.0,
    ),
    "all": changing(
        leaves=0.6,
        grows=0.1,
        links="lazy_redundancy = 0",
        more=MODELS + GROWTH + INCIDENTS + BAD + REQUESTS + DECISIONS + SPARES,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_cut_in_its_middle_goes_on_to_the_same_bits(tmp_path: Path, case: str) -> None:
    scenario = CASES[case]
    whole = run(scenario, trials=1, seed=3)
    assert whole.trials["events"].to_pylist()[0] > 200
    for cut_years in (0.2, 0.7):  # before racks join, and after they leave

        def cut(what: str, done: float, total: float, cut_years: float = cut_years) -> None:
            del total
            if what == "simulating" and done > cut_years:
                raise Stopped

        kept: dict[str, Any] = {"checkpoint": tmp_path, "checkpoint_every_years": 0.25}
        with pytest.raises(Stopped):
            run(scenario, trials=1, seed=3, progress=cut, **kept)
        assert cut_years < 0.5 or (tmp_path / "trial-0.npz").exists()
        assert same_tables(run(scenario, trials=1, seed=3, resume=True, **kept), whole)
        assert list(tmp_path.iterdir()) == []
