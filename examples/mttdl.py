"""Is a Markov chain's MTTDL right? It is for lives without memory, and not for ageing devices."""

from dataclasses import replace
from pathlib import Path

from exastore.sim import estimate_durability, load_scenario, simulate_durability
from exastore.sim.durability import chain_estimate


def main() -> None:
    scenario = load_scenario(Path(__file__).with_name("scenario.toml"))
    weak = replace(
        scenario,
        code="rs-8-1",  # loses data often enough to be counted
        node=replace(scenario.node, outages_per_year=0.0),
        placement=replace(scenario.placement, policy="random-declustered", balanced=False),
    )
    print("lives            P(loss) a year, chain   simulated, 95 % interval")
    for name, shape in (("exponential", 1.0), ("wearing out", 2.5)):
        device = replace(scenario.device, afr_per_year=0.05, life_shape=shape)
        aged = replace(weak, device=device)
        found = estimate_durability(simulate_durability(aged, trials=2_000, seed=7, workers=2))
        chain = chain_estimate(aged, mean_missing_s=0.0)
        interval = f"{found.lower:.4f} to {found.upper:.4f}"
        print(f"{name:16} {chain.loss_per_year:21.4f}   {found.loss_per_year:.4f}, {interval}")


if __name__ == "__main__":
    main()
