"""Sketches of the ranks of a torch.distributed group: every rank ends with the sketch of all their rows.

On the wire go the bytes of sketches as uint8 tensors; reading them can fail, but not run anything.
Theory: 03, one pass and merging.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, TypeVar

import numpy as np

from lev import store
from lev.device import DeviceSketch
from lev.sketch import Sketch, merge

Kind = TypeVar("Kind", Sketch, DeviceSketch)


def all_merge(sketch: Kind, group: Any = None, *, timeout: float | None = None, rounds: int = 1) -> Kind:
    """Return on every rank of ``group`` the sketch of the rows of all ranks, the same bits on each.

    Called by every rank with a sketch of its own rows, all of one kind; give each its own ``start``.  With s
    ranks, D = dim and r the rank, a rank receives at most about

    ``rounds=1``: s (2 D^2 + D r / epsilon) words: every sketch goes to everyone, which is best when most rows
    kept are members of the whole as well;
    ``rounds=2``: s 2 D^2 + D r / epsilon words: first the forms alone, then only rows that reach epsilon over
    all ranks.

    ``timeout`` (seconds, by default that of the group) bounds each exchange: a peer that is late or dead makes
    every other rank raise RuntimeError (torch.distributed.DistError) instead of waiting for ever.
    Guarantee: that of :func:`lev.merge`; ``sketch`` stays as it is.  Works on gloo (CPU) and nccl (GPU) groups.  A
    :class:`lev.device.DeviceSketch` travels as its twin on the CPU and comes back to the device of its keys; a rank
    to which no key came cannot know that device, and raises.
    Raises TypeError and ValueError as :meth:`lev.Sketch.merge` does, on every rank.

    >>> import numpy as np, torch.distributed as dist
    >>> from lev import Sketch
    >>> from lev.cluster.torch_distributed import all_merge
    >>> dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())  # torchrun does it for many
    >>> all_merge(Sketch(2, 0.5).update(np.eye(2))).universal_set().indices
    array([0, 1])
    >>> dist.destroy_process_group()
    """
    if isinstance(sketch, DeviceSketch):
        whole = all_merge(sketch.to_host(), group, timeout=timeout, rounds=rounds)
        return DeviceSketch.of(whole, sketch, fast=sketch.fast)
    if not isinstance(sketch, Sketch):
        raise TypeError(f"sketch must be a Sketch; got {type(sketch).__name__}")
    if rounds not in (1, 2):
        raise ValueError(f"rounds must be 1 or 2; got {rounds!r}")
    if rounds == 1:
        return merge(map(Sketch.from_bytes, _exchange(sketch.to_bytes(), group, timeout)))
    own = sketch.to_bytes()
    bare = _exchange(_without_rows(own), group, timeout)
    rank = _distributed().get_rank(group)
    whole = merge(sketch if i == rank else Sketch.from_bytes(data) for i, data in enumerate(bare))
    sets = whole.universal_set() if whole.heads else [whole.universal_set()]
    rows = _rows(own, [np.asarray(heavy.indices, np.int64) for heavy in sets])
    kept = _exchange(store.pack({"dropped": [heavy.omitted for heavy in sets]}, rows), group, timeout)
    return merge(Sketch.from_bytes(_joined(form, part)) for form, part in zip(bare, kept, strict=True))


def _distributed() -> Any:
    import torch.distributed

    return torch.distributed


def _rows(data: bytes, ids: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors of those kept rows of a sketch that have one of ``ids``, given for each head."""
    tensors = store.unpack(data)[1]
    chosen: dict[str, np.ndarray] = {}
    for head, wanted in enumerate(ids):
        which = np.isin(tensors[f"{head}.ids"], wanted)
        names = [name for name in (f"{head}.{kind}" for kind in store.ROWS) if name in tensors]
        chosen |= {name: tensors[name][which] for name in names}
    return chosen


def _without_rows(data: bytes) -> bytes:
    """Return the sketch with its forms alone."""
    fields, tensors = store.unpack(data)
    return store.pack(fields, tensors | _rows(data, [np.zeros(0, np.int64)] * len(fields["streams"])))


def _joined(form: bytes, kept: bytes) -> bytes:
    """Return the sketch of forms and of rows that were sent apart; what was not sent is bounded over all ranks."""
    fields, tensors = store.unpack(form)
    found, rows = store.unpack(kept)
    for stream, dropped in zip(fields["streams"], found["dropped"], strict=True):
        stream["dropped"] = max(stream["dropped"], dropped)
    return store.pack(fields, tensors | rows)


def _exchange(data: bytes, group: Any, timeout: float | None) -> list[bytes]:
    """Return the bytes of every rank, in the order of ranks."""
    import torch

    distributed = _distributed()
    limit = None if timeout is None else timedelta(seconds=timeout)
    nccl = distributed.get_backend(group) == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
    ranks = distributed.get_world_size(group)
    if not nccl:
        # names the ranks that do not come, where a gather would only say that something is late
        distributed.monitored_barrier(group, timeout=limit, wait_all_ranks=True)

    def gathered(tensor: Any) -> list[Any]:
        found = [torch.empty_like(tensor) for _ in range(ranks)]
        work = distributed.all_gather(found, tensor, group=group, async_op=True)
        work.wait() if limit is None else work.wait(limit)
        return found

    sizes = [int(size) for size in gathered(torch.tensor([len(data)], dtype=torch.int64, device=device))]
    padded = np.zeros(max(sizes), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    parts = gathered(torch.from_numpy(padded).to(device))
    return [part[:size].cpu().numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]
