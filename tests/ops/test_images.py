"""The Dockerfile, the locks of the images, and the script that installs them."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from .sources import HTTP_PORT, METRICS_PORT, OPS, PORTS, PROJECT, ROOT, env_file, has_digest, is_own_image, tool

DOCKERFILE = OPS / "docker" / "Dockerfile"
IMAGES = ("models", "orchestrator", "draft", "target")


def script(path):
    """One of ops/, which is no package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


locks = script(OPS / "locks" / "images.py")


def version_faults(text, env):
    """Versions in a Dockerfile's text and in the variables of .env that are not those of the project."""
    for name in ("PYTHON_IMAGE", "TORCH_INDEX"):
        if f"ARG {name}={env[name]}\n" not in text:
            yield f"{name} is not that of .env"
    if "@sha256:" not in env["PYTHON_IMAGE"] or "ARG BASE=${PYTHON_IMAGE}\n" not in text:
        yield "the base image is not pinned"
    if env["PRESIFT_VERSION"] != PROJECT["version"]:
        yield f"PRESIFT_VERSION is {env['PRESIFT_VERSION']}"
    sglang = env["SGLANG_IMAGE"].partition("@")[0].rpartition(":v")[2]
    if f"sglang=={sglang}" not in locks.pins().values():
        yield f"SGLANG_IMAGE is {env['SGLANG_IMAGE']}"


# No registry or repository at hand names the digest of SGLang's tag.
WITHOUT_DIGEST = {"SGLANG_IMAGE"}
IMAGE_LINE = re.compile(r"^\s*(?:- )?image: *[\"']?([^\s\"'#]+)", re.MULTILINE)


def digest_faults(env, texts):
    """Images of others, in variables of .env or in manifests, that a registry could replace: they have no digest."""
    named = {name: value for name, value in env.items() if name.endswith("_IMAGE")}
    for name, image in named.items():
        if has_digest(image) is (name in WITHOUT_DIGEST):
            yield f"{name} is {image}"
    for place, text in texts.items():
        for image in IMAGE_LINE.findall(text):
            variable = re.fullmatch(r"\$\{(\w+)\}", image)
            is_pinned = variable[1] in named if variable else has_digest(image)
            if not is_pinned and not is_own_image(image):
                yield f"{place}: {image}"


def manifests():
    """The text of each compose file and each file of ops/k8s, by path."""
    files = [ROOT / "compose.yaml", *OPS.glob("compose*.yaml"), *(OPS / "k8s").rglob("*.yaml")]
    return {str(each.relative_to(ROOT)): each.read_text() for each in files}


def test_every_image_of_others_has_a_digest():
    """As the files are written, so that this is checked without compose and kubectl too."""
    texts = manifests()
    assert sum(len(IMAGE_LINE.findall(text)) for text in texts.values()) > 15
    assert list(digest_faults(env_file(), texts)) == []


@pytest.mark.parametrize(
    ("path", "was", "becomes"),
    [
        ("ops/k8s/base/cache.yaml", "@sha256:", "#"),
        ("ops/k8s/base/draft.yaml", "image: presift-draft", "image: other/draft:1.0"),
        ("compose.yaml", "image: ${VALKEY_IMAGE}", "image: valkey/valkey:9.1.0-alpine"),
        ("ops/compose.observability.yaml", "${TEMPO_IMAGE}", "${TEMPO}"),
    ],
)
def test_an_image_without_a_digest_is_found(path, was, becomes):
    texts = manifests()
    assert was in texts[path]
    assert len(list(digest_faults(env_file(), {path: texts[path].replace(was, becomes)}))) == 1


@pytest.mark.parametrize("name", [name for name in env_file() if name.endswith("_IMAGE")])
def test_a_variable_without_a_digest_is_found(name):
    """And one that no longer lacks it, so that the list of exceptions does not outlive its reason."""
    env = env_file()
    wrong = env[name].partition("@")[0] + ("@sha256:" + "0" * 64 if name in WITHOUT_DIGEST else "")
    assert list(digest_faults(env | {name: wrong}, {})) == [f"{name} is {wrong}"]


def faults(text, env):
    """What is wrong with the text of a Dockerfile, given the variables of .env."""
    yield from version_faults(text, env)
    stages = {stage.split(maxsplit=3)[2]: stage for stage in text.split("\nFROM ")[1:]}
    for image in IMAGES:
        lines = ["USER 10001:10001", f"COPY --from=install-{image} /opt/presift /opt/presift"]
        module = "presift_demo_models" if image == "models" else f"presift.{image}"
        lines += [f"base AS {image}", f'ENTRYPOINT ["python", "-m", "{module}"]']
        if image != "models":
            http = f" {HTTP_PORT}" if image == "orchestrator" else ""
            lines += [f"ENV PRESIFT_{image.upper()}_LISTEN=0.0.0.0:{PORTS[image]}"]
            lines += [f"EXPOSE {PORTS[image]}{http} {METRICS_PORT}"]
            lines += [f'  CMD ["python", "-m", "presift.rpc.probe", "127.0.0.1:{PORTS[image]}"]']
        yield from (f"{image}: has no line {line}" for line in set(lines) - set(stages[image].splitlines()))
        if re.search(r"^(RUN|ADD)", stages[image], re.MULTILINE) or stages[image].count("COPY ") != 1:
            yield f"{image}: holds more than what was installed for it"


def test_the_dockerfile_has_the_right_ports_users_and_versions():
    assert list(faults(DOCKERFILE.read_text(), env_file())) == []


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("EXPOSE 50052", "EXPOSE 50051"),
        ("DRAFT_LISTEN=0.0.0.0:50052", "DRAFT_LISTEN=0.0.0.0:50051"),
        ('"127.0.0.1:50053"]', '"127.0.0.1:50052"]'),
        ('"presift.draft"]', '"presift.target"]'),
        ("USER 10001:10001", "USER 0:0"),
        ("FROM base AS draft", "FROM python AS draft"),
        ("install-target /opt", "install-draft /opt"),
        ("EXPOSE 50053 9464\n", "EXPOSE 50053 9464\nRUN pip install x\n"),
        ("slim-bookworm@", "slim-trixie@"),
    ],
)
def test_a_fault_in_the_dockerfile_is_found(line, wrong):
    text = DOCKERFILE.read_text()
    assert line in text and list(faults(text.replace(line, wrong), env_file()))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("PRESIFT_VERSION", "0.0.9"), ("SGLANG_IMAGE", "lmsysorg/sglang:v0.5.20"), ("PYTHON_IMAGE", "python:3.11")],
)
def test_a_wrong_version_in_env_is_found(name, wrong):
    assert list(faults(DOCKERFILE.read_text(), env_file() | {name: wrong}))


@pytest.mark.parametrize(("more", "status"), [("", 0), ("\nFROM python\nRUN sudo pip install x\n", 1)])
def test_hadolint_finds_nothing_but_a_fault(tmp_path, more, status):
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.read_text() + more)
    done = subprocess.run([tool("hadolint"), tmp_path / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout


def build_context_faults(ignore, dockerfile):
    """Lines of .dockerignore and COPYs that do not go together. All is ignored but what `!` names."""
    first, *lines = [line for line in ignore.splitlines() if line and not line.startswith("#")]
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE)
    wanted = {word for words in copied for word in words.split()}
    yield from (
        f"{word} is not in .dockerignore" for word in wanted if not any(_within(word, each) for each in allowed)
    )
    yield from (f"{each} is never copied" for each in allowed if not any(_within(word, each) for word in wanted))
    yield from (f"{each} does not exist" for each in allowed if not (ROOT / each).exists())
    if first != "*":
        yield "not everything is ignored by default"


def _within(path, folder):
    return f"{path}/".startswith(f"{folder}/")


def test_the_build_context_is_what_the_dockerfile_copies():
    ignore, dockerfile = (ROOT / ".dockerignore").read_text(), DOCKERFILE.read_text()
    assert list(build_context_faults(ignore, dockerfile)) == []
    for wrong in (ignore.replace("!services\n", ""), f"{ignore}!tests\n", f"{ignore}!absent\n", f"!a\n{ignore}"):
        assert list(build_context_faults(wrong, dockerfile))


def test_locks_of_images_are_current(tmp_path, monkeypatch, capsys):
    assert locks.main(["--check"]) == 0, "run ops/locks/images.py"
    monkeypatch.setattr(locks, "IMAGES", tmp_path)
    assert locks.main(["--check"]) == 1 and "target.txt" in capsys.readouterr().err
    assert locks.main([]) == 0 and locks.main(["--check"]) == 0
    (tmp_path / "target.txt").write_text("torch==0.0.1\n")
    assert locks.main(["--check"]) == 1


def test_no_image_has_more_than_it_needs():
    held = {role: {line.partition("==")[0] for line in locks.text(role).splitlines()[1:]} for role in locks.ROLES}
    assert not held["orchestrator"] & {"torch", "sglang", "triton"}
    assert not held["models"] & {"torch", "sglang", "transformers"}
    assert "torch" in held["draft"] and "sglang" not in held["draft"] and {"torch", "sglang"} <= held["target"]
    for names in held.values():
        assert not names & {"pytest", "ruff", "mypy", "hypothesis", "grpcio-tools", "pip"}


def installing(tmp_path, device):
    environment = {"PATH": os.environ["PATH"], "PRESIFT_VENV": str(tmp_path / "venv"), "PRESIFT_LOCKS": str(tmp_path)}
    command = ["sh", str(OPS / "docker" / "install.sh"), "packages", "draft", device]
    environment |= {"PRESIFT_WHEEL": str(tmp_path), "TORCH_INDEX": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_installing_refuses_an_unknown_device(tmp_path):
    done = installing(tmp_path, "tpu")
    assert done.returncode == 2 and "tpu" in done.stderr


def test_only_the_lock_is_installed(tmp_path):
    """With an empty lock: setuptools, which a new environment holds, is removed too."""
    (tmp_path / "draft.txt").write_text("# nothing\n")
    done = installing(tmp_path, "cpu")
    assert done.returncode == 0, done.stderr
    packages = tmp_path / "venv" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    assert not list(packages.glob("setuptools*"))
