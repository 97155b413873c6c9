"""Config files: what is read, what is refused, and in which words."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from exastore.deploy.config import ProcessConfig, read_config, render_defaults, render_table
from exastore.deploy.errors import BadInput, ExitCode
from exastore.gateway.config import GatewayConfig
from exastore.metadata.service.config import MetadataConfig
from exastore.storage.config import StorageConfig

TESTDATA = Path(__file__).parents[1] / "testdata"


@dataclass(frozen=True, slots=True)
class Sample:
    """A config like those of the rooms."""

    name: str
    """Required."""
    delay_s: float = 1.5
    devices: tuple[str, ...] = ()
    count: int = 3
    fast: bool = False


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "service.toml"
    path.write_text(text)
    return path


def test_a_table_is_read_into_its_dataclass(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        '[sample]\nname = "a"\ndelay_s = 2\ndevices = ["x", "y"]\n[process]\nlog_level = "debug"\n',
    )
    sample, process = read_config(path, "sample", Sample)
    assert sample == Sample(name="a", delay_s=2.0, devices=("x", "y"))
    assert process == ProcessConfig(log_level="debug")


def test_what_is_rendered_reads_back(tmp_path: Path) -> None:
    values = {"name": 'tab\t "quoted" \\ ü', "delay_s": 0.25, "devices": ["a b"], "fast": True}
    path = written(tmp_path, render_table("sample", values))
    assert read_config(path, "sample", Sample)[0] == Sample(
        name='tab\t "quoted" \\ ü', delay_s=0.25, devices=("a b",), fast=True
    )


def test_every_error_of_a_file_is_told_with_its_place(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        '[sample]\ndelays_s = 2.0\ncount = "many"\n[process]\nlog_level = "loud"\n[other]\nx = 1\n',
    )
    with pytest.raises(BadInput) as caught:
        read_config(path, "sample", Sample)
    message = str(caught.value)
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    assert "[sample] delays_s: unknown key; did you mean delay_s?" in message
    assert "[sample] name:" in message
    assert "[sample] count: Input should be a valid integer (given: 'many')" in message
    assert "[process] log_level:" in message
    assert "[other]: unknown table" in message


def test_a_missing_or_broken_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot read config file .*: No such file"):
        read_config(tmp_path / "none.toml", "sample", Sample)
    with pytest.raises(BadInput, match=r"is not valid TOML: .*line 1"):
        read_config(written(tmp_path, "[sample\n"), "sample", Sample)


def test_a_rooms_own_check_is_told_as_an_error_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "[gateway]\nchunk_bytes = 100\n")
    with pytest.raises(BadInput, match="chunk_bytes is 100; it must be a multiple of 64"):
        read_config(path, "gateway", GatewayConfig)


def test_the_defaults_are_those_that_were_agreed() -> None:
    tables = [
        render_defaults("process", ProcessConfig),
        render_defaults("metadata", MetadataConfig),
        render_defaults("node", StorageConfig),
        render_defaults("gateway", GatewayConfig),
    ]
    golden = TESTDATA / "config.toml.lock"
    assert golden.read_text() == "\n".join(tables), (
        "a default changed: if that is meant, update tests/testdata/config.toml.lock and docs"
    )
