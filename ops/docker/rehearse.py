"""Build the images and run the compose stack without a docker engine and a registry, with buildah and podman.

    apt-get install --no-install-recommends podman buildah runc catatonit netavark aardvark-dns iptables mmdebstrap
    python ops/docker/rehearse.py --models FOLDER --draft NAME --target NAME [--tls] [--observability] [--drafts 2] ...

Run it as root on Debian. Docker Compose (.venv/tools) reads the compose files and controls podman through its Docker
API, in a separate network namespace, isolated from this machine's network. Base images are substitutes: Debian's Python
3.11.2 for Python's slim image 3.11.14 (redis-py needs one more package before 3.11.3, which is added), and Debian's
Redis 7 for Valkey. Prometheus, the only service of the observability layer that is started, is Debian's too. This
script runs the health checks, because podman needs systemd for that.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
IMAGES = ("models", "orchestrator", "draft", "target")
PYTHON = "docker.io/library/python:3.11.14-slim-bookworm"
VALKEY, PROMETHEUS = "docker.io/valkey/valkey:9.1.0-alpine", "docker.io/prom/prometheus:v3.5.0"
BASE, TLS, OBSERVABILITY = "compose.yaml", "ops/compose.tls.yaml", "ops/compose.observability.yaml"
STARTED = ("cache", "keys", "draft", "target", "orchestrator")
_CONTAINERFILES = {
    PYTHON: "FROM scratch\nADD base.tar /\nRUN ln -s /usr/bin/python3.11 /usr/local/bin/python3\n"
    "ENV PYTHONPATH=/usr/lib/python3/dist-packages PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n",
    VALKEY: f"FROM {PYTHON}\nRUN apt-get update -q && apt-get install -qy --no-install-recommends redis-server "
    "&& ln -s redis-cli /usr/bin/valkey-cli\nCOPY valkey-server /usr/bin/\n",
    PROMETHEUS: f"FROM {PYTHON}\nRUN apt-get update -q && apt-get install -qy --no-install-recommends prometheus wget "
    '&& install -d -o 10001 /prometheus\nUSER 10001\nENTRYPOINT ["/usr/bin/prometheus"]\n',
}
# Drops the option that Redis 7 does not know.
REDIS_AS_VALKEY = """#!/bin/sh
for each; do
    shift
    if [ "$each" = --tls-auto-reload-interval ]; then
        left_out=yes
    elif [ -n "$left_out" ]; then
        left_out=
    else
        set -- "$@" "$each"
    fi
done
exec redis-server "$@"
"""
# runc accepts any cgroups; limits above this process's own would need more rights.
_CONTAINERS_CONF = """[containers]
default_ulimits = ["nofile=4096:4096", "nproc=8192:8192"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[network]
network_backend = "netavark"
"""
_UP_S = 1800.0


class Engine:
    """buildah, podman and Compose with one folder for images, containers and volumes."""

    def __init__(self, folder: Path, tools: Path) -> None:
        self.folder, self._tools = folder, tools
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "containers.conf").write_text(_CONTAINERS_CONF)
        self._store = ["--root", f"{folder}/root", "--runroot", f"{folder}/run"]
        own = {"CONTAINERS_CONF": f"{folder}/containers.conf", "DISABLE_HC_SYSTEMD": "true"}
        self.environment = {**os.environ, **own, "DOCKER_HOST": f"unix://{folder}/podman.sock"}
        self._service: subprocess.Popen[bytes] | None = None

    def build(self, name: str, file: Path, context: Path, *flags: str) -> None:
        """Raises CalledProcessError."""
        # This machine's settings of pip and certificates, so that the build reaches the same index.
        mounts = [path for path in ("/etc/ssl/certs", "/etc/pip.conf", *flags_of_pip()) if Path(path).exists()]
        volumes = [flag for path in mounts for flag in ("-v", f"{path}:{path}:ro")]
        command = ["buildah", *self._store, "bud", "--format", "docker", "--isolation", "chroot", "--network", "host"]
        command += ["--layers", "--pull-never", *volumes, *flags, "-t", name, "-f", str(file), str(context)]
        subprocess.run(command, env=self.environment, check=True)

    def has(self, name: str) -> bool:
        return self.podman("image", "exists", name).returncode == 0

    def podman(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["podman", *self._store, "--tmpdir", f"{self.folder}/tmp", *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)

    def serve(self) -> None:
        """Start the Docker API in a separate network namespace."""
        socket = self.folder / "podman.sock"
        podman = ["podman", *self._store, "--tmpdir", f"{self.folder}/tmp", "system", "service", "--time", "0"]
        script = 'ip link set lo up; exec "$@"'
        command = ["unshare", "--net", "sh", "-c", script, "sh", *podman, f"unix://{socket}"]
        self._service = subprocess.Popen(command, env=self.environment, stderr=subprocess.DEVNULL)
        while not socket.exists():
            time.sleep(0.1)

    def inside(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of this machine in that network namespace."""
        assert self._service is not None
        entered = ["nsenter", "--target", str(self._service.pid), "--net", *command]
        return subprocess.run(entered, env=self.environment | environment, capture_output=True, text=True, check=False)

    def compose(self, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        command = [str(self._tools / "docker-compose"), *arguments]
        return subprocess.run(
            command, cwd=REPOSITORY, env=self.environment, text=True, timeout=_UP_S, check=False, **options
        )  # type: ignore[call-overload, no-any-return]

    def close(self) -> None:
        if self._service is not None:
            self._service.terminate()
            self._service.wait()
            (self.folder / "podman.sock").unlink(missing_ok=True)


def build_all(engine: Engine, observability: bool) -> None:
    """Build the images; existing ones are reused, except for layers that changed."""
    if not (engine.folder / "base.tar").exists():
        wanted = [
            "mmdebstrap",
            "--variant=minbase",
            "--include=python3,python3-venv,python3-async-timeout,ca-certificates",
            "bookworm",
        ]
        subprocess.run([*wanted, str(engine.folder / "base.tar")], check=True)
    (engine.folder / "valkey-server").write_text(REDIS_AS_VALKEY)
    (engine.folder / "valkey-server").chmod(0o755)
    for name, text in _CONTAINERFILES.items():
        if not engine.has(name) and (name != PROMETHEUS or observability):
            (engine.folder / "Containerfile").write_text(text)
            engine.build(name, engine.folder / "Containerfile", engine.folder)
    version = env_file()["PRESIFT_VERSION"]
    here = [flag for links in flags_of_pip() for flag in ("--env", f"PIP_FIND_LINKS={links}")]
    given = ["--build-arg", f"PYTHON_IMAGE={PYTHON}", "--build-arg", f"BASE={PYTHON}", "--build-arg", "TORCH_INDEX="]
    for image in IMAGES:
        print(f"== building {image}", flush=True)
        target = ["--target", image, *given, *here]
        engine.build(f"presift-{image}:{version}", REPOSITORY / "ops/docker/Dockerfile", REPOSITORY, *target)
        size = engine.podman("image", "inspect", f"presift-{image}:{version}", "--format", "{{.Size}}").stdout
        print(f"   {int(size) / 1e6:,.0f} MB", flush=True)


def flags_of_pip() -> list[str]:
    """The folders of wheels in this machine's settings of pip."""
    return [each for each in os.environ.get("PIP_FIND_LINKS", "").split() if each.startswith("/")]


def env_file() -> dict[str, str]:
    lines = (REPOSITORY / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def keep_asking(engine: Engine, stopped: threading.Event) -> None:
    """Run each container's health check every second."""
    while not stopped.wait(1.0):
        for name in engine.podman("ps", "--format", "{{.Names}}").stdout.split():
            engine.podman("healthcheck", "run", name)


def try_stack(engine: Engine, files: Sequence[str], scales: Sequence[str]) -> None:
    """Start the stack, inspect it, send requests, stop it. Raises SystemExit for the first failure."""
    layers = [flag for file in files for flag in ("-f", file)]
    observers = ["prometheus"] if OBSERVABILITY in files else []
    certificates = ["certificates"] if TLS in files else []
    stopped = threading.Event()
    asking = threading.Thread(target=keep_asking, args=(engine, stopped))
    asking.start()
    try:
        print("== docker compose up", flush=True)
        up = ["up", "--detach", "--no-build", "--pull", "never"]
        done = engine.compose(*layers, *up, *scales, *STARTED, *certificates, *observers)
        if done.returncode != 0:
            engine.compose(*layers, "logs", "--tail", "40")
            raise SystemExit("the stack did not come up")
        _wait_healthy(engine)
        _look(engine)
        key = engine.compose(*layers, "run", "--rm", "-T", "keys", "show", capture_output=True).stdout.strip()
        flags = _caller_files(engine, layers) if certificates else []
        for place in ("gRPC", "HTTP"):
            print(f"   {place}: {_tls_reply(engine, place, key, flags)}", flush=True)
        if observers:
            print(f"   Prometheus: {_targets(engine)}", flush=True)
    finally:
        stopped.set()
        asking.join()
        print("== docker compose down", flush=True)
        engine.compose(*layers, "--profile", "cpu", "down", "--volumes", "--timeout", "45")


def _containers(engine: Engine) -> list[tuple[dict[str, Any], str]]:
    """(all that podman knows, health; "none" where nothing asks for it) of those that run."""
    names = engine.podman("ps", "--format", "{{.Names}}").stdout.split()
    known = json.loads(engine.podman("inspect", *names).stdout)
    return [(each, (each["State"].get("Health") or {}).get("Status") or "none") for each in known]


def _wait_healthy(engine: Engine) -> None:
    """Compose waits only for services that others depend on."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and any(health != "healthy" for _, health in _containers(engine)):
        time.sleep(1)


def _look(engine: Engine) -> None:
    for found, health in _containers(engine):
        host = found["HostConfig"]
        user = engine.podman("exec", found["Name"], "id", "-u").stdout.strip()
        limit = f"{host['Memory'] / 2**20:,.0f} MiB at most"
        print(
            f"   {found['Name']}: {health}, user {user}, root read-only {host['ReadonlyRootfs']}, {limit}", flush=True
        )
        if not host["ReadonlyRootfs"] or user == "0" or health not in ("healthy", "none"):
            raise SystemExit("this differs from compose.yaml")


def _caller_files(engine: Engine, layers: Sequence[str]) -> list[str]:
    folder = engine.folder / "caller"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    export = ["run", "--rm", "-T", "certificates", "export"]
    command = [str(engine._tools / "docker-compose"), *layers, *export]
    tar = subprocess.run(command, cwd=REPOSITORY, env=engine.environment, stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["tar", "x", "-C", str(folder)], input=tar, check=True)
    return [str(folder / name) for name in ("ca.pem", "cert.pem", "key.pem")]


_GRPC = """
import sys
from presift_client import Client, TlsOptions, Unauthenticated
key, *files = sys.argv[1:]
tls = TlsOptions(*files) if files else None
text = "The harbour is closed on Mondays. " * 40 + "When is the harbour closed?"
try:
    Client("localhost:50051", tls=tls).generate(text)
    sys.exit("a call without a key was accepted")
except Unauthenticated:
    pass
with Client("localhost:50051", tls=tls, api_key=key) as client:
    answer = client.generate(text, route="spec_pc", compress_above_tokens=64, max_prompt_tokens=128, max_new_tokens=8)
    again = client.generate(text, route="spec_pc", compress_above_tokens=64, max_prompt_tokens=128, max_new_tokens=8)
    replicas = [f"{each.role} {each.address}" for each in client.info().replicas]
said = answer.decision
if again.decision.cache != "hit":
    sys.exit(f"the second of two equal prompts was a cache {again.decision.cache}")
print(said.route, said.reason, said.kept_tokens, "of", said.prompt_tokens, said.cache, again.decision.cache, *replicas)
"""
_HTTP = """
import sys, ssl, httpx
key, *files = sys.argv[1:]
verify, scheme = True, "http"
if files:
    verify, scheme = ssl.create_default_context(cafile=files[0]), "https"
    verify.load_cert_chain(files[1], files[2])
with httpx.Client(base_url=f"{scheme}://localhost:8000/v1", verify=verify, timeout=300) as client:
    assert client.get("/models").status_code == 401
    headers = {"authorization": f"Bearer {key}"}
    model = client.get("/models", headers=headers).json()["data"][0]["id"]
    body = {"model": model, "messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 4}
    print(model, client.post("/chat/completions", headers=headers, json=body).json()["usage"])
"""


def _tls_reply(engine: Engine, place: str, key: str, files: Sequence[str]) -> str:
    path = os.pathsep.join([str(REPOSITORY / "services"), str(REPOSITORY / "clients" / "python")])
    script = _GRPC if place == "gRPC" else _HTTP
    done = engine.inside(sys.executable, "-c", script, key, *files, PYTHONPATH=path)
    if done.returncode != 0:
        raise SystemExit(f"no answer over {place}: {done.stderr[-2000:]}")
    return done.stdout.strip()


def _targets(engine: Engine) -> str:
    url, deadline = "http://localhost:9090/api/v1/targets", time.monotonic() + 90
    while True:
        text = engine.inside("curl", "-s", url).stdout
        found = json.loads(text)["data"]["activeTargets"] if text else []
        if found and all(each["health"] == "up" for each in found):
            return ", ".join(sorted(f"{each['labels']['job']} {each['labels']['instance']}" for each in found))
        if time.monotonic() > deadline:
            raise SystemExit(
                f"not all targets are scraped: {[(each['scrapeUrl'], each['lastError']) for each in found]}"
            )
        time.sleep(3)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 if the stack started and answered over gRPC and HTTP."""
    parser = argparse.ArgumentParser(description="Build the images and run the compose stack with buildah and podman.")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/presift-rehearsal"), help="of images, volumes, ...")
    parser.add_argument("--tools", type=Path, default=REPOSITORY / ".venv/tools/bin", help="folder of docker-compose")
    parser.add_argument("--models", type=Path, required=True, help="a folder of model folders")
    parser.add_argument("--draft", required=True, help="the draft's folder in --models")
    parser.add_argument("--target", required=True, help="the target's folder in --models")
    parser.add_argument("--drafts", type=int, default=1)
    parser.add_argument("--targets", type=int, default=1)
    parser.add_argument("--tls", action="store_true", help="with ops/compose.tls.yaml")
    parser.add_argument("--observability", action="store_true", help="with ops/compose.observability.yaml")
    parser.add_argument("--no-build", action="store_true", help="use existing images")
    options = parser.parse_args(arguments)
    engine = Engine(options.folder, options.tools)
    engine.environment |= {"VALKEY_IMAGE": VALKEY, "PROMETHEUS_IMAGE": PROMETHEUS, "MODELS": str(options.models)}
    engine.environment |= {"DRAFT_MODEL": options.draft, "TARGET_MODEL": options.target}
    if not options.no_build:
        build_all(engine, options.observability)
    files = [BASE, *([TLS] if options.tls else []), *([OBSERVABILITY] if options.observability else [])]
    engine.serve()
    try:
        scales = [f"--scale=draft={options.drafts}", f"--scale=target={options.targets}"]
        try_stack(engine, files, scales)
    finally:
        engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
