"""A cache that decides for each new key, at once and for ever, whether to keep it and its value."""

import numpy as np

import lev

rng = np.random.default_rng(2)
keys, values = rng.standard_normal((3000, 8)), rng.standard_normal((3000, 4))
keys[::250] *= 12

sketch = lev.Sketch(8, epsilon=0.05, start=0)
cache = {}
for position in range(0, len(keys), 50):
    block = slice(position, position + 50)
    for i in np.flatnonzero(sketch.admit(keys[block])):
        cache[position + int(i)] = values[position + int(i)]

print(f"kept {len(cache)} of {len(keys)} values; {sketch.retained} keys can still receive 5 %")
assert set(sketch.universal_set().indices.tolist()) <= set(cache)
assert len(cache) < len(keys) / 10
