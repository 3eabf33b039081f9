"""Where several pytest workers share the tests, those of one file run in one worker, in order."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = ("tests/unit/core/test_digest.py", "tests/unit/core/test_stop_strings.py")


def test_the_tests_of_a_file_stay_in_one_worker():
    options = ["-n", "2", "--dist", "loadgroup", "--no-loadscope-reorder", "-v", "--hypothesis-profile=fast"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *FILES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    ran = re.findall(r"^\[(gw\d)\] .* PASSED (\S+?)::", done.stdout, re.MULTILINE)
    workers = {file: {worker for worker, of in ran if of == file} for file in FILES}
    assert all(len([of for _, of in ran if of == file]) > 1 for file in FILES), workers
    assert all(len(each) == 1 for each in workers.values()), workers
