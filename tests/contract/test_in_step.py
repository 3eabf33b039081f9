"""Compose, images, Kubernetes, Prometheus, `presift up` and the settings say the same; a fault in one of them shows."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from pydantic.fields import FieldInfo

from . import stack_sources
from .in_step_rules import RULES
from .stack_sources import ROOT, SETTINGS, read

READ = (
    *("compose.yaml", ".env", "pyproject.toml", "ops/compose.observability.yaml", "ops/compose.tls.yaml"),
    *("ops/docker", "ops/k8s", "ops/prometheus", "ops/telemetry", "ops/grafana/dashboards"),
)


def faults(house):
    return [fault for rule in RULES for fault in rule(house)]


@pytest.fixture(scope="module")
def house():
    return read()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_all_say_the_same(house, rule):
    assert list(rule(house)) == []


@pytest.fixture
def copy(tmp_path):
    """A copy of all that is read, to plant faults in."""
    for name in READ:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name)
        else:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


PLANTED = yaml.safe_load(Path(__file__).with_name("in_step_faults.yaml").read_text())


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: f"{plant[0]}: {plant[2]}"[:60])
def test_what_is_changed_in_one_place_alone_is_told(house, copy, plant):
    file, old, new, told = plant
    path = copy / file
    text = path.read_text()
    assert old in text, "the plant has nothing to grow from"
    path.write_text(text.replace(old, new))
    found = faults(read(copy, None if file.startswith("ops/k8s") else house.overlays))
    assert any(told in fault for fault in found), found


def test_a_setting_that_moves_is_told(house):
    """Its default port, or its name: the files know the old one."""

    class Moved(SETTINGS["draft"]):
        listen: str = "127.0.0.1:50062"

    told = faults(replace(house, settings=SETTINGS | {"draft": Moved}))
    assert any("draft listens on 0.0.0.0:50052, its settings say port 50062" in fault for fault in told)

    class Renamed(SETTINGS["target"]):
        pass

    fields: dict[str, FieldInfo] = dict(Renamed.model_fields)
    fields["folder"] = fields.pop("model")
    Renamed.__pydantic_fields__ = fields
    told = faults(replace(house, settings=SETTINGS | {"target": Renamed}))
    assert any("target has no setting model" in fault for fault in told)
    assert any("`presift up` gives target --model" in fault for fault in told)


def test_a_service_that_up_starts_alone_is_told(house):
    more = [*house.launched, stack_sources.Launched("judge", "presift.judge", [], {})]
    assert any("`presift up` starts" in fault for fault in faults(replace(house, launched=more)))
