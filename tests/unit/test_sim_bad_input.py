"""Wrong scenarios: each gives one problem that names field, line, value and remedy."""

from importlib import resources
from pathlib import Path

import pytest
from typer.testing import CliRunner

from exastore.deploy.cli.app import app
from exastore.sim import ScenarioError, parse_scenario

TINY = resources.files("exastore.sim").joinpath("presets", "tiny.toml").read_text("utf-8")
INCIDENT = '[[incident]]\nname = "a"\nlevel = "rack"\nper_year = 1.0\n'
GENERATION = '[[generation]]\nname = "g"\nracks_per_zone = 2\n'
MODEL = "[[model]]\n"
REQUESTS = "[foreground]\nreads_per_s = 1.0\n"

#: What stands in the preset, what stands there instead, the field, words of the message.
CHANGED = [
    ('code = "rs-4-2"', 'code = "rs-40-2"', "placement.domain", "12 rack(s) with at most 1 each"),
    ('code = "rs-4-2"', 'code = "rs-4"', "code", "unknown code 'rs-4'; valid forms: rs-K-M"),
    ('code = "rs-4-2"', 'code = "rs-200-100"', "code", "300 chunks are more than 255"),
    ('code = "rs-4-2"', "code = 42", "code", "should be a valid string, not 42"),
    ('name = "tiny"', 'name = ""', "name", "is empty; give a text"),
    ("racks_per_zone = 12", "racks_per_zone = 12.5", "cluster.racks_per_zone", "not 12.5"),
    ("racks_per_zone = 12", "racks_per_zone = -3", "cluster.racks_per_zone", "than or equal to 1"),
    ("racks_per_zone = 12", "racks_per_zone = true", "cluster.racks_per_zone", "not True"),
    (
        "racks_per_zone = 12",
        "racks_per_zone = 1_000_000_000",
        "cluster.racks_per_zone",
        "makes 12,000,000,000 devices, more than 2,147,483,647; use fewer racks",
    ),
    (
        "capacity_bytes = 4_000_000_000_000",
        "capacity_bytes = 4e12",
        "device.capacity_bytes",
        "write a whole number, without a point or an exponent: 4_000_000_000_000",
    ),
    ("capacity_bytes = 4_000_000_000_000", "capacity_bytes = 4", "data.user_bytes", "larger ones"),
    (
        "capacity_bytes = 4_000_000_000_000",
        "capacity_bytes = 99_999_999_999_999_999_999",
        "device.capacity_bytes",
        "should be less than 9223372036854775808",
    ),
    ("afr_per_year = 0.05", "afr_per_year = 5", "device.afr_per_year", "less than 1, not 5"),
    ("afr_per_year = 0.05", "afr_per_year = inf", "device.afr_per_year", "not inf"),
    ("afr_per_year = 0.05", "life_shape = 0", "device.life_shape", "greater than 0, not 0"),
    ("afr_per_year = 0.05", "life_shape = 50", "device.life_shape", "equal to 10, not 50"),
    (
        "afr_per_year = 0.05",
        'replacement_delay_s = "1 day"',
        "device.replacement_delay_s",
        "is '1 day'; give a plain number, the name of the key ends in its unit",
    ),
    ("afr_per_year = 0.05", "afr = 0.05", "device.afr", "the keys here are capacity_bytes, afr"),
    ("afr_per_year = 0.05", "seed = 3", "device.seed", "is not a key here; it is one of [run]"),
    ("pg_count = 2_400", "pg_count = 9_999_999_999", "placement.pg_count", "use at most"),
    ('domain = "rack"', 'domain = "zone"', "placement.domain", "1 zone(s) with at most 1 each"),
    ('domain = "rack"', "max_per_domain = 0", "placement.max_per_domain", "not 0"),
    ('domain = "rack"', 'also = ["node"]', "placement.also.0", "a list, written as ['node']"),
    ('domain = "rack"', 'also = [["shelf", 1]]', "placement.also.0.0", "not 'shelf'"),
    ('domain = "rack"', "regions = [3]", "placement.regions", "names region 3, but there are 1"),
    ('domain = "rack"', 'policy = "crush"', "placement.policy", "not 'crush'"),
    ('domain = "rack"', 'policy = "custom"', "placement.policy_function", "name a function if"),
    (
        'domain = "rack"',
        'policy = "copyset"\nscatter_width = 2',
        "placement.scatter_width",
        "a stripe of rs-4-2 is on 5 others; give at least 5",
    ),
    ("max_fill = 0.8", "max_fill = 80", "data.max_fill", "less than or equal to 1, not 80"),
    ("max_fill = 0.8", "growth_per_year = 0.2", "data.growth_per_year", "after 1.167 years"),
    ("user_bytes = 250_000_000_000_000", "user_bytes = 0", "data.user_bytes", "not 0"),
    ("years = 2", "years = 1e9", "run.years", "less than or equal to 1000"),
    ("trials = 4", "trials = 0", "run.trials", "greater than or equal to 1, not 0"),
    ("seed = 1", "seed = 1e18", "run.seed", "1_000_000_000_000_000_000"),
    ("[run]", "[[run]]", "run", "must be one section, written as [run]"),
    ("[run]", "[run", "", "is not TOML"),
    ("years = 2", "years = 2\nyears = 3", "", "Cannot overwrite a value"),
]

#: What is added at the end, the field, words of the message.
ADDED = [
    ("[repair]\nwrite_bandwidth_bytes_per_s = 0", "repair.write_bandwidth_bytes_per_s", "not 0"),
    ("[repair]\ndetection_delay_s = -5", "repair.detection_delay_s", "not -5"),
    (
        "[repair]\nwrite_bandwidth_MBps = 50",
        "repair.write_bandwidth_MBps",
        "perhaps write_bandwidth_bytes_per_s is meant",
    ),
    ("[repair]\nout_after_s = inf", "repair.out_after_s", "a finite number, not inf"),
    ("[repair]\nlazy_redundancy = 5", "repair.lazy_redundancy", "use 0 to 1, or -1"),
    ("[repair]\nfill_limit = 0.1", "repair.fill_limit", "give a larger limit, such as 0.95"),
    ("[spares]\nper_zone = 3", "spares.reorder_s", "give the time of delivery"),
    ("[node]\noutages_per_year = 1e9", "node.outages_per_year", "equal to 8766"),
    ("[node]\noutage_mean_s = 0", "node.outage_mean_s", "greater than 0, not 0"),
    ("[node]\nmtbf = 3", "node.mtbf", "the keys here are outages_per_year, outage_mean_s"),
    ("[latent]\nread_error_per_bit = 1e-10", "latent.read_error_per_bit", "data sheets say 1e-15"),
    ("[latent]\nonset_per_year = nan", "latent.onset_per_year", "not nan"),
    ("[balance]\nevery_s = 0.001", "balance.every_s", "is 0.001 s; give at least 60"),
    ("[balance]\nmax_misplaced_share = 2.0", "balance.max_misplaced_share", "not 2.0"),
    ("[decisions]\nevery_s = 0", "decisions.every_s", "greater than 0, not 0"),
    ("[decisions]\nevery_s = 1.0", "decisions.every_s", "is 1 s; give at least 60"),
    ('[[generation]]\nname = "g"', "generation.0.racks_per_zone", "is required and not given"),
    (GENERATION + "model = 3", "generation.0.model", "there are 1 models, from 0"),
    (GENERATION + "capacity_bytes = -1", "generation.0.capacity_bytes", "not -1"),
    (GENERATION.replace("[[generation]]", "[generation]"), "generation", "under [[generation]]"),
    (MODEL + "share = 0", "model.0.share", "give some model a share above 0"),
    (MODEL + "afr_horizon_years = 0", "model.0.afr_horizon_years", "not 0"),
    (MODEL + "hazard_from_years = 3", "model.0.hazard_from_years", "written as [3], not 3"),
    (MODEL + "age_min_years = 3.0", "model.0.age_max_years", "give the older age here"),
    (INCIDENT.replace("rack", "pdu"), "incident.0.level", "not 'pdu'"),
    (INCIDENT.replace("1.0", "0.0"), "incident.0.per_year", "a rate above 0 or a period above 0"),
    (INCIDENT + "every_years = 1.0", "incident.0.per_year", "not both"),
    (INCIDENT + "hit_share = 0.0", "incident.0.hit_share", "not 0.0"),
    (INCIDENT + "death_share = 1.5", "incident.0.death_share", "not 1.5"),
    (INCIDENT + 'duration_s = "1h"', "incident.0.duration_s", "give a plain number"),
    (INCIDENT + 'duration_law = "weibull"', "incident.0.duration_law", "not 'weibull'"),
    (INCIDENT + "duration_shares = [1.0]", "incident.0.duration_shares", "give durations_s"),
    (INCIDENT.replace("[[", "[").replace("]]", "]"), "incident", "under [[incident]]"),
    (REQUESTS + "object_bytes = [1.0, 2.0]", "foreground.object_shares", "1 shares for 2 sizes"),
    (REQUESTS.replace("1.0", "1e6"), "foreground.reads_per_s", "ask for less"),
    (REQUESTS + "node_link_bytes_per_s = 1.0", "foreground.node_link_bytes_per_s", "a faster link"),
    ("[energi]\npue = 1.2", "energi", "is not a key of a scenario"),
]


def the_problem(text: str, key: str, words: str) -> None:
    with pytest.raises(ScenarioError) as told:
        parse_scenario(text)
    (problem,) = told.value.problems
    assert problem.key == key
    assert words in problem.text, problem.text
    assert 0 < problem.line <= len(text.splitlines())


@pytest.mark.parametrize(("old", "new", "key", "words"), CHANGED)
def test_a_wrong_value_is_named(old: str, new: str, key: str, words: str) -> None:
    assert old in TINY
    the_problem(TINY.replace(old, new, 1), key, words)


@pytest.mark.parametrize(("more", "key", "words"), ADDED)
def test_a_wrong_section_is_named(more: str, key: str, words: str) -> None:
    the_problem(f"{TINY}\n{more}\n", key, words)


def test_the_command_shows_all_problems_and_leaves_nothing_behind(tmp_path: Path) -> None:
    scenario = tmp_path / "mine.toml"
    text = TINY.replace("afr_per_year = 0.05", "afr_per_year = 5").replace("seed = 1", "sed = 1")
    scenario.write_text(text, "utf-8")
    result = CliRunner().invoke(app, ["sim", "run", str(scenario), "--out", str(tmp_path / "out")])
    assert result.exit_code != 0
    told = str(result.exception) if result.exception is not None else result.output
    assert "2 problems" in told and "afr_per_year" in told and "perhaps seed is meant" in told
    assert not (tmp_path / "out").exists()
