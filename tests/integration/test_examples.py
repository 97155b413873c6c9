"""The examples run as they are."""

import os
from pathlib import Path
from typing import Any, cast

import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode, reads

EXAMPLES = Path(__file__).parents[2] / "examples"


def read_notebook(path: Path) -> NotebookNode:
    """`nbformat.read`, which has no types."""
    notebook: NotebookNode = cast(Any, reads)(path.read_text("utf-8"), as_version=4)
    return notebook


@pytest.mark.integration
# Jupyter's client warns of its own event loop.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_notebook_reads_a_run_with_three_tools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = read_notebook(EXAMPLES / "results.ipynb")
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    client = NotebookClient(
        notebook, timeout=240, resources={"metadata": {"path": os.fspath(tmp_path)}}
    )
    client.execute()
    last = notebook.cells[-1].outputs[-1].data["text/plain"]
    assert "TB rebuilt in all trials together" in last
