"""Do what ops/docker/Dockerfile does, without docker: the RUN steps of each image in a folder of its own, then start
the services from these folders, ask their health as the images do, and one question of the whole stack.

    python ops/docker/build_without_docker.py                     all images, then the stack (some 10 minutes, 3 GB)
    python ops/docker/build_without_docker.py --only models       that image alone; nothing is started

It reads the Dockerfile and runs what stands there, its paths moved into the folder: it has no list of steps that could
go another way. Not done: the base image (this machine's Python is used), steps that need root (users, owners) and the
read-only root; ops/docker/rehearse.sh does these where podman and buildah are.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from dockerfile import Dockerfile, read

REPOSITORY = Path(__file__).parents[2]
IMAGES = ("orchestrator", "draft", "target", "models")
PORTS = {"orchestrator": 50051, "draft": 50052, "target": 50053}
# Folders of an image that the steps below touch, and the stage whose steps need root.
MOVED = ("src", "build", "wheel", "opt/presift", "tmp")
NEEDS_ROOT = "base"
_PATH = re.compile(rf"(?<![\w./-])/({'|'.join(MOVED)})(?=[/\s\"']|$)")
_READY_S, _ANSWER_S = 600.0, 300.0


def moved(text: str, tree: Path) -> str:
    """`text` with the image's absolute paths led into `tree`."""
    return _PATH.sub(lambda found: f"{tree}/{found[1]}", text)


def plan(dockerfile: Dockerfile, image: str) -> list[tuple[str, str]]:
    """(instruction, words) of all that makes `image`, in order: the wheel, then what is installed."""
    stages = [*dockerfile.line_of("wheel"), *dockerfile.line_of(f"install-{image}")]
    return [(step.name, step.words) for stage in stages if stage.name != NEEDS_ROOT for step in stage.steps]


def build(dockerfile: Dockerfile, image: str, tree: Path) -> None:
    """Raises CalledProcessError for a step that fails."""
    environment = {**os.environ, "PRESIFT_VENV": str(tree / "opt/presift"), **dockerfile.arguments}
    folder = tree
    for name, words in plan(dockerfile, image):
        if name == "RUN":
            print(f"   RUN {words}", flush=True)
            subprocess.run(["sh", "-euc", moved(words, tree)], cwd=folder, env=environment, check=True)
        elif name == "COPY":
            _copy(words, folder, tree)
        elif name == "WORKDIR":
            folder = Path(moved(words, tree))
            folder.mkdir(parents=True, exist_ok=True)
        elif name == "ENV":
            pairs = re.findall(r"(\w+)=(\S+)", words)
            environment |= {key: moved(value, tree) for key, value in pairs if key != "PIP_NO_CACHE_DIR"}


def _copy(words: str, folder: Path, tree: Path) -> None:
    *sources, target = [word for word in words.split() if not word.startswith("--")]
    # Of a stage: its files lie in the same tree.
    root = tree if "--from=" in words else REPOSITORY
    place = Path(moved(target, tree)) if target.startswith("/") else folder / target
    for source in sources:
        path = root / source.removeprefix("/")
        if path.is_dir():
            if path.resolve() != place.resolve():
                shutil.copytree(path, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)


class Service:
    """An image's ENTRYPOINT as a process of this machine, on the loopback."""

    def __init__(self, dockerfile: Dockerfile, role: str, tree: Path, port: int, flags: Sequence[str]) -> None:
        self._dockerfile, self._role, self._tree, self._port = dockerfile, role, tree, port
        (tree / "tmp").mkdir(exist_ok=True)
        self.log = tree / f"{role}.log"
        command = [*self._command("ENTRYPOINT"), "--listen", f"127.0.0.1:{port}", *flags]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self._environment(), cwd=tree / "tmp")

    def wait_healthy(self) -> float:
        """Seconds until its HEALTHCHECK said so. Raises SystemExit with the end of its log."""
        started = time.monotonic()
        while time.monotonic() - started < _READY_S and self.process.poll() is None:
            if self._is_healthy():
                return time.monotonic() - started
            time.sleep(0.5)
        raise SystemExit(f"{self._role} is not healthy:\n{self.log.read_text(errors='replace')[-3000:]}")

    def _is_healthy(self) -> bool:
        probe = self._command("HEALTHCHECK")
        return subprocess.run(probe, env=self._environment(), capture_output=True, check=False).returncode == 0

    def stop(self) -> int:
        """Its exit code after SIGTERM."""
        self.process.terminate()
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _command(self, name: str) -> list[str]:
        words = self._dockerfile.command(self._role, name)
        own = f"127.0.0.1:{PORTS[self._role]}"
        return [
            str(self._tree / "opt/presift/bin" / words[0]),
            *(w.replace(own, f"127.0.0.1:{self._port}") for w in words[1:]),
        ]

    def _environment(self) -> dict[str, str]:
        known = {key: moved(value, self._tree) for key, value in self._dockerfile.environment(self._role).items()}
        own = {key: value for key, value in known.items() if not key.endswith("_LISTEN") and key != "PATH"}
        # None of this machine's Python settings: what an image does not have must not be found here.
        return {"PATH": f"{self._tree}/opt/presift/bin:/usr/bin:/bin", **own}


def try_stack(dockerfile: Dockerfile, trees: dict[str, Path], draft: Path, target: Path) -> None:
    """Start all three, ask their health and one question, stop them. Raises SystemExit."""
    ports = {role: port + 10_000 for role, port in PORTS.items()}
    token = trees["orchestrator"] / "service-token"
    token.write_text(secrets.token_hex(32))
    shared = ["--service-token-file", str(token)]
    flags = {
        "draft": ["--model", str(draft), *shared],
        "target": ["--model", str(target), *shared],
        "orchestrator": [
            *("--draft-address", f"127.0.0.1:{ports['draft']}", "--target-address", f"127.0.0.1:{ports['target']}"),
            *("--tokenizer", str(target), "--draft-timeout-s", "300", *shared),
        ],
    }
    with ExitStack() as running:
        services = {}
        for role in ("draft", "target", "orchestrator"):
            services[role] = Service(dockerfile, role, trees[role], ports[role], flags[role])
            running.callback(services[role].stop)
        for role, service in services.items():
            print(f"   {role}: its HEALTHCHECK says SERVING after {service.wait_healthy():.0f} s", flush=True)
        print(f"   an answer through all three: {_ask(trees['orchestrator'], ports['orchestrator'])}", flush=True)
        for role in ("orchestrator", "draft", "target"):
            print(f"   {role}: SIGTERM, ended with code {services[role].stop()}", flush=True)


_QUESTION = """
import sys
from presift_client import Client
text = "The harbour is closed on Mondays. " * 40 + "When is the harbour closed?"
with Client(sys.argv[1]) as client:
    answer = client.generate(text, route="spec_pc", compress_above_tokens=64, max_prompt_tokens=128, max_new_tokens=8)
print(answer.decision.route, answer.decision.reason, answer.decision.kept_tokens, "of", answer.decision.prompt_tokens)
"""


def _ask(tree: Path, port: int) -> str:
    command = [str(tree / "opt/presift/bin/python"), "-c", _QUESTION, f"127.0.0.1:{port}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_S, check=False, env={"HOME": "/tmp"})
    if done.returncode != 0:
        raise SystemExit(f"no answer: {done.stderr.strip()[-2000:]}")
    return done.stdout.strip()


def _mebibytes(folder: Path) -> float:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink()) / 2**20


def main(arguments: list[str] | None = None) -> int:
    """0 if all was built and, without `--only`, the stack answered."""
    home = Path(os.environ.get("PRESIFT_HOME", "~/.cache/presift")).expanduser()
    model = home / "models" / "smollm2-135m-instruct"
    parser = argparse.ArgumentParser(description="Do what the Dockerfile does, without docker.")
    parser.add_argument("--only", choices=IMAGES, action="append", help="this image alone, and no start; repeatable")
    parser.add_argument("--folder", type=Path, help="where; a temporary one that is removed if unset")
    parser.add_argument("--draft", type=Path, default=model, help="the draft's model folder")
    parser.add_argument("--target", type=Path, default=model, help="the target's")
    parser.add_argument("--torch-index", default="", help="where torch's CPU wheels are; pip's own setting if unset")
    options = parser.parse_args(arguments)
    dockerfile = read(TORCH_INDEX=options.torch_index)
    with ExitStack() as exit_stack:
        folder = options.folder or Path(exit_stack.enter_context(tempfile.TemporaryDirectory(prefix="presift-images-")))
        trees = {image: folder / image for image in options.only or IMAGES}
        for image, tree in trees.items():
            print(f"== {image}", flush=True)
            if not (tree / "done").exists():
                shutil.rmtree(tree, ignore_errors=True)
                tree.mkdir(parents=True)
                build(dockerfile, image, tree)
                (tree / "done").touch()
            print(f"   /opt/presift: {_mebibytes(tree / 'opt/presift'):,.0f} MiB", flush=True)
        if not options.only:
            print(f"== the stack, {shlex.quote(str(options.draft))} drafting for {shlex.quote(str(options.target))}")
            try_stack(dockerfile, trees, options.draft, options.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
