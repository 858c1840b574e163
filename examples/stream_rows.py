"""Keys arrive in blocks of any size; the sketch knows at every moment which of them can matter."""

import numpy as np

import lev

rng = np.random.default_rng(0)
sketch = lev.Sketch(dim=32, epsilon=0.05)
for step in range(200):
    block = rng.standard_normal((500, 32)).astype(np.float32)
    if step == 120:
        block[17] = 40 * rng.standard_normal(32)  # one key that a query can single out
    sketch.update(block)

found = sketch.universal_set()
print(found)
print("indices", found.indices, "can receive at most", found.scores)
print(f"any of the other {sketch.count - len(found):,} keys can receive at most {found.omitted:.4f}")

assert found.indices.tolist() == [120 * 500 + 17]
