"""The pages of docs/ are built without a warning, can be searched, and fetch nothing from elsewhere."""

import json
import logging
import re
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

REPOSITORY = Path(__file__).parent.parent.parent

#: What makes a browser ask another host by itself: a source, a style sheet, an icon, an import, a font.
FETCHED = re.compile(
    r"""(?:\bsrc=|<link\b[^>]*?\bhref=|@import\s|url\(|\bimport\()\s*["']?((?:https?:)?//[^"')\s>]+)""", re.IGNORECASE
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("mkdocs").addHandler(handler)
    try:
        config = load_config(str(REPOSITORY / "mkdocs.yml"), site_dir=str(folder), strict=True)
        build(config)
    finally:
        logging.getLogger("mkdocs").removeHandler(handler)
    assert not warnings
    return folder


def test_every_document_is_a_page_that_the_search_knows(site: Path) -> None:
    entries = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    pages = {str(path.relative_to(site)) for path in site.rglob("*.html")} - {"404.html"}
    documents = {
        str(p.relative_to(REPOSITORY / "docs").with_suffix(".html")) for p in (REPOSITORY / "docs").rglob("*.md")
    }
    assert pages == documents
    assert {entry["location"].partition("#")[0] or "index.html" for entry in entries} == pages


def test_the_page_on_commands_has_what_each_command_says_of_itself(site: Path) -> None:
    page = (site / "commands.html").read_text(encoding="utf-8")
    assert '<h2 id="token-generate">' in page
    assert "--request-token &lt;str&gt;" in page


def test_no_page_fetches_anything_from_another_host(site: Path) -> None:
    files = [path for path in site.rglob("*") if path.suffix in (".html", ".css", ".js", ".svg")]
    fetched = {url for path in files for url in FETCHED.findall(path.read_text(encoding="utf-8"))}
    assert fetched == set()
    assert [path for path in site.rglob("*") if path.suffix in (".woff", ".woff2")] == []
