"""What the pages for people name must exist: links, flags, variables, commands, and a runbook for each alert."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import typer
import yaml
from tests.e2e.openai.features import table

from presift.cli.app import app
from presift.cli.settings import CliSettings
from presift.draft.settings import DraftSettings
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.target.settings import TargetSettings

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "clients/README.md")),
    *(ROOT / "ops" / f"{name}.md" for name in ("README", "security", "guarantees", "choosing", "developing")),
]
ALL_PAGES = [*PAGES, *(page for page in sorted((ROOT / "ops").rglob("*.md")) if page not in PAGES)]
ALL_PAGES = [page for page in ALL_PAGES if "node_modules" not in page.parts]
RULES = ROOT / "ops" / "prometheus" / "rules.yml"
RUNBOOKS = ROOT / "ops" / "README.md"
SERVICES = {"ORCHESTRATOR": OrchestratorSettings, "DRAFT": DraftSettings, "TARGET": TargetSettings}
COMMANDS = typer.main.get_command(app).commands
# Flags of other people's programs, and of scripts.
FOREIGN = {
    *("--build", "--rm", "--scale"),  # docker compose
    "--no-deps",  # pip
    "--accept",  # ops/sglang/canary.py
    "--engine",  # tests/e2e/conftest.py
}
# Not settings: what the stock server, the command and its stack read.
OTHER_VARIABLES = {"PRESIFT_SGLANG_PLUGIN", "PRESIFT_CACHE_URL"}


def text(page):
    return page.read_text(encoding="utf-8")


def prose(page):
    """Without what stands in fences."""
    return re.sub(r"^```.*?^```$", "", text(page), flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    """GitHub's anchors of a page's headings: lower case, hyphens for blanks, no punctuation."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def broken_links(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        if re.match(r"https?:", path):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


def test_a_broken_link_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n[a](#a-page) [b](#b) [c](page.md#a-page) [d](nowhere.md) [e](https://example.org/x)\n")
    assert broken_links(page) == ["#b", "nowhere.md"]


def kebab(name):
    return f"--{name.replace('_', '-')}"


def flags_of(command):
    """All of a command's and its subcommands'."""
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    for each in getattr(command, "commands", {}).values():
        yield from flags_of(each)


def known_flags():
    fields = [(name, field) for settings in SERVICES.values() for name, field in settings.model_fields.items()]
    own = {kebab(name) for name, _ in fields} | {
        kebab(f"no_{name}") for name, field in fields if field.annotation is bool
    }
    commands = set(flags_of(typer.main.get_command(app)))
    scripts = (ROOT / "clients" / "python" / "examples").glob("*.py")
    examples = {flag for script in scripts for flag in re.findall(r'add_argument\("(--[a-z-]+)"', text(script))}
    return own | commands | examples | FOREIGN | {"--help"}


def unknown_flags(words):
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", words)) - known_flags())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_flags_exist(page):
    assert unknown_flags(text(page)) == []


def test_an_unknown_flag_is_seen():
    assert unknown_flags("`--listen`, `--no-reflection`, `--drafts 2`, --lisen --no-listen") == [
        "--lisen",
        "--no-listen",
    ]


def unknown_variables(words):
    """Those of a service are settings of it, others the command's. `PRESIFT_DRAFT_...` stands for all."""
    known = {f"PRESIFT_{name.upper()}" for name in CliSettings.model_fields} | OTHER_VARIABLES
    for service, settings in SERVICES.items():
        known |= {f"PRESIFT_{service}_{name.upper()}" for name in settings.model_fields}
    named = set(re.findall(r"PRESIFT_[A-Z][A-Z_]*[A-Z](?![A-Z_])(?!_?\.\.\.)", words))
    return sorted(named - known)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_variables_exist(page):
    assert unknown_variables(text(page)) == []


def test_an_unknown_variable_is_seen():
    words = (
        "PRESIFT_DRAFT_MAX_QUEUE, `PRESIFT_DRAFT_...`, PRESIFT_HOME, PRESIFT_DRAFT_MAX_QUEUES PRESIFT_TARGET_MAX_QUEUE"
    )
    assert unknown_variables(words) == ["PRESIFT_DRAFT_MAX_QUEUES", "PRESIFT_TARGET_MAX_QUEUE"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page):
    named = set(re.findall(r"(?:`|\$ )presift ([a-z][a-z-]*)\b", text(page)))
    assert named <= set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_installations_work_as_written(page):
    """presift is on no package index: only a clone or a wheel can be installed, with extras that exist.

    The packages of `presift eval --suite` go into a Python of their own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for words in re.findall(r"(?<!suites/bin/)pip install ([^\n`#]+)", text(page)):
        what, _, extras = words.strip().strip("'").rstrip("]").partition("[")
        assert what in (".", f"dist/presift-{project['version']}-py3-none-any.whl"), words
        assert not extras or extras in project["optional-dependencies"], words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_that_is_shown_is_python(page):
    for block in re.findall(r"^```python\n(.*?)^```$", text(page), re.DOTALL | re.MULTILINE):
        ast.parse(block)


def alerts(rules):
    groups = yaml.safe_load(rules)["groups"]
    return {
        rule["alert"]: rule["annotations"]["runbook_url"]
        for group in groups
        for rule in group["rules"]
        if "alert" in rule
    }


def astray(found):
    """Alerts whose runbook_url is not the heading of their name."""
    return [name for name, url in found.items() if url.rpartition("ops/README.md#")[2] != name.lower()]


def runbooks():
    section = prose(RUNBOOKS).partition("## What to do when")[2]
    return set(re.findall(r"^### (Presift\w+)$", section, re.MULTILINE))


def test_each_alert_has_its_runbook_and_each_runbook_its_alert():
    found = alerts(text(RULES))
    assert astray(found) == [] and runbooks() == set(found)


def test_an_alert_that_leads_astray_is_seen():
    rules = "groups: [{name: a, rules: [{alert: PresiftGone, annotations: {runbook_url: 'ops/README.md#presiftgon'}}]}]"
    assert astray(alerts(rules)) == ["PresiftGone"]


def test_the_table_of_features_is_the_tested_one():
    assert table() in (ROOT / "clients" / "README.md").read_text()
