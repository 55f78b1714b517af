"""Two transformers of the zoo as torch modules, with the weights of the ONNX models.

onnx2torch turns a MatMul with a constant into something that Torch-Pruning does not know, so it would have
nothing to prune. A user has the torch code. These are checked against the ONNX models before they are used.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import torch
from _common import Feeds, open_session
from torch import Tensor, nn
from torch.nn import functional


@dataclass
class Weights:
    """Weights by the name of what they belong to; those of a MatMul by that of the bias after it."""

    tensors: dict[str, np.ndarray[Any, Any]]
    matrices: dict[str, np.ndarray[Any, Any]]

    @classmethod
    def read(cls, model: Path) -> "Weights":
        graph = onnx.load(str(model)).graph
        tensors = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        products = {
            node.output[0]: tensors[node.input[1]]
            for node in graph.node
            if node.op_type == "MatMul" and node.input[1] in tensors
        }
        matrices = {}
        for node in graph.node:
            if node.op_type == "Add" and len(found := set(node.input) & set(products)) == 1:
                (bias,) = set(node.input) - found
                matrices[bias] = products[found.pop()]
        return cls(tensors, matrices)

    def linear(self, name: str, part: slice = slice(None)) -> nn.Linear:
        """A layer, or some of its outputs."""
        weight, bias = self.matrices[f"{name}.bias"][:, part], self.tensors[f"{name}.bias"][part]
        layer = nn.Linear(*weight.shape)
        layer.weight.data, layer.bias.data = _tensor(weight.T), _tensor(bias)
        return layer

    def norm(self, name: str, epsilon: float) -> nn.LayerNorm:
        layer = nn.LayerNorm(len(self.tensors[f"{name}.weight"]), epsilon)
        layer.weight.data = _tensor(self.tensors[f"{name}.weight"])
        layer.bias.data = _tensor(self.tensors[f"{name}.bias"])
        return layer

    def table(self, name: str) -> nn.Embedding:
        return nn.Embedding.from_pretrained(_tensor(self.tensors[f"{name}.weight"]), freeze=False)


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.array(array, order="C"))


class Block(nn.Module):
    """Attention and two layers, normalized before or after."""

    def __init__(self, heads: int, layers: list[nn.Linear], norms: list[nn.LayerNorm], first: bool):
        super().__init__()
        self.query, self.key, self.value, self.out, self.up, self.down = layers
        self.one, self.two = norms
        self.heads, self.first = heads, first

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, length, _ = x.shape
        layers = (self.query, self.key, self.value)
        q, k, v = (f(x).view(batch, length, self.heads, -1).transpose(1, 2) for f in layers)
        # The factor of the original stays when heads become smaller, as it does in ours.
        scores = q @ k.transpose(2, 3) * self.scale
        weights = torch.softmax(scores if mask is None else scores + mask, -1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, length, -1))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.first:
            x = x + self.attend(self.one(x), mask)
            return x + self.down(functional.gelu(self.up(self.two(x))))
        x = self.one(x + self.attend(x, mask))
        return self.two(x + self.down(functional.gelu(self.up(x))))

    @property
    def scale(self) -> float:
        return self._scale

    def fix_scale(self) -> "Block":
        self._scale = float((self.query.out_features // self.heads) ** -0.5)
        return self


class Bert(nn.Module):
    def __init__(self, weights: Weights, heads: int) -> None:
        super().__init__()
        self.words, self.places, self.types = (
            weights.table(f"bert.embeddings.{name}_embeddings")
            for name in ("word", "position", "token_type")
        )
        self.norm = weights.norm("bert.embeddings.LayerNorm", 1e-12)
        names = (
            *(f"attention.self.{name}" for name in ("query", "key", "value")),
            *("attention.output.dense", "intermediate.dense", "output.dense"),
        )
        norms = ("attention.output.LayerNorm", "output.LayerNorm")
        count = sum(name.endswith("intermediate.dense.bias") for name in weights.tensors)
        at = "bert.encoder.layer.{}.{}".format
        self.blocks = nn.ModuleList(
            Block(
                heads,
                [weights.linear(at(i, name)) for name in names],
                [weights.norm(at(i, name), 1e-12) for name in norms],
                False,
            ).fix_scale()
            for i in range(count)
        )

    def forward(self, words: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        places = torch.arange(words.shape[1], device=words.device)
        x = self.norm(self.words(words) + self.types(types) + self.places(places))
        hidden = (1.0 - mask[:, None, None, :].to(x.dtype)) * -1e9
        for block in self.blocks:
            x = block(x, hidden)
        return x


class Vit(nn.Module):
    def __init__(self, weights: Weights, heads: int) -> None:
        super().__init__()
        kernel = weights.tensors["p.weight"]
        width = len(kernel)
        self.patches = nn.Conv2d(kernel.shape[1], width, kernel.shape[2], kernel.shape[2])
        self.patches.weight.data = _tensor(kernel)
        self.patches.bias.data = _tensor(weights.tensors["p.bias"])
        self.places = nn.Parameter(_tensor(weights.tensors["pos"]))
        parts = [slice(i * width, (i + 1) * width) for i in range(3)]
        count = sum(name.endswith(".q.bias") for name in weights.tensors)
        self.blocks = nn.ModuleList(
            Block(
                heads,
                [
                    *(weights.linear(f"L.{i}.q", part) for part in parts),
                    *(weights.linear(f"L.{i}.{name}") for name in "oab"),
                ],
                [weights.norm(f"L.{i}.{name}", 1e-5) for name in ("n1", "n2")],
                True,
            ).fix_scale()
            for i in range(count)
        )
        self.norm = weights.norm("n", 1e-5)
        self.head = nn.Linear(width, len(weights.tensors["f.bias"]))
        self.head.weight.data = _tensor(weights.tensors["f.weight"])
        self.head.bias.data = _tensor(weights.tensors["f.bias"])

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2) + self.places
        for block in self.blocks:
            y = block(y)
        return self.head(self.norm(y.mean(1)))


@dataclass
class Twin:
    """A module, and what a careful user tells a pruner about it; as `_architectures.Family`."""

    module: nn.Module
    example: tuple[Tensor, ...]
    final: list[nn.Module]
    heads: dict[nn.Module, int]
    stream: list[nn.Module]
    free: list[tuple[nn.Parameter, int]] = field(default_factory=list)


def _heads(module: nn.Module, count: int) -> dict[nn.Module, int]:
    blocks = [block for block in module.modules() if isinstance(block, Block)]
    return {layer: count for b in blocks for layer in (b.query, b.key, b.value)}


def _stream(module: nn.Module) -> list[nn.Module]:
    blocks = [block for block in module.modules() if isinstance(block, Block)]
    return [layer for block in blocks for layer in (block.out, block.down)]


def minilm(weights: Weights, inputs: tuple[Tensor, ...]) -> Twin:
    """What leaves the last normalization is the output, so that its width stays."""
    module = Bert(weights, 12)
    tables = [module.words, module.places, module.types]
    return Twin(module, inputs, [*_stream(module), *tables], _heads(module, 12), [])


def fashion_vit(weights: Weights, inputs: tuple[Tensor, ...]) -> Twin:
    module = Vit(weights, 4)
    stream = [*_stream(module), module.patches]
    free = [(module.places, 2)]
    return Twin(module, inputs, [module.head], _heads(module, 4), stream, free)


TWINS: dict[str, Callable[[Weights, tuple[Tensor, ...]], Twin]] = {
    made.__name__: made for made in (minilm, fashion_vit)
}


def twin(name: str, model: Path, feeds: Feeds) -> Twin:
    """The module of a model, if it computes the same.

    Raises:
        ValueError: It does not.
    """
    session = open_session(model)
    inputs = tuple(torch.from_numpy(np.array(feeds[i.name])) for i in session.get_inputs())
    made = TWINS[name](Weights.read(model), inputs)
    made.module.eval()
    with torch.no_grad():
        found = made.module(*inputs).numpy()
    wanted = session.run(None, feeds)[0]
    if not np.allclose(found, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max()):
        raise ValueError(f"the twin of {name} differs by {np.abs(found - wanted).max():.3g}")
    return made
