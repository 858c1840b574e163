"""A language model's keys one after another: the cache that every later query can be answered from.

The first rows come as one prefill, some token by token, each with a query that sees its own prefix, the rest in chunks.
With matplotlib it draws the size of the cache against the position, for three thresholds.
"""

import numpy as np

import lev
from lev.demo import sample
from lev.readers import open_rows

EPSILONS, PREFILL, DECODED = (0.1, 0.05, 0.02), 160, 240

with sample() as path:
    keys = np.concatenate(list(open_rows(path, tensor="key")))
n, dim = keys.shape

sizes = {}
for epsilon in EPSILONS:
    sketch, heavy = lev.CausalSketch(dim, epsilon), 0
    sketch.update(keys[:PREFILL])
    for position in range(PREFILL, DECODED):
        prefix = keys[: position + 1].astype(np.float64)
        query = np.linalg.solve(prefix.T @ prefix, prefix[-1])[None]  # the query that the newest key gains most from
        hits = sketch.attend(keys[position : position + 1], query)
        assert np.array_equal(hits.indices, lev.heavy_entries(query, prefix, epsilon).indices)
        heavy += hits.nnz
    for first in range(DECODED, n, 300):
        sketch.update(keys[first : first + 300])
    assert heavy

    lives = sketch.lifetimes()
    sizes[epsilon] = size = lives.mask(np.arange(n)).sum(axis=1)
    print(
        f"epsilon {epsilon}: {len(lives)} of {n} keys were ever members, at most {size.max()} at a time, {size[-1]} now"
    )
    print(f"  {heavy} heavy entries of {DECODED - PREFILL} queries over their own prefixes, as brute force finds them")
    assert size.max() <= dim / epsilon

try:
    import matplotlib
except ImportError:
    print("not drawn: needs matplotlib, pip install lev-attention[plot]")
else:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    axes.plot([1, n], [1, n], color="0.7", label="all keys")
    for epsilon, size in sizes.items():
        (line,) = axes.plot(np.arange(1, n + 1), size, label=f"cache for ε = {epsilon:g}")
        axes.axhline(dim / epsilon, color=line.get_color(), linestyle=":", linewidth=1)
    axes.plot([], [], "k:", linewidth=1, label="d / ε")
    axes.set(xlabel="position", ylabel="keys in the cache", xlim=(0, n), ylim=(0, 1.1 * dim / min(EPSILONS)))
    axes.set_title("Causal cache over the keys of one head of a language model", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig("causal_decode.png", dpi=120)
    print("wrote causal_decode.png")
