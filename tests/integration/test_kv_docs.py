"""The example in the page on engines runs on every engine as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.engine_stores import KINDS, EngineStores

PAGE = Path(__file__).parents[2] / "docs" / "engines.md"


@pytest.mark.integration
@pytest.mark.parametrize("kind", KINDS)
def test_the_example_of_the_page_runs(kind: str, engine_stores: EngineStores) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    program = example.replace('"memory:"', repr(engine_stores.url(kind)))
    assert program != example or kind == "memory"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines() == ["guests before: 0", "visits: 1"], done.stderr
