"""The TypeScript client as a package: generated code, lock file, licences, its own tests, the docs' example."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
import tomllib
import uuid
from pathlib import Path

import pytest

from presift.orchestrator.api.auth.interceptor import AuthInterceptor

from ..fakes import node
from ..fakes.api_keys import key_authenticator

ROOT = node.FOLDER.parents[1]
LOCK, PACKAGE = (json.loads((node.FOLDER / name).read_text()) for name in ("package-lock.json", "package.json"))
GENERATED = node.FOLDER / "src" / "gen"
COMPILER = ("--module", "nodenext", "--target", "es2022", "--types", "node", "--skipLibCheck")
BUF = Path(sys.executable).parent / "buf"


def test_the_lock_names_no_host():
    """Users install from their own registry; the lock file's checksums pin the content."""
    named = [path for path, entry in LOCK["packages"].items() if "resolved" in entry]
    assert not named
    assert all("integrity" in entry for path, entry in LOCK["packages"].items() if path)


def test_licences_are_allowed():
    folder = ROOT / "ops" / "supply_chain"
    allowed = tomllib.loads((folder / "licences.toml").read_text())["allowed"]
    ask = f"import json, sys; sys.path.insert(0, {str(folder)!r}); import licences; allowed = json.loads(sys.argv[1])\n"
    ask += "print(json.dumps([each for each in sys.argv[2:] if not licences.is_allowed(each, allowed)]))"
    found = sorted({entry.get("license", "") for path, entry in LOCK["packages"].items() if path})
    done = subprocess.run(
        [sys.executable, "-c", ask, json.dumps(allowed), *found], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [] and found


def test_version_and_licence_match_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (PACKAGE["version"], PACKAGE["license"]) == (project["version"], project["license"])
    assert LOCK["version"] == PACKAGE["version"]


def generated(protos, out):
    """The code that buf generates from `protos`, by path."""
    node.needed()
    done = subprocess.run(
        [BUF, "generate", str(protos), "--template", "buf.gen.yaml", "-o", str(out)],
        cwd=node.FOLDER,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return texts(out / "src" / "gen")


def texts(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.ts")}


def test_generated_code_is_up_to_date(tmp_path):
    assert generated(ROOT / "protos", tmp_path) == texts(GENERATED)


def test_a_changed_proto_is_detected(tmp_path):
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    changed = tmp_path / "protos" / "presift" / "v1" / "plan.proto"
    changed.write_text(changed.read_text().replace("uint32 start = 1;", "uint32 begin = 1;"))
    assert generated(tmp_path / "protos", tmp_path / "out") != texts(GENERATED)


@pytest.mark.parametrize("script", ["check", "test"])
def test_its_own_scripts(script):
    """Formatting and types; then the unit tests, run by Node."""
    node.needed()
    done = node.run("npm", "run", "--silent", script)
    assert done.returncode == 0, done.stdout + done.stderr


def compiled(block):
    """The compiler's output for a code block of the docs, with the variables that the block leaves undefined."""
    node.needed()
    declarations = "declare const apiKey: string, document: string, question: string;\n"
    place = node.FOLDER / "dist" / f"docs-{uuid.uuid4().hex}.ts"  # a package can import itself only from inside
    place.write_text(declarations + block)
    try:
        return node.run("npx", "tsc", "--ignoreConfig", "--noEmit", "--strict", *COMPILER, str(place)).stdout
    finally:
        place.unlink()


@pytest.mark.parametrize("planted", ["", "maxTokens: 5, "], ids=["unchanged", "with a mistake"])
def test_the_example_in_the_docs_compiles(planted):
    (block,) = re.findall(r"^```ts\n(.*?)^```$", (ROOT / "clients" / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    output = compiled(block.replace("maxPromptTokens", f"{planted}maxPromptTokens"))
    assert ("maxTokens" in output) if planted else not output, output


async def example(*arguments):
    script = node.FOLDER / "dist" / "examples" / "ask_a_document.js"
    return await asyncio.to_thread(node.run, "node", str(script), *map(str, arguments), limit_s=60)


@pytest.fixture
def document(tmp_path):
    node.needed()
    path = tmp_path / "document.txt"
    path.write_text("d" * 200)
    return path


async def test_the_example_answers(stack, document):
    done = await example(document, "why?", stack.address)
    assert (done.returncode, done.stderr) == (0, "")
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("full, kept ") and last.startswith("first token after ")
    assert "?yhw" in done.stdout  # the fake answers with the prompt reversed


async def test_the_example_prints_an_error(open_stack, document):
    stack = await open_stack(auth_interceptors=(AuthInterceptor(key_authenticator()),), salt="deployment")
    done = await example(document, "why?", stack.address)
    assert done.returncode == 1 and done.stderr.startswith("UNAUTHENTICATED: ")


async def test_the_example_prints_its_usage():
    node.needed()
    done = await example()
    assert done.returncode == 2 and done.stderr.startswith("usage: ")
