"""A language model's keys one after another: the cache that every later query can be answered from.

The first rows come as one prefill, some token by token, each with a query that sees its own prefix, the rest in chunks.
With matplotlib it draws the size of the cache against the position.
"""

import numpy as np

import lev
from lev.demo import sample
from lev.readers import open_rows

EPSILON, PREFILL, DECODED, TOKENS = 0.1, 160, 240, 2048

with sample() as path:
    keys = np.concatenate(list(open_rows(path, tensor="key")))[:TOKENS]

sketch, heavy = lev.CausalSketch(keys.shape[1], EPSILON), 0
sketch.update(keys[:PREFILL])
for position in range(PREFILL, DECODED):
    prefix = keys[: position + 1].astype(np.float64)
    query = np.linalg.solve(prefix.T @ prefix, prefix[-1])[None]  # the query that the newest key gains most from
    hits = sketch.attend(keys[position : position + 1], query)
    assert np.array_equal(hits.indices, lev.heavy_entries(query, prefix, EPSILON).indices)
    heavy += hits.nnz
for first in range(DECODED, TOKENS, 300):
    sketch.update(keys[first : first + 300])

lives = sketch.lifetimes()
sizes = lives.mask(np.arange(TOKENS)).sum(axis=1)
print(f"{len(lives)} of {TOKENS} keys were ever members, at most {sizes.max()} at a time, {sizes[-1]} at the end")
print(f"{heavy} heavy entries of {DECODED - PREFILL} queries over their own prefixes, as brute force finds them")
assert heavy
assert sizes.max() <= keys.shape[1] / EPSILON

try:
    import matplotlib
except ImportError:
    print("not drawn: needs matplotlib, pip install lev-attention[plot]")
else:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    axes.plot(np.arange(1, TOKENS + 1), color="0.7", label="all keys")
    axes.plot(sizes, label=f"keys that can receive {EPSILON:g}")
    axes.axhline(keys.shape[1] / EPSILON, color="k", linestyle=":", label="d / ε")
    axes.set(xlabel="position", ylabel="keys in the cache", ylim=(0, 1.15 * keys.shape[1] / EPSILON))
    axes.legend()
    figure.savefig("causal_decode.png", dpi=120)
    print("wrote causal_decode.png")
