"""How does durability depend on repair bandwidth? A sweep over one scenario, from Python."""

from dataclasses import replace
from pathlib import Path

from exastore.sim import durability, load_scenario, run


def main() -> None:
    scenario = load_scenario(Path(__file__).with_name("scenario.toml"))
    print("MB/s per device   time to rebuild   nines (analytic)")
    for megabytes_per_s in (10, 50, 250):
        repair = replace(
            scenario.repair,
            write_bandwidth_bytes_per_s=megabytes_per_s * 1e6,
            read_bandwidth_bytes_per_s=megabytes_per_s * 1e6,
        )
        results = run(replace(scenario, repair=repair), trials=16, seed=7, workers=2)
        chain = durability(results).chain
        print(f"{megabytes_per_s:15} {chain.repair_mean_s / 3600:15.2f} h {chain.nines:16.1f}")


if __name__ == "__main__":
    main()
