"""Which (query, key) pairs are heavy, without looking at all keys: exact entries from the universal set alone."""

import numpy as np

import lev

rng = np.random.default_rng(1)
keys = rng.standard_normal((100_000, 24))
keys[::5000] *= 100
queries = np.vstack([rng.standard_normal((50, 24)), keys[::5000]])

sketch = lev.Sketch(24, epsilon=0.02).update(keys)
found = sketch.heavy_hitters(queries)
print(f"{found.nnz} heavy entries of {len(queries)} queries, found from {sketch.retained} of {sketch.count:,} keys")

brute = lev.heavy_entries(queries, keys, 0.02)
assert np.array_equal(found.indices, brute.indices)
np.testing.assert_allclose(found.data, brute.data, rtol=1e-9)
