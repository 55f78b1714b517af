"""Trains the demo's model and packs its data: the script that made `onnxcomp/demo/assets`.

Needs torch, and Fashion-MNIST (Zalando, MIT/Expat licence) as its four idx files, for instance from
Debian's package dataset-fashion-mnist:

    python benchmarks/train_demo.py /usr/share/datasets/fashion-mnist onnxcomp/demo/assets

The network is a small ResNet. It is exported with its batch normalisations left in place, as many
exporters do, so that the demo has something to simplify.
"""

from __future__ import annotations

import argparse
import gzip
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

EPOCHS = 4
BATCH = 128
CALIBRATION, EVALUATION = 128, 1000


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(x + self.second(self.first(x)))


def down(before: int, after: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


def network() -> nn.Module:
    return nn.Sequential(
        down(1, 20, 1), Block(20), down(20, 40, 2), Block(40), down(40, 80, 2), Block(80),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(80, 10),
    )  # fmt: skip


def read(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns images as float32 [N, 1, 28, 28] in 0..1, and labels."""
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    return pixels.astype(np.float32) / 255, labels


def augmented(images: torch.Tensor) -> torch.Tensor:
    """Mirrors half of the images and moves the batch by up to two pixels."""
    flip = torch.rand(len(images), 1, 1, 1) < 0.5
    images = torch.where(flip, images.flip(3), images)
    dy, dx = (int(torch.randint(-2, 3, ())) for _ in range(2))
    return torch.roll(images, (dy, dx), (2, 3))


def train(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> None:
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    steps = EPOCHS * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(x))
        for start in range(0, len(x) // BATCH * BATCH, BATCH):
            picked = order[start : start + BATCH]
            loss = functional.cross_entropy(
                model(augmented(x[picked])), y[picked], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}", flush=True)


def accuracy(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    with torch.no_grad():
        scores = [model(torch.from_numpy(part)) for part in np.array_split(images, 20)]
    return float((torch.cat(scores).argmax(1).numpy() == labels).mean())


def export(model: nn.Module, path: Path) -> None:
    torch.onnx.export(
        model,
        (torch.zeros(1, 1, 28, 28),),
        str(path),
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        opset_version=17,
        input_names=["image"],
        output_names=["scores"],
        dynamic_axes={"image": {0: "batch"}, "scores": {0: "batch"}},
    )


def pack(path: Path, **arrays: np.ndarray) -> None:
    """Writes an npz with LZMA, which halves images that are stored as floats; dates are fixed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", (2026, 1, 1, 0, 0, 0))
            archive.writestr(entry, buffer.getvalue(), zipfile.ZIP_LZMA)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with the idx files of Fashion-MNIST")
    parser.add_argument(
        "output", type=Path, help="folder for model.onnx, calibration.npz, evaluation.npz"
    )
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model: Any = network()
    images, labels = read(arguments.data, "train")
    train(model, images, labels)
    model.eval()
    test_images, test_labels = read(arguments.data, "t10k")
    print(f"accuracy on all test images: {accuracy(model, test_images, test_labels):.4f}")
    export(model, arguments.output / "model.onnx")
    picked = np.random.default_rng(0).permutation(len(images))[:CALIBRATION]
    pack(arguments.output / "calibration.npz", image=images[picked, None])
    pack(
        arguments.output / "evaluation.npz",
        image=test_images[:EVALUATION, None],
        label_class=test_labels[:EVALUATION],
    )


if __name__ == "__main__":
    main()
