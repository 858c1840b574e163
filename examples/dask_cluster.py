"""Two Dask processes sketch an array in chunks; one tree of merges gives the sketch of it all."""

import sys

import numpy as np

import lev

try:
    import dask.array as da
    from distributed import Client, LocalCluster
except ImportError:
    print("needs dask: pip install lev-attention[dask]")
    sys.exit(0)

from lev.cluster import dask as cluster


def main() -> None:
    keys = np.random.default_rng(0).standard_normal((40_000, 16))
    keys[::8000] *= 30
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**options) as local, Client(local):
        sketch = cluster.sketch(da.from_array(keys, chunks=(5000, 16)), 0.02)
    found = sketch.universal_set()
    print(found, found.indices)
    assert found.indices.tolist() == lev.universal_set(keys, 0.02).indices.tolist()


if __name__ == "__main__":
    main()
