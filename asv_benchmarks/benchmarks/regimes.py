"""Streams that are hard in different ways, each with a threshold at which its universal set is not all of it."""

from importlib.resources import files
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from .common import EPSILON, make_keys

SHARED = Path(__file__).parents[3] / "shared" / "data"
"""Keys of other trained models, beside a checkout where there is one."""
RARE = 8  # directions that only a few keys have


def samples(shared):
    """Yield (name, keys): one head of the shipped sample and, where there is a folder, of each other model."""
    yield "SmolLM2, layer 14", load_file(str(files("lev") / "data" / "smollm2_layer14_head0.safetensors"))["key"]
    if shared is not None and shared.is_dir():
        yield "DINOv2, layer 9", load_file(shared / "dinov2_astronaut.safetensors")["layer9.key"][0]
        yield "MiniLM, layer 2", load_file(shared / "minilm_pydoc_stream.safetensors")["key"]


def rare(n, d, rng, count=48):
    """Return Gaussian keys; ``count`` of them, in random places, are 0.3 times as long, in their own directions."""
    keys = rng.standard_normal((n, d))
    keys[:, -RARE:] = 0
    places = rng.choice(n, count, replace=False)
    keys[places] = 0
    keys[places, -RARE:] = rng.standard_normal((count, RARE))
    keys[places] *= 0.3 * np.sqrt(d) / np.linalg.norm(keys[places], axis=1, keepdims=True)
    return keys @ _turn(d, rng)


def student(n, d, freedom, rng):
    """Return rows of a multivariate Student-t distribution."""
    return rng.standard_normal((n, d)) / np.sqrt(rng.chisquare(freedom, (n, 1)) / freedom)


def duplicates(n, d, rng, copies=16):
    """Return ``copies`` of one key in each direction, spread over the stream, that hold nine tenths of its energy."""
    keys = rng.standard_normal((n, d)) * np.sqrt(copies / (9 * n))
    keys[rng.choice(n, copies * d, replace=False)] = np.repeat(np.eye(d), copies, axis=0)
    return keys @ _bent(d, 30, rng)


def drift(n, d, rng, phases=8):
    """Return keys that turn and double from phase to phase; 4 short keys of each have a direction never seen again."""
    parts = []
    for phase, rows in enumerate(np.array_split(np.zeros((n, d)), phases)):
        rows[:, :-RARE] = rng.standard_normal((len(rows), d - RARE)) @ _bent(d - RARE, 100, rng)
        places = rng.choice(len(rows), 4, replace=False)
        rows[places] = 0
        rows[places, phase - RARE] = 0.3 * np.linalg.norm(rows, axis=1).mean()
        parts.append(rows * 2.0**phase)
    return np.concatenate(parts) @ _turn(d, rng)


def regimes(n, d, shared=SHARED):
    """Yield (name, keys, epsilon); keys are float32 (n, d) unless the name says otherwise, real ones are tiled to n."""
    rng = np.random.default_rng(1)
    few = rare(n, d, rng)
    mean = 10 * np.sqrt(d) * _turn(d, rng)[0]
    wide = student(n, d, 2, rng) @ _bent(d, 1e6, rng)
    yield "random", make_keys(n, d, 1), 1.5 * d / n
    for name, keys in (
        ("rare, short", few),
        ("rare + mean", few + mean),
        ("Student-t, 1", student(n, d, 1, rng)),
        ("Student-t, 2", student(n, d, 2, rng)),
        ("duplicates", duplicates(n, d, rng)),
        ("drift", drift(n, d, rng)),
        ("cond 1e6", wide),
    ):
        yield name, keys.astype(np.float32), EPSILON
    yield "float16", few.astype(np.float16), EPSILON
    for name, keys in samples(shared):
        yield name, np.resize(keys.astype(np.float32), (n, keys.shape[1])), 2 * keys.shape[1] / n


def oracle(keys):
    """Return leverage scores by Householder QR in float64; long rows first, so that short ones keep their digits."""
    rows = keys.astype(np.float64)
    order = np.argsort(-np.linalg.norm(rows, axis=1), kind="stable")
    scores = np.empty(len(rows))
    scores[order] = np.square(np.linalg.qr(rows[order])[0]).sum(axis=1)
    return scores


def _turn(d, rng):
    """Return a random rotation."""
    return np.linalg.qr(rng.standard_normal((d, d)))[0]


def _bent(d, condition, rng):
    """Return a random matrix with a log-spaced spectrum from 1 down to 1 / condition."""
    return _turn(d, rng) * np.logspace(0, -np.log10(condition), d) @ _turn(d, rng)
