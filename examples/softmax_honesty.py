"""Softmax attention is not |<q,k>|^2 attention: how much of its mass each choice of 64 keys holds, on real keys."""

from importlib.resources import files

import numpy as np
from safetensors.numpy import load_file

import lev

M = 64
sample = load_file(str(files("lev") / "data" / "smollm2_layer14_head0.safetensors"))
keys, at = sample["key"].astype(np.float64), sample["query_position"]
logits = sample["query"].astype(np.float64) @ keys.T / 8
logits[:, np.arange(len(keys)) > at[:, None]] = -np.inf  # causal
mass = np.exp(logits - logits.max(axis=2, keepdims=True))
mass /= mass.sum(axis=2, keepdims=True)

centred = lev.Sketch(64, 1e-6, intercept=True).update(keys).universal_set().scores
rankings = {
    "leverage": lev.leverage_scores(keys),
    "centred leverage": centred,
    "largest norm": np.linalg.norm(keys, axis=1),
    "random": np.random.default_rng(0).random(len(keys)),
    "best one set": mass.sum(axis=(0, 1)),
}
share = {name: mass[..., np.argsort(-score)[:M]].sum(axis=2).mean() for name, score in rankings.items()}
recent = (np.arange(len(keys)) > at[:, None] - (M - 4)) | (np.arange(len(keys)) < 4)
share["4 sinks + 60 recent"] = np.where(recent, mass, 0).sum(axis=2).mean()
share["best set of each query"] = np.sort(mass, axis=2)[..., -M:].sum(axis=2).mean()
for name, value in share.items():
    print(f"{name:24s} {value:.3f}")

assert share["leverage"] < share["4 sinks + 60 recent"] < share["best set of each query"]
