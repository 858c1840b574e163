"""Four ranks sketch their own rows; all end with the sketch of everything.  Words on the wire, one round and two.

Run it with torchrun --nproc-per-node 4 examples/torchrun_merge.py, or by itself: it then calls torchrun.
"""

import os
import subprocess
import sys

import numpy as np

import lev
from lev.cluster import torch_distributed as cluster

N, DIM, EPSILON = 40_000, 16, 0.002


def main() -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    first, last = N * rank // ranks, N * (rank + 1) // ranks
    keys = np.random.default_rng(0).standard_normal((N, DIM))
    keys[::4000] *= 30
    sketch = lev.Sketch(DIM, EPSILON, start=first).update(keys[first:last])

    one = cluster.all_merge(sketch, timeout=60)
    two = cluster.all_merge(sketch, timeout=60, rounds=2)
    wanted = lev.universal_set(keys, EPSILON).indices
    assert len(wanted)
    assert np.array_equal(one.universal_set().indices, wanted)
    assert np.array_equal(two.universal_set().indices, wanted)
    if rank == 0:
        print(f"{ranks} ranks, {one.count:,} rows, {len(wanted)} members, {sketch.retained} kept by rank 0")
        print(f"bound of one round: {ranks * (2 * DIM**2 + DIM * DIM / EPSILON):,.0f} words to a rank")
        print(f"bound of two rounds: {ranks * 2 * DIM**2 + DIM * DIM / EPSILON:,.0f} words")
    dist.destroy_process_group()


if __name__ == "__main__":
    try:
        import torch  # noqa: F401
    except ImportError:
        print("needs torch: pip install lev-attention[torch]")
        sys.exit(0)
    if "RANK" in os.environ:
        main()
    else:
        run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", __file__]
        sys.exit(subprocess.run(run, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode)
