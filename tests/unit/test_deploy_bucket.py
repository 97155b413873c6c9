"""Sizes and lifecycle rules as people write them for `exastore bucket`."""

from pathlib import Path

import pytest

from exastore.deploy.cli.bucket import parsed_rules, parsed_size
from exastore.deploy.errors import BadInput


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096 B", 4096),
        ("10GiB", 10 << 30),
        ("1.5TB", 1_500_000_000_000),
        ("2k", 2000),
        ("3 Mi", 3 << 20),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size_bytes: int) -> None:
    assert parsed_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "much", "10 XB", "-1", "GiB", "nan", "inf", "1e30"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parsed_size(text)


@pytest.mark.parametrize(
    "text", ["{}", "[1]", '[{"expire_dayz": 1}]', '[{"expire_days": -1}]', "["]
)
def test_what_is_no_list_of_rules_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "rules.json"
    file.write_text(text)
    with pytest.raises(BadInput):
        parsed_rules(file)


def test_rules_are_read_from_json(tmp_path: Path) -> None:
    file = tmp_path / "rules.json"
    file.write_text('[{"id": "a", "expire_days": 3, "tags": {"kind": "log"}}]')
    (rule,) = parsed_rules(file).rules
    assert (rule.id, rule.expire_days, dict(rule.tags)) == ("a", 3, {"kind": "log"})
