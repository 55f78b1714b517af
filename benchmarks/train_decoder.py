"""Trains a small decoder on the source of Python's standard library, and packs it with data and a score.

No package on the index was found that ships a decoder-only transformer with open weights and text to judge it on,
so this makes one that everybody can make again. Needs torch:

    python benchmarks/train_decoder.py bundles/decoder

A transformer over bytes: 4 layers, width 384 (7 million weights), causal attention. The score is bits per
byte on modules that it was not trained on. Every eighth module is held out.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

HEADS, LAYERS, CONTEXT = 4, 4, 128
CALIBRATION, EVALUATION = 64, 128
METRIC = '''"""Bits per byte of held-out source, negative so that more is better."""

import numpy as np


def score(outputs, ev):
    nats, count, same, signal, noise = 0.0, 0, 0, 0.0, 0.0
    for i, found in enumerate(outputs):
        scores = np.asarray(found["scores"], np.float64)[0]
        targets = ev["label_next"][i]
        scores -= scores.max(-1, keepdims=True)
        logs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
        nats -= logs[np.arange(len(targets)), targets].sum()
        count += len(targets)
        same += (scores.argmax(-1) == ev["label_choice"][i]).sum()
    return {"minus_bits_per_byte": -nats / count / np.log(2), "agreement": same / count}
'''


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.size = width // HEADS

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        normed = self.first(x)
        shape = (x.shape[0], x.shape[1], HEADS, self.size)
        q, k, v = (
            f(normed).view(shape).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        weights = (q @ k.transpose(2, 3) * self.size**-0.5 + mask).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(x.shape))
        return x + self.down(functional.gelu(self.up(self.second(x))))


class Decoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        self.register_buffer("mask", torch.full((CONTEXT, CONTEXT), -1e4).triu(1))

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        size = text.shape[1]
        x = self.bytes(text) + self.places.weight[:size]
        mask: Any = self.mask
        for block in self.blocks:
            x = block(x, mask[:size, :size])
        found: torch.Tensor = self.head(self.norm(x))
        return found


def source() -> tuple[np.ndarray, np.ndarray]:
    """Bytes to train on, and bytes of modules that are held out."""
    library = Path(sysconfig.get_paths()["stdlib"])
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for index, path in enumerate(sorted(library.glob("*.py"))):
        parts[index % 8 == 7].append(path.read_bytes())
    train, held = (np.frombuffer(b"".join(part), np.uint8).astype(np.int64) for part in parts)
    return train, held


def windows(text: np.ndarray, count: int, rng: np.random.Generator) -> torch.Tensor:
    starts = rng.integers(0, len(text) - CONTEXT - 1, count)
    return torch.from_numpy(np.stack([text[s : s + CONTEXT + 1] for s in starts]))


def train(model: Decoder, text: np.ndarray, steps: int, batch: int) -> None:
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.5e-3, total_steps=steps)
    for step in range(steps):
        part = windows(text, batch, rng)
        scores = model(part[:, :-1]).reshape(-1, 256)
        loss = functional.cross_entropy(scores, part[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 24:
            print(f"step {step + 1}: {loss.item() / np.log(2):.3f} bits per byte", flush=True)


def pack(model: Decoder, train_text: np.ndarray, held: np.ndarray, folder: Path) -> None:
    rng = np.random.default_rng(1)
    seen, judged = windows(train_text, CALIBRATION, rng), windows(held, EVALUATION, rng)
    with torch.no_grad():
        choice = torch.cat([model(part[None, :-1]).argmax(-1) for part in judged])
    np.savez_compressed(folder / "calib.npz", text=seen[:, None, :-1].numpy())
    np.savez_compressed(
        folder / "eval.npz",
        text=judged[:, None, :-1].numpy(),
        label_next=judged[:, 1:].numpy(),
        label_choice=choice.numpy(),
    )
    (folder / "metric.py").write_text(METRIC)
    facts = {"primary": "minus_bits_per_byte", "latency": {"batch": 1}}
    (folder / "bundle.json").write_text(json.dumps(facts, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("output", type=Path, help="folder for the model, its data and its score")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=16)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = Decoder(arguments.width)
    text, held = source()
    print(f"{len(text):,} bytes to train on, {len(held):,} held out", flush=True)
    train(model, text, arguments.steps, arguments.batch)
    model.eval()
    torch.onnx.export(
        model,
        (torch.zeros(1, CONTEXT, dtype=torch.int64),),
        str(arguments.output / "model.onnx"),
        dynamo=False,
        opset_version=17,
        input_names=["text"],
        output_names=["scores"],
        dynamic_axes={"text": {1: "length"}, "scores": {1: "length"}},
    )
    pack(model, text, held, arguments.output)


if __name__ == "__main__":
    main()
