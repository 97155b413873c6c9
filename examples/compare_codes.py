"""Reed-Solomon, a local code and a Clay code at the same overhead of 1.5: what does repair cost?"""

from dataclasses import replace
from pathlib import Path

from exastore.sim import durability, load_scenario, run


def main() -> None:
    scenario = load_scenario(Path(__file__).with_name("scenario.toml"))
    wide = replace(scenario.cluster, racks_per_zone=14)  # 12 chunks need 12 racks
    print("code          read per rebuilt byte   time to rebuild   nines (analytic)")
    for code in ("rs-8-4", "lrc-8-2-2", "clay-8-4-11"):
        results = run(replace(scenario, code=code, cluster=wide), trials=8, seed=7, workers=2)
        read, rebuilt = (
            float(results.trials[name].to_numpy().sum()) for name in ("read_bytes", "rebuilt_bytes")
        )
        chain = durability(results).chain
        hours = chain.repair_mean_s / 3600
        print(f"{code:12} {read / rebuilt:22.2f} {hours:15.2f} h {chain.nines:16.1f}")


if __name__ == "__main__":
    main()
