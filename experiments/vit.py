"""A small vision transformer on MNIST in 2x2 patches: 196 patches and one class token are 197 keys of size 64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

HEAD = 64
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # (B, H, n, d) queries, keys, values -> (B, H, n, d)


@dataclass(frozen=True)
class Scale:
    """How much is trained; the same for every method."""

    layers: int
    heads: int
    images: int  # of the training set
    epochs: int
    batch: int
    tested: int  # images of the test set
    seeds: int
    rate: float = 3e-3

    @property
    def steps(self) -> int:
        return self.images // self.batch * self.epochs

    def settings(self) -> dict[str, Any]:
        return asdict(self)


SCALES = {
    "smoke": Scale(layers=1, heads=1, images=256, epochs=1, batch=32, tested=16, seeds=1),
    "cpu": Scale(layers=2, heads=1, images=8000, epochs=2, batch=25, tested=2000, seeds=3),
    "gpu": Scale(layers=6, heads=3, images=60_000, epochs=20, batch=200, tested=10_000, seeds=5, rate=1e-3),
}


class Attention(nn.Module):
    """Self-attention whose middle, ``attend``, can be changed after training."""

    def __init__(self, heads: int, attend: Attend) -> None:
        super().__init__()
        self.heads, self.attend = heads, attend
        self.qkv = nn.Linear(heads * HEAD, 3 * heads * HEAD)
        self.out = nn.Linear(heads * HEAD, heads * HEAD)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, HEAD)).permute(2, 0, 3, 1, 4)
        return self.out(self.attend(query, key, value).transpose(1, 2).flatten(-2))


class Block(nn.Module):
    def __init__(self, heads: int, attend: Attend) -> None:
        super().__init__()
        width = heads * HEAD
        self.before, self.attention = nn.LayerNorm(width), Attention(heads, attend)
        wide = [nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)]
        self.mlp = nn.Sequential(*wide)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        return x + self.mlp(x)


class ViT(nn.Module):
    """Patches, learned positions, blocks, and a class token that is read at the end."""

    def __init__(self, scale: Scale, attend: Attend) -> None:
        super().__init__()
        width = scale.heads * HEAD
        self.embed = nn.Linear(4, width)
        self.start = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(waves(width))
        self.blocks = nn.Sequential(*(Block(scale.heads, attend) for _ in range(scale.layers)))
        self.read = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, images: Tensor) -> Tensor:
        patches = images.unflatten(1, (14, 2)).unflatten(3, (14, 2)).transpose(2, 3).reshape(-1, 196, 4)
        x = torch.cat([self.start.expand(len(images), -1, -1), self.embed(patches)], 1) + self.place
        return self.read(self.blocks(x)[:, 0])

    def use(self, attend: Attend) -> ViT:
        """Change the attention of every block, and return the model."""
        for block in self.blocks:
            block.attention.attend = attend
        return self


def waves(width: int) -> Tensor:
    """Return where each patch is as sines and cosines of both coordinates, zero for the class token, to start from."""
    y, x = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij")
    rates = torch.exp(torch.linspace(math.log(math.pi / 14), math.log(math.pi / 2), width // 4))
    angles = torch.cat([part.reshape(-1, 1) * rates for part in (x, y)], 1)
    return 0.5 * torch.cat([torch.zeros(1, width), torch.cat([angles.sin(), angles.cos()], 1)])[None]


@dataclass(frozen=True)
class Data:
    images: Tensor  # (n, 28, 28), mean 0, deviation 1
    labels: Tensor

    @classmethod
    def load(cls, folder: Path, part: str, number: int, device: str) -> Data:
        with np.load(folder / "mnist.npz") as file:
            images, labels = file[f"{part}_images"][:number], file[f"{part}_labels"][:number]
        scaled = (torch.from_numpy(images).float() / 255 - 0.1307) / 0.3081
        return cls(scaled.to(device), torch.from_numpy(labels.astype(np.int64)).to(device))

    def first(self, number: int) -> Data:
        return Data(self.images[:number], self.labels[:number])

    def batches(self, size: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = np.random.default_rng([seed, epoch]).permutation(len(self.labels))
        for start in range(0, len(order) - size + 1, size):
            rows = torch.from_numpy(order[start : start + size])
            yield self.images[rows], self.labels[rows]


@torch.inference_mode()
def accuracy(model: ViT, data: Data, batch: int = 100) -> float:
    """Return the share of images that are classified correctly."""
    model.eval()
    right = sum(
        int((model(images).argmax(1) == labels).sum())
        for images, labels in zip(data.images.split(batch), data.labels.split(batch), strict=True)
    )
    return right / len(data.labels)


class Training:
    """One run that can be stopped at a step, copied, and gone on with under another attention."""

    def __init__(self, scale: Scale, data: Data, seed: int, attend: Attend) -> None:
        torch.manual_seed(seed)
        self.scale, self.data, self.seed, self.step = scale, data, seed, 0
        self.model = ViT(scale, attend).to(data.images.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=scale.rate, weight_decay=0.05)
        warm, total = max(scale.steps // 10, 1), scale.steps
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / total))
        )

    def state(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}
        return {name: clone(part.state_dict()) for name, part in parts.items()} | {"step": self.step}

    def load(self, state: dict[str, Any]) -> Training:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(clone(state["optimizer"]))
        self.schedule.load_state_dict(state["schedule"])
        self.step = state["step"]
        return self

    def run(self, until: int) -> Training:
        """Train up to step ``until`` and return itself."""
        self.model.train()
        an_epoch = self.scale.images // self.scale.batch
        while self.step < until:
            epoch, done = divmod(self.step, an_epoch)
            for i, (images, labels) in enumerate(self.data.batches(self.scale.batch, self.seed, epoch)):
                if i >= done and self.step < until:
                    self._take(images, labels)
        return self

    def _take(self, images: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(self.model(images), labels).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1


def clone(state: Any) -> Any:
    """Return a copy of a state in which no tensor is shared."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {name: clone(part) for name, part in state.items()}
    return [clone(part) for part in state] if isinstance(state, list) else state
