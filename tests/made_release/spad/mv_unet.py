"""A UNet of one level with the release's arguments and names of weights."""

import math

import torch
import torch.nn.functional as F
import xformers.ops
from torch import nn


class ResBlock(nn.Module):
    def __init__(self, channels, out_channels, emb_channels):
        super().__init__()
        conv = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.in_layers = nn.Sequential(nn.GroupNorm(32, channels), nn.SiLU(), conv)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels))
        conv = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        nn.init.zeros_(conv.weight)
        norm = nn.GroupNorm(32, out_channels)
        self.out_layers = nn.Sequential(norm, nn.SiLU(), nn.Identity(), conv)
        is_same = channels == out_channels
        self.skip_connection = nn.Identity() if is_same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x, emb):
        h = self.in_layers(x) + self.emb_layers(emb)[..., None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Attention(nn.Module):
    def __init__(self, width, context, heads):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x, context, mask=None):
        def heads_first(y):
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2).flatten(0, 1)

        bias = None
        if mask is not None:
            bias = torch.zeros(mask.shape).masked_fill_(~mask, -1e9)
            bias = bias.repeat_interleave(self.heads, 0)
        out = xformers.ops.memory_efficient_attention(
            *map(heads_first, (self.to_q(x), self.to_k(context), self.to_v(context))),
            attn_bias=bias,
            op=None,
        )
        return self.to_out(out.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2))


class Gated(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)

    def forward(self, x):
        x, gate = self.proj(x).chunk(2, -1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(Gated(width), nn.Identity(), nn.Linear(4 * width, width))


class Block(nn.Module):
    def __init__(self, width, context, heads):
        super().__init__()
        self.attn1, self.attn2 = Attention(width, width, heads), Attention(width, context, heads)
        self.ff = FeedForward(width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x, text, mask, views):
        joined = x.unflatten(0, (-1, views)).flatten(1, 2)
        normed = self.norm1(joined)
        x = (joined + self.attn1(normed, normed, mask)).unflatten(1, (views, -1)).flatten(0, 1)
        x = x + self.attn2(self.norm2(x), text)
        return x + self.ff.net(self.norm3(x))


class Transformer(nn.Module):
    def __init__(self, width, context, heads):
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.proj_in, self.proj_out = nn.Conv2d(width + 6, width, 1), nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([Block(width, context, heads)])

    def forward(self, x, text, mask, plucker, views):
        h = self.proj_in(torch.cat([self.norm(x), plucker], 1))
        tokens = h.flatten(2).transpose(1, 2)
        tokens = self.transformer_blocks[0](tokens, text, mask, views)
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, h.shape[2:]))


class SPADUnetModel(nn.Module):
    def __init__(self, in_channels, out_channels, model_channels, num_heads, context_dim, **rest):
        super().__init__()
        width, wide = model_channels, 4 * model_channels
        self.width = width
        self.time_embed = nn.Sequential(nn.Linear(width, wide), nn.SiLU(), nn.Linear(wide, wide))

        def block(channels):
            return [ResBlock(channels, width, wide), Transformer(width, context_dim, num_heads)]

        first = nn.Conv2d(in_channels, width, 3, padding=1)
        self.input_blocks = nn.ModuleList([nn.ModuleList([first]), nn.ModuleList(block(width))])
        self.middle_block = nn.ModuleList([*block(width), ResBlock(width, width, wide)])
        self.output_blocks = nn.ModuleList([nn.ModuleList(block(2 * width)) for _ in range(2)])
        last = nn.Conv2d(width, out_channels, 3, padding=1)
        self.out = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), last)

    def forward(self, x, timesteps, context):
        text, camera, mask = context
        views = x.shape[1]
        x, plucker = x[:, :, :4].flatten(0, 1), x[:, :, 4:].flatten(0, 1)
        rates = torch.exp(-math.log(10000) * torch.arange(self.width // 2) / (self.width // 2))
        angles = timesteps.flatten()[:, None] * rates
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], -1)) + camera.flatten(0, 1)
        rest = (text.flatten(0, 1), mask, plucker, views)
        first = self.input_blocks[0][0](x)
        residual, transformer = self.input_blocks[1]
        second = transformer(residual(first, emb), *rest)
        residual, transformer, last = self.middle_block
        h = last(transformer(residual(second, emb), *rest), emb)
        for (residual, transformer), skip in zip(self.output_blocks, (second, first), strict=True):
            h = transformer(residual(torch.cat([h, skip], 1), emb), *rest)
        return self.out(h).unflatten(0, (-1, views))
