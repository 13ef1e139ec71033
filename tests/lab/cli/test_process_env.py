import subprocess
import sys

import pytest

CODE = """
import os, resource
from vidlab.lab.cli.process_env import prepare_host
prepare_host()
assert os.environ["GOMP_SPINCOUNT"] == "6000"
import torch
start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    x = torch.ones(64 * 2**20 // 4)
    del x
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_freed_memory_is_used_again():
    """64 MiB are 16,384 pages; after a few blocks that size no new page is touched, where each block touched all."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 10 * 16384
