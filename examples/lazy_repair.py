"""Repair at once, or wait until a group can lose only one chunk more? Traffic against risk."""

from dataclasses import replace
from pathlib import Path

from exastore.sim import load_scenario, run


def main() -> None:
    scenario = load_scenario(Path(__file__).with_name("scenario.toml"))
    # Nodes that are away for hours are what lazy repair saves traffic on.
    node = replace(scenario.node, outages_per_year=12.0, outage_mean_s=7_200.0)
    print("repair     written, TB a year   degraded groups, PG-hours a year   most missing")
    for name, redundancy in (("at once", -1), ("lazy", 1)):
        repair = replace(scenario.repair, lazy_redundancy=redundancy)
        results = run(replace(scenario, node=node, repair=repair), trials=4, seed=7, workers=2)
        years, rows = scenario.run.years, results.trials
        written = float(rows["rebuilt_bytes"].to_numpy().mean()) / years / 1e12
        degraded = float(rows["degraded_pg_hours"].to_numpy().mean()) / years
        most = int(rows["max_missing"].to_numpy().max())
        print(f"{name:9} {written:19.1f} {degraded:34.0f} {most:14}")


if __name__ == "__main__":
    main()
