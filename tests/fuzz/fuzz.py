"""Coverage-guided fuzzing of one target with atheris, for example the target `requests`:

    python tests/fuzz/fuzz.py requests -max_total_time=60

All options behind the target's name are libFuzzer's. Without that one it goes on for ever.
"""

import importlib
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

#: It ships no types.
atheris: Any = importlib.import_module("atheris")

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["exastore.gateway.s3", "exastore.gateway.encryption"]):
    from tests.fuzz.targets import SEEDS, TARGETS


def main() -> None:
    """Fuzz until the time is over or something breaks."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: fuzz.py {'|'.join(TARGETS)} [libFuzzer options]")
    name = sys.argv.pop(1)
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        for place, seed in enumerate(SEEDS[name]):
            Path(folder, str(place)).write_bytes(seed)
        atheris.Setup([*sys.argv, folder], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
