"""The documentation as a site that opens from a folder, without a network: `make docs`.

Pages are gathered in one folder with the layout of the repository, so that their links hold here
as on a code host: the README is the home page, notebooks become pages with the outputs that they
were committed with, and each module that a page or a notebook imports gets a page of reference.
The site generator builds them in strict mode; then every link of the result is followed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

import typer
import yaml
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "runs" / "docs"
IMPORTS = re.compile(r"(?:from|import) (workbench[\w.]*)")
ALSO = ("workbench.engines", "workbench.errors", "workbench.prompts", "workbench.store")
PICTURE = re.compile(r"<picture>.*?<img ([^>]*)>\s*</picture>", re.DOTALL)
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\.png\)")
# What the generator would have a page load from a network, to search pages opened from a folder.
SHIM = re.compile(r"https://unpkg\.com/iframe-worker/shim")
STYLE = re.compile(r"<style scoped>.*?</style>\s*", re.DOTALL)


def main(out: Path = OUT) -> int:
    """Build the site in `out/html`; 1 if the generator warns, or a page or a link is missing."""
    shutil.rmtree(out, ignore_errors=True)
    pages = out / "pages"
    gather(pages)
    config = yaml.safe_load((ROOT / "docs/site.yml").read_text(encoding="utf-8"))
    for place in config["nav"]:
        if "Reference" in place:
            place["Reference"] = reference(pages)
    config["plugins"][-1]["mkdocstrings"]["handlers"]["python"]["paths"] = [str(ROOT)]
    (out / "mkdocs.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", "mkdocs.yml"]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True, check=False)
    typer.echo(done.stdout + done.stderr)
    localise(out / "html")
    wrong = [*missing(pages, config["nav"]), *broken(out / "html")]
    if done.returncode or "warning" in (done.stdout + done.stderr).lower():
        wrong.insert(0, "the generator warned: see above")
    for line in wrong:
        typer.echo(line, err=True)
    if not wrong:
        typer.echo(f"{len(list((out / 'html').rglob('*.html')))} pages: {out / 'html/index.html'}")
    return bool(wrong)


def gather(pages: Path) -> None:
    """All pages but the reference, as Markdown in the repository's layout."""
    for pattern in ("*.md", "docs/*.md", "workbench/tiny/*/README.md"):
        for source in sorted(ROOT.glob(pattern)):
            text = both_themes(source.read_text(encoding="utf-8"), source.parent)
            page = pages / source.relative_to(ROOT)
            write(page.with_name("index.md") if page.name == "README.md" else page, text)
    for source in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        write_notebook(source, pages / source.relative_to(ROOT).with_suffix(".md"))
    shutil.copytree(ROOT / "figures", pages / "figures")
    for name in ("site.css", "offline.js"):
        shutil.copy(ROOT / "docs" / name, pages / "docs")


def write(path: Path, text: str) -> None:
    """A page whose links to notebooks and to the README lead to their pages."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = re.sub(r"(\]\([^)\s:]+)\.ipynb\)", r"\1.md)", text)
    text = re.sub(r"(\]\((?:[^)\s:]*/)?)README\.md", r"\1index.md", text)
    path.write_text(text, encoding="utf-8")


def both_themes(text: str, folder: Path) -> str:
    """Text whose figures follow the theme where there is a version for dark ones."""

    def pair(found: re.Match[str]) -> str:
        alt, stem = " ".join(found[1].split()), found[2]
        if not (folder / f"{stem}_dark.png").exists():
            return found[0]
        return f"![{alt}]({stem}.png#only-light)\n![{alt}]({stem}_dark.png#only-dark)"

    return IMAGE.sub(pair, PICTURE.sub(_as_image, text))


def _as_image(found: re.Match[str]) -> str:
    parts = dict(re.findall(r'(\w+)="([^"]*)"', found[1]))
    return f"![{parts['alt']}]({parts['src']})"


def write_notebook(source: Path, page: Path) -> None:
    """A notebook with its committed outputs as a page, its pictures beside it."""
    exporter: Any = MarkdownExporter()  # type: ignore[no-untyped-call]
    text, resources = exporter.from_filename(str(source))
    pictures = page.with_suffix("")
    for name, data in resources["outputs"].items():
        pictures.mkdir(parents=True, exist_ok=True)
        (pictures / name).write_bytes(data)
        text = text.replace(f"]({name})", f"]({pictures.name}/{name})")
    write(page, STYLE.sub("", text))


def reference(pages: Path) -> list[dict[str, str]]:
    """A page for each module that a page or a notebook imports; returns their places in `nav`."""
    texts = (page.read_text(encoding="utf-8") for page in pages.rglob("*.md"))
    modules = sorted({*ALSO, *(name for text in texts for name in IMPORTS.findall(text))})
    for name in modules:
        write(
            pages / "api" / f"{name}.md",
            f"# {name}\n\n::: {name}\n    options: {{show_root_heading: false}}\n",
        )
    return [{name: f"api/{name}.md"} for name in modules]


def localise(site: Path) -> None:
    """Have pages load nothing from a network; the page of a server's errors is not needed."""
    (site / "404.html").unlink(missing_ok=True)
    for page in site.rglob("*.html"):
        script = "../" * (len(page.relative_to(site).parts) - 1) + "docs/offline.js"
        text = page.read_text(encoding="utf-8")
        page.write_text(SHIM.sub(script, text), encoding="utf-8")


def missing(pages: Path, nav: Any) -> Iterator[str]:
    """Pages that the navigation does not lead to."""
    named = set(re.findall(r"[\w/.]+\.md", yaml.safe_dump(nav)))
    for page in sorted(pages.rglob("*.md")):
        name = page.relative_to(pages).as_posix()
        if name not in named and not name.startswith("notebooks/sweeps/"):
            yield f"{name}: not in the navigation of docs/site.yml"


class Links(HTMLParser):
    """What a page refers to, what it loads, and the places in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep `href`, `src`, `id` and `name`."""
        for key, value in attrs:
            if key in {"id", "name"} and value:
                self.places.add(value)
            elif key in {"href", "src"} and value:
                (self.links if tag == "a" else self.loads).append(value)


def broken(site: Path) -> Iterator[str]:
    """Links and pictures that lead nowhere, and what a page would load from a network."""
    found = {page: Links(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}
    for page, links in found.items():
        name = page.relative_to(site)
        for link in links.loads:
            if urlsplit(link).scheme in {"http", "https"} or link.startswith("//"):
                yield f"{name}: loads {link}"
        for link in (*links.links, *links.loads):
            address, place = urldefrag(link)
            if urlsplit(link).scheme or link.startswith("//"):
                continue
            target = (page.parent / unquote(address)).resolve() if address else page
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                yield f"{name}: {link} leads nowhere"
            elif place and target in found and unquote(place) not in found[target].places:
                yield f"{name}: {link}: no such place on that page"


if __name__ == "__main__":
    sys.exit(main())
