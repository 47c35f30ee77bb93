"""The documentation builds without a warning, and the site needs nothing but itself."""

import os
import pkgutil
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import ROOT

import alignseg_tf

pytestmark = pytest.mark.slow

# Modules that no page of the reference is about: parts of others, and the command line.
INTERNAL = {"__main__", "commands", "system", "version"}
# Attributes by which a page loads something, as `link` does by its `href`.
LOADS = {"src", "srcset", "data", "poster"}


class Page(HTMLParser):
    """The ids of a page, what it loads and where its links lead."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        self.loads += [values[name] for name in LOADS & values.keys()]
        if "href" in values:
            (self.loads if tag == "link" else self.links).append(values["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("sphinx", reason="needs Sphinx: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [
            sys.executable, "-m", "sphinx", "-b", "html", "-n", "-W", "--keep-going", "-q",
            "-d", folder / "doctrees", ROOT / "docs", folder / "html",
        ],
        env={**os.environ, "NOTEBOOKS": "off"}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def test_links_lead_to_files_and_ids(site, pages):
    broken = []
    for path, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme in ("https", "data"), link
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            ids = {"", *pages[target].ids} if target in pages else {unquote(parts.fragment)}
            if not target.is_file() or unquote(parts.fragment) not in ids:
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken, "\n".join(broken)
    assert len(pages) > 25


def test_nothing_is_loaded_from_other_hosts(site, pages):
    for path, page in pages.items():
        for load in page.loads:
            assert urlsplit(load).scheme in ("", "data"), f"{path}: {load}"
            assert not load.startswith("//"), f"{path}: {load}"
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        found = re.findall(r"(?:@import\s+|url\()\s*[\"']?((?:https?:)?//[^\"')]+)", text)
        assert not found, f"{path}: {found}"


def test_every_module_is_in_the_reference():
    """A new module needs a line in a page of `docs/api`, or a place in `INTERNAL`."""
    text = "".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
    named = set(re.findall(r":: alignseg_tf\.([\w.]+)", text)) | {"model", "layers", "data"}
    modules = {module.name for module in pkgutil.iter_modules(alignseg_tf.__path__)}
    assert modules - INTERNAL <= {name.split(".")[0] for name in named}
    assert {name.split(".")[0] for name in named if name.islower()} <= modules


def test_members_of_keras_are_left_out(site):
    text = (site / "api" / "layers.html").read_text(encoding="utf-8")
    assert 'id="alignseg_tf.layers.AlignedFeatureAggregation.offsets"' in text
    assert 'id="alignseg_tf.layers.AlignedFeatureAggregation.add_weight"' not in text
    assert 'id="alignseg_tf.layers.AlignedFeatureAggregation.get_config"' not in text
