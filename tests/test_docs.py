"""What README and docs tell their readers to do, parsed or done; and the site that they build."""

import ast
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from docs import configs_page
from tests.conftest import ROOT, tiny_config
from tests.reports.browser import CHROMIUM, Browser
from vit_jax.__main__ import main as vit
from vit_jax.cli import command as commands
from vit_jax.cli import train
from vit_jax.config.load import load
from vit_jax.pretrained.reference import as_ours
from vit_jax.train.fit import fit

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the fenced blocks of a page in these languages."""
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def lines(page: Path) -> list[str]:
    """Return the command lines of a page, continued ones joined."""
    text = "\n".join(blocks(page, "bash", "sh")).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


COMMANDS = [pytest.param(line, id=f"{page.stem}-{i}") for page in PAGES for i, line in enumerate(lines(page))]


class Parsed(Exception):
    """A command line is right, and need not be carried out."""


@pytest.fixture
def parse_only(monkeypatch):
    """Lets commands end where their flags are parsed."""
    parse = commands.Parser.parse

    def parsed(self, argv):
        parse(self, argv)
        raise Parsed

    monkeypatch.setattr(commands.Parser, "parse", parsed)


def check_vit(words: list[str]) -> None:
    """Parse a command of vit; of a training run the config is loaded, of a launch its command is checked too."""
    name, *rest = words
    if "--" in rest:
        check(rest[rest.index("--") + 1 :])
    if name == "train":
        with pytest.raises(Parsed):
            train.parse(rest)
        overrides, flags = commands.split_overrides(rest)
        config = next(flag.removeprefix("--config=") for flag in flags if flag.startswith("--config="))
        if not config.startswith(("mine.py", "my_project/")):  # of the reader
            load(str(ROOT / config), overrides)
    elif name != "--help":
        assert (ROOT / "vit_jax" / "cli" / f"{name}.py").exists()
        with pytest.raises(Parsed):
            vit(words)
        for word in rest:
            if word.removeprefix("--paper=").startswith("experiments/"):
                assert (ROOT / word.removeprefix("--paper=")).exists()


def check(words: list[str]) -> None:
    """Check one command line; one of a kind that is not known here fails."""
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[0] == "vit":
        check_vit(words[1:])
    elif words[:3] == ["python", "-m", "vit_jax.main"]:
        check_vit(["train", *words[3:]])
    elif words[:3] == ["python", "-m", "pytest"]:
        assert all((ROOT / word.partition("::")[0]).exists() for word in words[3:] if word.startswith("tests"))
    elif words[:2] == ["python", "-c"]:
        compile(words[2], "-c", "exec")
    elif words[0] == "python":
        assert (ROOT / words[1]).exists()
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    elif words[:3] == ["pip", "install", "-e"]:
        extras = re.fullmatch(r"\.(?:\[(.*)\])?", words[3])
        assert extras is not None
        assert set(filter(None, (extras[1] or "").split(","))) <= PROJECT["optional-dependencies"].keys()
    elif words[:2] == ["pre-commit", "install"]:
        assert (ROOT / ".pre-commit-config.yaml").exists()
    else:
        assert words == ["source", ".venv/bin/activate"]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_line_is_real(line, parse_only):
    check(shlex.split(line, comments=True))


def test_commands_are_found():
    assert len(COMMANDS) > 60


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page):
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        assert not target.startswith("http"), "a page that opens offline links to files"
        place, _, anchor = target.partition("#")
        file = (page.parent / place).resolve() if place else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)", file.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}, target


def test_the_models_of_the_zoo_are_references():
    names = re.findall(r"^\| `([^`]+)`", (ROOT / "docs" / "reference" / "zoo.md").read_text(), flags=re.MULTILINE)
    assert len(names) > 100
    assert all(as_ours(name) == f"hf:timm/{name}" for name in names)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the run and the images that the pages name."""
    folder = tmp_path_factory.mktemp("docs")
    config = tiny_config()
    config.steps, config.evals.test.every = 2, 2
    fit(config, folder / "workdirs" / "digits")
    (folder / "workdirs" / "photos").symlink_to("digits")
    for name in ("photo.jpg", "photo.png", "digit.png"):
        Image.new("L", (8, 8), 99).save(folder / name)
    return folder


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda page: page.stem)
def test_python_blocks_run(page, place, monkeypatch):
    """One after the other, as a reader would; a block that only lists signatures is compiled."""
    monkeypatch.chdir(place)
    names: dict = {"__name__": "page"}
    for code in blocks(page, "python"):
        if ": ..." in code:
            compile(code, str(page), "exec")
            continue
        code = code.replace("range(200)", "range(2)")
        exec(compile(code, str(page), "exec"), names)


def test_parts_of_the_guide_train(tmp_path, monkeypatch):
    for code in blocks(ROOT / "docs" / "guides" / "own_parts.md", "python")[:2]:
        name = re.match(r"# (\w+\.py)\n", code)
        (tmp_path / name[1]).write_text(code)
    monkeypatch.setattr(sys, "path", sys.path[:])
    metrics = fit(load(str(tmp_path / "mine.py")), tmp_path / "run")
    sys.modules.pop("my_parts", None)
    assert metrics["wrong/wrong"] < 0.5


def test_the_page_of_configs_is_that_of_the_schema():
    assert configs_page.PAGE.read_text() == configs_page.page(), "run python docs/configs_page.py"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebooks_are_small_and_were_run_in_order(notebook):
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert notebook.stat().st_size < 200_000
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [out for cell in cells for out in cell["outputs"] if out["output_type"] == "error"]
    for cell in cells:
        ast.parse("".join(cell["source"]))


@pytest.mark.usefixtures("draws")
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebooks_run(notebook):
    import matplotlib

    matplotlib.use("Agg")
    names: dict = {"__name__": "notebook"}
    for cell in json.loads(notebook.read_text())["cells"]:
        if cell["cell_type"] == "code":
            code = "".join(cell["source"]).replace("STEPS = 200", "STEPS = 4")
            code = code.replace("config.optim.lr = 0.03", "config.optim.lr, config.steps = 0.03, 4")
            exec(compile(code, str(notebook), "exec"), names)


@pytest.mark.skipif(
    importlib.util.find_spec("zensical") is None, reason="zensical is not installed: docs/requirements.txt"
)
def test_the_site_builds_without_warnings_and_loads_nothing_from_elsewhere(tmp_path):
    settings = (ROOT / "zensical.toml").read_text().replace('paths = ["."]', f"paths = [{str(ROOT)!r}]")
    (tmp_path / "zensical.toml").write_text(settings)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = sorted((tmp_path / "build" / "site").rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        loaded = re.findall(
            r'<(?:script|link|img|iframe)[^>]*(?:src|href)="?((?:https?:)?//[^">\s]+)', page.read_text()
        )
        assert not loaded, (page.name, loaded)
    if CHROMIUM is not None:
        browser = Browser(tmp_path / "profile")
        for name in ("index.html", "reference/parts.html"):
            browser.open(tmp_path / "build" / "site" / name)
        browser.close()
        assert all(url.startswith(("file:", "data:", "blob:", "about:")) for url in browser.requests)


def test_citation_and_changelog_name_the_version():
    from vit_jax import __version__

    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
