"""The page of clients is that of their tests, whatever versions are installed here."""

from pathlib import Path

from tests.integration.clients.matrix import CLIENTS, HERE, page, proven

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"


def without_versions(text: str) -> list[str]:
    lines: list[str] = []
    for line in text.splitlines():
        cells = line.split(" | ")
        lines.append(" | ".join(cells[:1] + cells[2:]) if len(cells) == 4 else line)
    return lines


def test_every_test_of_a_client_is_on_the_page_of_clients() -> None:
    assert {client.file for client in CLIENTS} == {path.name for path in HERE.glob("test_*.py")}
    assert all(proven(client.file) for client in CLIENTS)
    assert without_versions(PAGE.read_text()) == without_versions(page()), "run `make docs`"
