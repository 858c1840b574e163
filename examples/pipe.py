"""A producer pipes rows into `lev scan -`; neither ever holds the stream."""

import json
import subprocess
import sys

PRODUCER = """
import sys
import numpy as np

rng = np.random.default_rng(0)
for step in range(100):
    block = rng.standard_normal((1000, 16), dtype=np.float32)
    if step == 60:
        block[7] *= 50
    sys.stdout.buffer.write(block.astype("<f4").tobytes())
"""

producer = subprocess.Popen([sys.executable, "-c", PRODUCER], stdout=subprocess.PIPE)
scan = [sys.executable, "-m", "lev", "scan", "-", "--dim", "16", "--epsilon", "0.05", "--json"]
done = subprocess.run(scan, stdin=producer.stdout, capture_output=True, text=True, check=True)
report = json.loads(done.stdout)
print(done.stdout)

assert producer.wait() == 0
assert report["count"] == 100_000
assert report["indices"] == [60_007]
