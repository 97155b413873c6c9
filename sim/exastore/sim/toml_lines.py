"""Where a key stands in a TOML text; the parser of the standard library does not say."""

import re
from collections import Counter

_HEADER = re.compile(r"^\s*\[\s*([A-Za-z0-9_.\-\" ]+?)\s*\]")
_ROW = re.compile(r"^\s*\[\[\s*([A-Za-z0-9_.\-]+?)\s*\]\]")
_KEY = re.compile(r"^\s*([A-Za-z0-9_.\-\"]+)\s*=")
_AT_LINE = re.compile(r"\(at line (\d+)")


def line_of(text: str, key: str) -> int:
    """Line, from 1, of the dotted `key`, else of its section, else 0.

    The rows of an array of tables are sections by number, from 0: "incident.0".
    """
    section, section_lines, key_lines = "", dict[str, int](), dict[str, int]()
    rows = Counter[str]()
    for number, line in enumerate(text.splitlines(), start=1):
        if row := _ROW.match(line):
            section = f"{row[1]}.{rows[row[1]]}"
            rows[row[1]] += 1
            section_lines.setdefault(section, number)
        elif header := _HEADER.match(line):
            section = header[1].replace('"', "").replace(" ", "")
            section_lines.setdefault(section, number)
        elif found := _KEY.match(line):
            name = found[1].replace('"', "")
            key_lines.setdefault(f"{section}.{name}" if section else name, number)
    while key:
        if key in key_lines:
            return key_lines[key]
        for section in (key, f"{key}.0"):
            if section in section_lines:
                return section_lines[section]
        key = key.rpartition(".")[0]
    return 0


def syntax_error_line(message: str) -> int:
    """Line that a message of `tomllib` names, or 0."""
    found = _AT_LINE.search(message)
    return int(found[1]) if found else 0
