"""Scenario files: every error, with its place, all at once."""

from importlib import resources
from pathlib import Path

import pytest

from exastore.sim import (
    ScenarioError,
    load_scenario,
    parse_scenario,
    preset_names,
    scenario_toml,
)
from exastore.sim.errors import Problem

TINY = resources.files("exastore.sim").joinpath("presets", "tiny.toml").read_text("utf-8")


def problems(text: str) -> list[Problem]:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(text, source="test.toml")
    assert str(caught.value).startswith(f"test.toml: {len(caught.value.problems)} problem")
    for problem in caught.value.problems:
        assert problem.text in str(caught.value)
    return list(caught.value.problems)


def only_problem(old: str, new: str) -> Problem:
    assert old in TINY
    (problem,) = problems(TINY.replace(old, new, 1))
    return problem


def line_number(text: str, start: str) -> int:
    return next(
        number for number, line in enumerate(text.splitlines(), 1) if line.startswith(start)
    )


@pytest.mark.parametrize("name", ["1eib", "10eib", "100eib", "tiny", "mlec"])
def test_presets_are_valid_and_can_be_written_back(name: str) -> None:
    assert name in preset_names()
    scenario = load_scenario(name)
    assert scenario.name == name
    assert parse_scenario(scenario_toml(scenario)) == scenario


def test_the_1eib_preset_holds_an_exbibyte_of_user_data_below_80_percent() -> None:
    scenario = load_scenario("1eib")
    assert scenario.data.user_bytes == 2**60
    assert (scenario.k, scenario.m, scenario.device.capacity_bytes) == (10, 4, 24 * 10**12)
    assert scenario.raw_bytes * 0.8 * 10 / 14 >= 2**60
    assert scenario.fill == pytest.approx(0.7784, abs=1e-4)
    assert scenario.slots_per_device == pytest.approx(100, rel=0.01)
    stored = scenario.slot_bytes * scenario.placement.pg_count * scenario.n
    assert stored == pytest.approx(2**60 * 1.4)


def test_placement_is_balanced_unless_the_scenario_says_otherwise() -> None:
    assert parse_scenario(TINY.replace("balanced = true\n", "")).placement.balanced
    hashed = parse_scenario(TINY.replace("balanced = true", "balanced = false"))
    assert not hashed.placement.balanced
    assert parse_scenario(scenario_toml(hashed)) == hashed


def test_a_file_is_read_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TINY, "utf-8")
    assert load_scenario(path) == load_scenario("tiny")


def test_neither_a_file_nor_a_preset_names_the_presets() -> None:
    with pytest.raises(ScenarioError, match=r"neither such a file nor such a preset.*1eib.*tiny"):
        load_scenario("2eib")


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="cannot be read"):
        load_scenario(tmp_path)


def test_text_that_is_not_toml_names_the_line() -> None:
    (problem,) = problems("name = \n")
    assert "is not TOML" in problem.text
    assert problem.line == 1


def test_an_unknown_key_is_an_error_with_its_line() -> None:
    text = TINY.replace("afr_per_year", "afr_per_yaer")
    (problem,) = problems(text)
    assert problem.key == "device.afr_per_yaer"
    assert "is not a key of a scenario" in problem.text
    assert problem.line == line_number(text, "afr_per_yaer")


def test_a_missing_key_points_to_its_section() -> None:
    problem = only_problem("pg_count = 2_400\n", "")
    assert problem.key == "placement.pg_count"
    assert problem.text == "is required and not given"
    assert problem.line == line_number(TINY, "[placement]")


def test_a_missing_section_is_named() -> None:
    text = TINY.replace("[data]\nuser_bytes = 250_000_000_000_000\nmax_fill = 0.8\n", "")
    (problem,) = problems(text)
    assert (problem.key, problem.text) == ("data", "is required and not given")


@pytest.mark.parametrize(
    ("old", "new", "key", "text"),
    [
        ("afr_per_year = 0.05", "afr_per_year = 1.0", "device.afr_per_year", "less than 1"),
        ("afr_per_year = 0.05", "afr_per_year = -0.1", "device.afr_per_year", "greater than"),
        ("afr_per_year = 0.05", "afr_per_year = nan", "device.afr_per_year", "nan"),
        ("afr_per_year = 0.05", 'afr_per_year = "5 %"', "device.afr_per_year", "a plain number"),
        ("pg_count = 2_400", "pg_count = 0", "placement.pg_count", "greater than or equal to 1"),
        ("pg_count = 2_400", "pg_count = 2400.0", "placement.pg_count", "a whole number"),
        ('domain = "rack"', 'domain = "shelf"', "placement.domain", "'rack'"),
        ("balanced = true", "balanced = 1", "placement.balanced", "valid boolean"),
        ("years = 2", "years = 0", "run.years", "greater than 0"),
        ("seed = 1", "seed = -1", "run.seed", "greater than or equal to 0"),
        ("max_fill = 0.8", "max_fill = 1.2", "data.max_fill", "less than or equal to 1"),
        ("[run]\nyears = 2", "[runs]\nyears = 2", "runs", "is not a key"),
    ],
)
def test_a_bad_value_is_named_with_its_line(old: str, new: str, key: str, text: str) -> None:
    problem = only_problem(old, new)
    assert problem.key == key
    assert text in problem.text
    changed = TINY.replace(old, new, 1)
    assert problem.line == line_number(changed, new.split(" ")[0].split("\n")[0])


def test_all_errors_are_reported_at_once_in_the_order_of_lines() -> None:
    text = TINY.replace("racks_per_zone = 12", "racks_per_zone = 0").replace("seed = 1", "sede = 1")
    found = problems(text.replace("max_fill = 0.8", "max_fill = 7"))
    assert [problem.key for problem in found] == [
        "cluster.racks_per_zone",
        "data.max_fill",
        "run.sede",
    ]
    assert all(problem.line for problem in found)


def test_an_unknown_code_lists_the_valid_forms() -> None:
    problem = only_problem('code = "rs-4-2"', 'code = "raid-5"')
    assert problem.key == "code"
    assert "unknown code 'raid-5'" in problem.text
    assert "rs-" in problem.text


@pytest.mark.parametrize("code", ["lrc-6-2-2", "clay-4-2-5", "rep-3", "rs-3-3"])
def test_every_family_of_codes_can_be_simulated(code: str) -> None:
    text = TINY.replace('code = "rs-4-2"', f'code = "{code}"')
    scenario = parse_scenario(text.replace("250_000_000_000_000", "90_000_000_000_000"))
    assert scenario.code == code
    assert scenario.sure_losses == {"lrc-6-2-2": 3, "clay-4-2-5": 2, "rep-3": 2}.get(code, 3)


def test_more_chunks_than_failure_domains_says_what_to_do() -> None:
    problem = only_problem(
        "racks_per_zone = 12\nnodes_per_rack = 3", "racks_per_zone = 5\nnodes_per_rack = 9"
    )
    assert problem.key == "placement.domain"
    assert "k+m = 6 chunks, but 5 rack(s) with at most 1 each hold only 5" in problem.text
    assert problem.line == line_number(TINY, "domain")


def test_more_data_than_fits_says_how_many_devices_it_takes() -> None:
    problem = only_problem("user_bytes = 250_000_000_000_000", "user_bytes = 400_000_000_000_000")
    assert problem.key == "data.user_bytes"
    assert "it takes 188 devices, the cluster has 144" in problem.text


def test_two_semantic_errors_come_together() -> None:
    text = TINY.replace("racks_per_zone = 12", "racks_per_zone = 2")
    assert [problem.key for problem in problems(text)] == ["placement.domain", "data.user_bytes"]


@pytest.mark.parametrize(
    ("more", "key", "words"),
    [
        ('[[incident]]\nname = "a"\nlevel = "rack"', "incident.0.per_year", "rate above 0 or"),
        (
            '[[incident]]\nname = "a"\nlevel = "rack"\nper_year = -1.0',
            "incident.0.per_year",
            "not -1.0",
        ),
        (
            '[[incident]]\nname = "a"\nlevel = "rack"\nper_year = 1.0\nduration_s = 0.0',
            "incident.0.duration_s",
            "greater than 0",
        ),
        (
            '[[incident]]\nname = "a"\nlevel = "node"\nper_year = 1.0\ndurations_s = [60.0]',
            "incident.0.duration_shares",
            "one for each",
        ),
        (
            '[[incident]]\nname = "a"\nlevel = "cluster"\nper_year = 1.0\nburst_max = 99999',
            "incident.0.burst_max",
            "36 nodes",
        ),
        ('[[incident]]\nname = "a"\nlevel = "rack"\nduration = 5', "incident.0.duration", "key"),
        ("[[model]]\nhazard_from_years = [0.0, 1.0]", "model.0.hazard_afr_per_year", "0 rates"),
        (
            "[[model]]\nhazard_from_years = [1.0]\nhazard_afr_per_year = [0.1]",
            "model.0.hazard_from_years",
            "begin with 0",
        ),
        ("[[model]]\nage_min_years = 3.0", "model.0.age_max_years", "below age_min_years"),
    ],
)
def test_wrong_incidents_and_models_are_named_with_line_value_and_remedy(
    more: str, key: str, words: str
) -> None:
    text = TINY + "\n" + more
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(text)
    (problem,) = caught.value.problems
    assert problem.key == key and words in problem.text
    assert problem.line > len(TINY.splitlines())


def test_incidents_and_models_can_be_written_back() -> None:
    more = """
[[model]]
share = 2.0
hazard_from_years = [0.0, 1.5]
hazard_afr_per_year = [0.1, 0.01]
[[incident]]
name = "rack"
level = "rack"
per_year = 0.5
durations_s = [60.0, 600.0]
duration_shares = [0.9, 0.1]
gives_up = false
"""
    scenario = parse_scenario(TINY + more)
    assert len(scenario.model) == len(scenario.incident) == 1
    assert parse_scenario(scenario_toml(scenario)) == scenario


@pytest.mark.parametrize(
    ("good", "bad", "line", "key", "remedy"),
    [
        ("4_000_000_000_000", '"4 TB"', 12, "device.capacity_bytes", "'4 TB'; give a plain number"),
        ("2_400", "2_000_000_000", 16, "placement.pg_count", "use at most 268,435,456"),
        ("250_000", "900_000", 21, "data.user_bytes", "use less data, more devices"),
    ],
)
def test_a_wrong_value_is_told_with_its_line_and_the_remedy(
    good: str, bad: str, line: int, key: str, remedy: str
) -> None:
    preset = resources.files("exastore.sim").joinpath("presets", "tiny.toml").read_text("utf-8")
    with pytest.raises(ScenarioError) as told:
        parse_scenario(preset.replace(good, bad, 1))
    (problem,) = told.value.problems
    assert (problem.line, problem.key) == (line, key)
    assert remedy in problem.text
