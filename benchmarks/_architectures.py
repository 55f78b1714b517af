"""Small networks of the families that pruning has to understand, as torch modules.

Every builder takes the share of its channels that it keeps, which gives two things: the network to
prune, and the same network as somebody would have written it with half of the channels, which is what
an ideal pruner makes of it. Channels that a normalization runs over have a share of their own.

Needs torch; `bench_prune.py` runs it in the interpreter that has it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

IMAGE = (1, 3, 32, 32)
HEADS = 4


@dataclass(frozen=True)
class Share:
    """How much of its channels a network has: those within, and those that are normalized together."""

    inner: float = 1.0
    stream: float = 1.0

    def __call__(self, channels: int) -> int:
        return int(channels * self.inner)

    def through(self, channels: int) -> int:
        return int(channels * self.stream)


@dataclass
class Family:
    """A network, something to run it on, and what a careful user tells a pruner about it.

    Attributes:
        module: The network.
        example: One input.
        final: Layers whose channels are the outputs.
        heads: Layers whose channels are heads, with their number.
        stream: Layers whose channels a normalization runs over.
        free: Parameters outside of layers, with the axis of their channels.
        folded: Whether an exporter may fold BatchNormalization.
    """

    module: nn.Module
    example: Tensor
    final: list[nn.Module]
    heads: dict[nn.Module, int] = field(default_factory=dict)
    stream: list[nn.Module] = field(default_factory=list)
    free: list[tuple[nn.Parameter, int]] = field(default_factory=list)
    folded: bool = True


def conv(source: int, out: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(source, out, size, stride, size // 2, groups=groups)


def normed(
    source: int, out: int, size: int = 3, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    layers = [
        nn.Conv2d(source, out, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
    ]
    return nn.Sequential(*layers, *[nn.ReLU()] * act)


class Classifier(nn.Module):
    """Features, their average, and a linear layer."""

    def __init__(self, features: nn.Module, channels: int, act: bool = False) -> None:
        super().__init__()
        self.features, self.act = features, act
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        return self.head((functional.relu(y) if self.act else y).mean((2, 3)))


def _classified(features: nn.Module, channels: int, **options: bool) -> Family:
    module = Classifier(features, channels)
    return Family(module, torch.randn(IMAGE), [module.head], **options)


# ---------------------------------------------------------------- convolutions


def plain(share: Share) -> Family:
    a, b, c = share(32), share(64), share(128)
    layers = [conv(3, a), nn.ReLU(), conv(a, b, stride=2), nn.ReLU(), conv(b, c), nn.ReLU()]
    return _classified(nn.Sequential(*layers), c)


def unfused_bn(share: Share) -> Family:
    a, b, c = share(32), share(64), share(128)
    layers = [normed(3, a), normed(a, b, stride=2), nn.BatchNorm2d(b), conv(b, c), nn.ReLU()]
    return _classified(nn.Sequential(*layers), c, folded=False)


class Residual(nn.Module):
    def __init__(self, source: int, out: int, middle: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.first = normed(source, middle, 1 if groups > 1 else 3, stride)
        self.grouped = normed(middle, middle, groups=groups) if groups > 1 else nn.Identity()
        self.last = normed(middle, out, act=False)
        same = source == out and stride == 1
        self.skip = nn.Identity() if same else normed(source, out, 1, stride, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.last(self.grouped(self.first(x))) + self.skip(x))


def resnet(share: Share) -> Family:
    a, b = share(32), share(64)
    blocks = [Residual(a, a, a), Residual(a, a, a), Residual(a, b, b, 2), Residual(b, b, b)]
    return _classified(nn.Sequential(normed(3, a), *blocks), b)


def grouped(share: Share) -> Family:
    a, b = share(64), share(32)
    blocks = [Residual(a, a, b, groups=4), Residual(a, a, b, groups=4)]
    return _classified(nn.Sequential(normed(3, a), *blocks), a)


def depthwise(share: Share) -> Family:
    a, b, c = share(32), share(64), share(128)
    layers = [
        *(normed(3, a, stride=2), normed(a, a, groups=a), normed(a, b, 1)),
        *(normed(b, b, stride=2, groups=b), normed(b, c, 1)),
    ]
    return _classified(nn.Sequential(*layers), c)


class Inverted(nn.Module):
    def __init__(self, source: int, out: int, middle: int, stride: int = 1) -> None:
        super().__init__()
        self.expand = normed(source, middle, 1, act=False)
        self.spread = normed(middle, middle, 3, stride, middle, act=False)
        self.project = normed(middle, out, 1, act=False)
        self.same = source == out and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self.spread(functional.relu6(self.expand(x))))
        return x + self.project(y) if self.same else self.project(y)


def inverted_residuals(share: Share) -> Family:
    a, b, c, d = share(16), share(24), share(96), share(128)
    blocks = [Inverted(a, b, c, 2), Inverted(b, b, c), Inverted(b, a, c), Inverted(a, a, c)]
    return _classified(nn.Sequential(normed(3, a), *blocks, normed(a, d, 1)), d)


class Dense(nn.Module):
    def __init__(self, source: int, growth: int, middle: int) -> None:
        super().__init__()
        self.norm, self.reduce = nn.BatchNorm2d(source), nn.Conv2d(source, middle, 1, bias=False)
        self.second, self.grow = nn.BatchNorm2d(middle), nn.Conv2d(middle, growth, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.reduce(functional.relu(self.norm(x)))
        return torch.cat([x, self.grow(functional.relu(self.second(y)))], 1)


def densenet(share: Share) -> Family:
    a, growth, middle = share(32), share(16), share(64)
    blocks: list[nn.Module] = [conv(3, a)]
    for count in (3, 3):
        for _ in range(count):
            blocks.append(Dense(a, growth, middle))
            a += growth
        blocks += [nn.BatchNorm2d(a), nn.ReLU(), nn.Conv2d(a, a // 2, 1), nn.AvgPool2d(2)]
        a //= 2
    return _classified(nn.Sequential(*blocks), a)


def _shuffled(x: Tensor, groups: int = 2) -> Tensor:
    batch, _, height, width = x.shape
    y = x.view(batch, groups, -1, height, width).transpose(1, 2)
    return y.reshape(batch, -1, height, width)


class Shuffle(nn.Module):
    def __init__(self, half: int) -> None:
        super().__init__()
        layers = [normed(half, half, 1), normed(half, half, groups=half, act=False)]
        self.right = nn.Sequential(*layers, normed(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        return _shuffled(torch.cat([left, self.right(right)], 1))


class ShuffleDown(nn.Module):
    def __init__(self, source: int, half: int) -> None:
        super().__init__()
        self.left = nn.Sequential(
            normed(source, source, 3, 2, source, act=False), normed(source, half, 1)
        )
        self.right = nn.Sequential(
            *(normed(source, half, 1), normed(half, half, 3, 2, half, act=False)),
            normed(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return _shuffled(torch.cat([self.left(x), self.right(x)], 1))


def shufflenet(share: Share) -> Family:
    a, b, c = share(24), share(32), share(128)
    units = [ShuffleDown(a, b), Shuffle(b), Shuffle(b), ShuffleDown(2 * b, 2 * b), Shuffle(2 * b)]
    return _classified(nn.Sequential(normed(3, a), *units, normed(4 * b, c, 1)), c)


class UNet(nn.Module):
    def __init__(self, a: int, b: int, c: int) -> None:
        super().__init__()
        self.one, self.two, self.three = normed(3, a), normed(a, b), normed(b, c)
        self.up_two, self.up_one = nn.ConvTranspose2d(c, b, 2, 2), nn.ConvTranspose2d(b, a, 2, 2)
        self.back_two, self.back_one = normed(2 * b, b), normed(2 * a, a)
        self.head = nn.Conv2d(a, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        two = self.two(functional.max_pool2d(one, 2))
        three = self.three(functional.max_pool2d(two, 2))
        two = self.back_two(torch.cat([two, self.up_two(three)], 1))
        return self.head(self.back_one(torch.cat([one, self.up_one(two)], 1)))


def unet(share: Share) -> Family:
    module = UNet(share(16), share(32), share(64))
    return Family(module, torch.randn(IMAGE), [module.head])


class C2f(nn.Module):
    def __init__(self, source: int, out: int, half: int, blocks: int) -> None:
        super().__init__()
        self.first, self.last = normed(source, 2 * half, 1), normed((2 + blocks) * half, out, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(normed(half, half), normed(half, half)) for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]))
        return self.last(torch.cat(parts, 1))


def c2f(share: Share) -> Family:
    a, b = share(32), share(64)
    layers = [normed(3, a, stride=2), C2f(a, a, a // 2, 2), normed(a, b, stride=2)]
    return _classified(nn.Sequential(*layers, C2f(b, b, b // 2, 2)), b)


class Excite(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.up(functional.relu(self.down(y))))


def squeeze_excite(share: Share) -> Family:
    a, b = share(32), share(64)
    layers = [normed(3, a), Excite(a, a // 4), normed(a, b, stride=2), Excite(b, b // 4)]
    return _classified(nn.Sequential(*layers, normed(b, b)), b)


class Inception(nn.Module):
    def __init__(self, source: int, one: int, three: int, five: int, pooled: int) -> None:
        super().__init__()
        self.one = normed(source, one, 1)
        self.three = nn.Sequential(normed(source, three // 2, 1), normed(three // 2, three))
        self.five = nn.Sequential(normed(source, five // 2, 1), normed(five // 2, five, 5))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), normed(source, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], 1)


def inception(share: Share) -> Family:
    a, b, c, d = share(32), share(64), share(16), share(16)
    total = a + b + c + d
    blocks = [Inception(a, a, b, c, d), nn.MaxPool2d(2), Inception(total, a, b, c, d)]
    return _classified(nn.Sequential(normed(3, a), *blocks), total)


class Vgg(nn.Module):
    def __init__(self, a: int, b: int, c: int) -> None:
        super().__init__()
        layers = [conv(3, a), nn.ReLU(), conv(a, a), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [conv(a, b), nn.ReLU(), conv(b, b), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.hidden, self.head = nn.Linear(b * 64, c), nn.Linear(c, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.relu(self.hidden(self.features(x).flatten(1))))


def vgg_flatten(share: Share) -> Family:
    module = Vgg(share(16), share(32), share(64))
    return Family(module, torch.randn(IMAGE), [module.head])


class GroupNormed(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.first, self.norm = conv(3, channels), nn.GroupNorm(groups, channels)
        self.second = conv(channels, channels)
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm(self.first(x)))
        return self.head(functional.relu(self.second(y)).mean((2, 3)))


def group_norm(share: Share) -> Family:
    """The normalized layer counts as stream; what it feeds is within."""
    module = GroupNormed(64, 8)
    normalized, within = share.through(64), share(64)
    module.first, module.norm = conv(3, normalized), nn.GroupNorm(8, normalized)
    module.second, module.head = conv(normalized, within), nn.Linear(within, 10)
    return Family(module, torch.randn(IMAGE), [module.head], stream=[module.first])


# ---------------------------------------------------------------- recurrent layers


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module, width: int, embedded: int) -> None:
        super().__init__()
        self.before, self.layer, self.head = nn.Linear(12, embedded), layer, nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.layer(functional.relu(self.before(x)))
        return self.head(states)


def _recurrent(kind: type[nn.RNNBase], share: Share, layers: int, both: bool) -> Family:
    embedded, hidden = share(32), share(48)
    layer = kind(embedded, hidden, layers, batch_first=True, bidirectional=both)
    module = Recurrent(layer, hidden * (1 + both), embedded)
    return Family(module, torch.randn(1, 16, 12), [module.head])


def lstm(share: Share) -> Family:
    return _recurrent(nn.LSTM, share, 1, False)


def gru(share: Share) -> Family:
    return _recurrent(nn.GRU, share, 1, False)


def stacked_lstm(share: Share) -> Family:
    return _recurrent(nn.LSTM, share, 3, False)


def bidirectional_lstm(share: Share) -> Family:
    return _recurrent(nn.LSTM, share, 1, True)


def stacked_bidirectional_lstm(share: Share) -> Family:
    return _recurrent(nn.LSTM, share, 2, True)


def bidirectional_gru(share: Share) -> Family:
    return _recurrent(nn.GRU, share, 2, True)


# ---------------------------------------------------------------- attention


class Attention(nn.Module):
    """Attention with a layer each for queries, keys and values."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, inner) for _ in range(3))
        self.out = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        layers = (self.query, self.key, self.value)
        q, k, v = (f(x).view(batch, length, HEADS, -1).transpose(1, 2) for f in layers)
        weights = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, -1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, length, -1))


class RawAttention(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.before, self.attention = nn.Linear(24, width), Attention(width, inner)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.before(x))
        return self.head(y + self.attention(y))


def raw_attention(share: Share) -> Family:
    module = RawAttention(share(64), share(64))
    attention = module.attention
    heads = dict.fromkeys((attention.query, attention.key, attention.value), HEADS)
    return Family(module, torch.randn(1, 16, 24), [module.head], heads=heads)


class FusedAttention(nn.Module):
    """Attention with one layer for queries, keys and values, and torch's own operator."""

    def __init__(self, width: int, inner: int, causal: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.causal = (
            nn.Linear(width, 3 * inner),
            nn.Linear(inner, width),
            causal,
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        parts = self.qkv(x).chunk(3, -1)
        q, k, v = (part.reshape(batch, length, HEADS, -1).transpose(1, 2) for part in parts)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(batch, length, -1))


class Block(nn.Module):
    def __init__(self, width: int, inner: int, hidden: int, causal: bool, split: bool) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, inner) if split else FusedAttention(width, inner, causal)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        return x + self.down(functional.gelu(self.up(self.second(x))))

    def heads(self) -> dict[nn.Module, int]:
        a = self.attention
        layers = [a.qkv] if isinstance(a, FusedAttention) else [a.query, a.key, a.value]
        return dict.fromkeys(layers, HEADS)


class Vit(nn.Module):
    def __init__(self, width: int, inner: int, hidden: int, split: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        self.places = nn.Parameter(torch.randn(1, 17, width) * 0.1)
        self.blocks = nn.Sequential(*(Block(width, inner, hidden, False, split) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(y.shape[0], -1, -1), y], 1) + self.places
        return self.head(self.norm(self.blocks(y))[:, 0])


def _vit(share: Share, split: bool) -> Family:
    module = Vit(share.through(64), share(64), share(128), split)
    blocks = [block for block in module.blocks if isinstance(block, Block)]
    return Family(
        module,
        torch.randn(IMAGE),
        [module.head],
        heads={layer: count for block in blocks for layer, count in block.heads().items()},
        stream=[module.patches, *(block.attention.out for block in blocks)],
        free=[(module.token, 2), (module.places, 2)],
    )


def vit(share: Share) -> Family:
    return _vit(share, split=True)


def vit_fused_qkv(share: Share) -> Family:
    return _vit(share, split=False)


class Decoder(nn.Module):
    def __init__(self, width: int, inner: int, hidden: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(100, width), nn.Embedding(16, width)
        self.blocks = nn.Sequential(*(Block(width, inner, hidden, True, False) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 100, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.words(tokens) + self.places(places))))


def decoder(share: Share) -> Family:
    module = Decoder(share.through(64), share(64), share(256))
    blocks = [block for block in module.blocks if isinstance(block, Block)]
    return Family(
        module,
        torch.randint(0, 100, (1, 16)),
        [module.head],
        heads={layer: count for block in blocks for layer, count in block.heads().items()},
        stream=[module.words, module.places, *(block.attention.out for block in blocks)],
    )


class Gated(nn.Module):
    """The gated layers that language models have in place of two plain ones."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.before = nn.Linear(24, width)
        self.gate, self.up = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.down, self.head = nn.Linear(hidden, width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.before(x))
        return self.head(y + self.down(functional.silu(self.gate(y)) * self.up(y)))


def gated(share: Share) -> Family:
    module = Gated(share(64), share(160))
    return Family(module, torch.randn(1, 16, 24), [module.head])


FAMILIES: dict[str, Callable[[Share], Family]] = {
    builder.__name__: builder
    for builder in (
        *(plain, unfused_bn, resnet, grouped, depthwise, inverted_residuals, densenet, shufflenet),
        *(unet, c2f, squeeze_excite, inception, vgg_flatten, group_norm),
        *(lstm, gru, stacked_lstm, bidirectional_lstm, stacked_bidirectional_lstm),
        *(bidirectional_gru, raw_attention, vit, vit_fused_qkv, decoder, gated),
    )
}


def build(name: str, share: Share) -> Family:
    """A family with seeded weights, ready to be exported."""
    torch.manual_seed(0)
    family = FAMILIES[name](share)
    for layer in family.module.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None:
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
            nn.init.normal_(layer.running_mean, std=0.2)
    family.module.eval()
    return family
