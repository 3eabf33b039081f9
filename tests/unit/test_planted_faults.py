"""The planted faults fit the tree: `make faults` runs them all, this only finds those that a change left behind."""

from pathlib import Path

import pytest

from ..faults.planted_faults import FAULTS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_its_text_occurs_once_and_its_tests_exist(fault):
    assert (ROOT / fault.file).read_text().count(fault.old) == 1
    for test in fault.tests:
        path, _, name = test.partition("::")
        assert f"def {name.partition('[')[0].rpartition('::')[2]}(" in (ROOT / path).read_text()
