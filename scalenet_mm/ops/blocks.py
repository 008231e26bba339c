"""Blocks of mmpretrain's Swin and ViT on the fast paths of ``ops``; the host's forward is the reference."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from mmcv.cnn.bricks.drop import DropPath
from mmcv.cnn.bricks.transformer import FFN, PatchMerging
from mmcv.cnn.bricks.wrappers import Linear
from mmpretrain.models.backbones.swin_transformer import SwinBlock
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from mmpretrain.models.utils.attention import MultiheadAttention, ShiftWindowMSA, WindowMSA
from torch import Tensor, nn

from ..core.adapters import AdaptedLinear
from . import FAST, Ops
from .compile import branch_weights, compiled, filled, signature
from .drop_path import sparse_residual
from .gemm import CACHED, compute_dtype, traced
from .linear import Deployable, FastLinear, inferred, is_hooked, ordinary, remakable
from .window import Layout, attend, attend_any, biases, fastest, from_windows, heads, layout, mask_dtype, to_windows


def store(weight: nn.Parameter, dtype: torch.dtype) -> None:
    """Keeps the Parameter, and with it the ties."""
    if weight.dtype is not dtype:
        weight.data = weight.data.to(dtype)


checkpoint = partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)  # works with DDP


class BlockDropPath(DropPath):
    """A drop path that its block applies, around the whole branch."""

    def forward(self, x: Tensor) -> Tensor:
        return x


DROP_PATHS = (DropPath, BlockDropPath)
APPLIED = (*DROP_PATHS, nn.Identity)  # what a block applies by itself


class FastShiftWindowMSA(Deployable, ShiftWindowMSA):
    """Window attention by index, see ``ops.window``."""

    method = 'auto'

    @staticmethod
    def wanted(ops: Ops) -> bool:
        return ops.window != 'plain'

    def use_ops(self, ops: Ops) -> None:
        self.method, self.deployed = ops.window, False

    def forward(self, query: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        msa = self.w_msa
        if traced() or not self.is_usual():
            return super().forward(query, hw_shape)
        batch, _, channels = query.shape
        dtype, table = compute_dtype(query), msa.relative_position_bias_table
        dropout = msa.attn_drop.p if msa.attn_drop.training else 0.0
        method = self.method
        if method == 'auto':
            needs_grad = torch.is_grad_enabled() and table.requires_grad
            method = fastest(dtype, query.device, needs_grad, dropout)
        at, bias = self.constants(query, hw_shape, mask_dtype(method, dtype, table))
        qkv = msa.qkv(to_windows(query.to(dtype), at))
        qkv = qkv.view(-1, self.window_size**2, 3, msa.num_heads, channels // msa.num_heads)
        out = attend(qkv, bias, at, msa.scale, method, dropout)
        out = from_windows(out.view(-1, channels), at, batch)
        return self.drop(msa.proj_drop(msa.proj(out)))

    def is_usual(self) -> bool:
        """Whether the windows' attention is of the host's own parts, and nobody waits for their calls."""
        msa = self.w_msa
        if type(msa) is not WindowMSA or type(msa.softmax) is not nn.Softmax or type(msa.attn_drop) is not nn.Dropout:
            return False
        return not any(map(is_hooked, (msa, msa.qkv, msa.softmax, msa.attn_drop, msa.proj, msa.proj_drop)))

    def constants(
        self, x: Tensor, hw_shape: tuple[int, int], dtype: torch.dtype, every: bool = False
    ) -> tuple[Layout, Tensor]:
        """Layout, and bias in ``dtype``, for (B, L, C) tokens of maps of this size, see ``ops.window``."""
        window, shift = self.window_size, self.shift_of(hw_shape)
        table, index = self.w_msa.relative_position_bias_table, self.w_msa.relative_position_index
        at = layout(len(x), *map(int, hw_shape), window, shift, x.device)
        return at, biases(table, index, window, shift, dtype, every, self.deployed)

    def shift_of(self, hw_shape: tuple[int, int]) -> int:
        """How far windows are shifted on a map of this size, by the host's rules.

        Raises:
            ValueError: where the host refuses the size.
        """
        short = min(hw_shape)
        if short < self.window_size and not self.pad_small_map:
            raise ValueError(
                f'The map of {tuple(hw_shape)} tokens is smaller than the window ({self.window_size}); '
                'set pad_small_map=True, take a smaller window_size or larger images.'
            )
        return 0 if short == self.window_size and not self.pad_small_map else self.shift_size


class FastMultiheadAttention(MultiheadAttention):
    """The host's attention; the gradients of queries, keys and values become one by one copy, not by six."""

    @staticmethod
    def wanted(ops: Ops) -> bool:
        return ops.window != 'plain'

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C') -> (B, N, C)."""
        if self.v_shortcut or not isinstance(x, Tensor) or traced():
            return super().forward(x)
        batch, length, _ = x.shape
        q, k, v = heads(self.qkv(x).view(batch, length, 3, self.num_heads, self.head_dims))
        dropout = self.attn_drop if self.training else 0.0
        x = self.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        x = self.proj(x.transpose(1, 2).flatten(2))
        return self.out_drop(self.gamma1(self.proj_drop(x)))


class FastBlock:
    """Mixed in before a host block: sparse drop path, checkpointing, compilation around the host's forward.

    A host says where its attention's drop path is (``attention_drop``), whether its attention can be compiled
    (``is_compilable``), what a compiled block takes besides x (``constants``) and how attention is computed from that
    (``attention``).
    """

    ops: Ops = Ops.read('plain')
    checkpointed = False
    stored = False
    owned = False  # whether the drop paths are the block's own
    graph = None

    @staticmethod
    def wanted(ops: Ops) -> bool:
        return True

    def use_ops(self, ops: Ops) -> None:
        self.ops = ops
        self.graph = signature(self) if ops.compile else None
        self.own_path()
        if ops.weights or self.stored:
            self.stored = bool(ops.weights)
            kinds = (FastLinear, AdaptedLinear) if ops.weights else nn.Linear  # which have their host's class back
            for linear in self.modules():
                if isinstance(linear, kinds):
                    store(linear.weight, torch.bfloat16 if ops.weights else torch.float32)

    def own_path(self) -> bool:
        """Whether the block adds its branches, and applies their drop paths, by itself.

        The host's forward does it for another MLP than its usual and where somebody waits for its call.
        """
        ops, ffn = self.ops, self.ffn
        wanted = ops.mlp != 'plain' or ops.drop_path != 'dense' or ops.compile or ops.recompute
        first, second = self.drops()
        usual = type(ffn) is FFN and ffn.add_identity and type(first) in APPLIED and type(second) in APPLIED
        own = wanted and usual and not (is_hooked(ffn) or is_hooked(first) or is_hooked(second))
        if own is not self.owned:
            self.owned = own
            for drop in (first, second):
                if type(drop) in DROP_PATHS:
                    drop.__class__ = BlockDropPath if own else DropPath
        return own

    def drops(self) -> list[nn.Module]:
        """Drop paths of both branches, which are ``BlockDropPath`` where the block applies them."""
        return [self.attention_drop(), getattr(self.ffn, 'dropout_layer', None)]

    def forward(self, x: Tensor, *args, **named) -> Tensor:
        args = (*args, *named.values())  # Swin's `hw_shape`
        of_host = getattr(self, 'with_cp', False) and self.own_path()  # its own forward looks at it by itself
        if (self.checkpointed or of_host) and torch.is_grad_enabled():
            return checkpoint(self.run, x, *args)
        return self.run(x, *args)

    def run(self, x: Tensor, *args) -> Tensor:
        """(B, L, C) -> (B, L, C), with gradients as the block's plain path."""
        if not self.own_path():
            return super().forward(x, *args)
        pays = torch.is_grad_enabled() or x.device.type != 'cpu'  # else the path below is faster than its graph
        if self.ops.compile and pays and not traced() and self.is_compilable():
            constants = self.constants(x, *args)
            return compiled(self)(self, x, *branch_weights(x, self.drops()), *constants)
        first, second = self.drops()
        x = self.residual(x, partial(self.attention_branch, args=args), first)
        if parts := self.mlp_parts(x):
            return in_pieces(partial(self.mlp_inferred, parts), x, self.ffn.feedforward_channels)
        return self.residual(x, self.mlp_in_pieces, second)

    def attention_branch(self, x: Tensor, args: tuple) -> Tensor:
        if self.ops.recompute == 'attention' and torch.is_grad_enabled():
            return checkpoint(lambda x: self.attn(self.norm1(x), *args), x)
        return self.attn(remakable(self.norm1, x) if self.remakes(x) else self.norm1(x), *args)

    def remakes(self, x: Tensor) -> bool:
        """Whether linear layers save how to make the outputs of norms and activations again, instead of these."""
        mode = self.ops.recompute
        return bool(mode) and (mode != 'auto' or x.device.type == 'cpu') and torch.is_grad_enabled() and not traced()

    def body(self, x: Tensor, first: Tensor, second: Tensor, *constants) -> Tensor:
        """``run`` as a function of tensors only; ``first``, ``second``: (B, 1, 1) weights of the branches."""
        x = x + (self.attention(self.norm1(x), *constants) * first).to(x.dtype)
        return x + (self.mlp(x) * second).to(x.dtype)

    def mlp(self, x: Tensor) -> Tensor:
        """The second branch, without its shortcut and drop path."""
        layers = self.ffn.layers
        if not self.remakes(x) or is_hooked(layers):
            return self.ffn.gamma2(layers(self.norm2(x)))
        x = remakable(self.norm2, x)
        for layer in layers:
            inside = isinstance(layer, nn.Sequential) and not is_hooked(layer)
            for part in layer if inside else (layer,):
                x = remakable(part, x)
        return self.ffn.gamma2(x)

    def mlp_parts(self, x: Tensor) -> list | None:
        """Of both linear layers of the MLP what ``inferred`` takes, where no gradient is wanted and nothing else is
        between them than GELU.
        """
        ops = self.ops
        if torch.is_grad_enabled() or 'plain' in (ops.mlp, ops.linear) or x.device.type != 'cpu' or traced():
            return None
        ffn, hidden = self.ffn, self.ffn.layers[0]
        if len(ffn.layers) != 3 or type(hidden[1]) is not nn.GELU or hidden[1].approximate != 'none':
            return None
        linears = hidden[0], ffn.layers[1]
        dropped = (*hidden[2:], ffn.layers[2], ffn.dropout_layer)  # some ask for drop-out in inference
        called = (self.norm2, ffn.layers, hidden, *hidden, *ffn.layers[1:], ffn.gamma2)
        if type(ffn.gamma2) is not nn.Identity or any(m.training for m in dropped) or any(map(is_hooked, called)):
            return None
        parts = [linear.parts() for linear in linears if isinstance(linear, FastLinear)]
        return parts if len(parts) == 2 and all(p and ordinary(x, p[0]) for p in parts) else None

    def mlp_inferred(self, parts: list, x: Tensor) -> Tensor:
        """x + MLP(x) as two products, with GELU and the sum as they are written."""
        hidden = inferred(self.norm2(x), *parts[0], act=F.gelu)
        return inferred(hidden, *parts[1], add=x)

    def mlp_in_pieces(self, x: Tensor) -> Tensor:
        wide = self.ffn.feedforward_channels if self.ops.mlp != 'plain' and not traced() else 0
        if is_large(x, wide) and any(map(is_hooked, (self.norm2, *self.ffn.modules()))):
            wide = 0
        return in_pieces(self.mlp, x, wide)

    def residual(self, x: Tensor, branch, drop: nn.Module) -> Tensor:
        rate = getattr(drop, 'drop_prob', 0.0)
        if not rate or not drop.training:
            return x + branch(x)
        if self.ops.drop_path == 'sparse' and not traced() and not any(map(is_hooked, self.modules())):
            return sparse_residual(x, branch, rate)
        return x + DropPath.forward(drop, branch(x))


class FastSwinBlock(FastBlock, SwinBlock):
    def attention_drop(self) -> nn.Module:
        return self.attn.drop

    def is_compilable(self) -> bool:
        attn = self.attn
        return isinstance(attn, FastShiftWindowMSA) and attn.is_usual() and not is_hooked(attn)

    def constants(self, x: Tensor, hw_shape: tuple[int, int]) -> tuple:
        attn = self.attn
        table = attn.w_msa.relative_position_bias_table
        at, bias = attn.constants(x, hw_shape, table.dtype, every=True)  # another shape would be another graph
        padding = filled(False, (1, 1), 0, x.device) if at.padding is None else at.padding
        return at.rows, padding, at.places, at.sorts, bias

    def attention(self, x: Tensor, rows, padding, places, sorts, bias) -> Tensor:
        """By torch's own indexing: in the backward pass dynamo (torch 2.11) confuses two ``window.Permute``."""
        msa, (batch, _, channels) = self.attn.w_msa, x.shape
        windows = x.flatten(0, 1).index_select(0, rows).masked_fill(padding, 0)
        qkv = msa.qkv(windows).view(len(sorts), -1, 3, msa.num_heads, channels // msa.num_heads)
        out = attend_any(qkv, bias, sorts, msa.scale, msa.attn_drop).view(-1, channels)
        out = out.index_select(0, places).view(batch, -1, channels)
        return msa.proj_drop(msa.proj(out))


class FastEncoderLayer(FastBlock, TransformerEncoderLayer):
    def attention_drop(self) -> nn.Module:
        return self.attn.out_drop

    def is_compilable(self) -> bool:
        return not is_hooked(self.attn)

    def constants(self, x: Tensor) -> tuple:
        return ()

    def attention(self, x: Tensor) -> Tensor:
        return self.attn(x)


class FastPatchMerging(PatchMerging):
    """Patches by one copy; the host's ``nn.Unfold`` starts a kernel for every image on a GPU."""

    @staticmethod
    def wanted(ops: Ops) -> bool:
        return ops.window != 'plain'

    def forward(self, x: Tensor, input_size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """(B, H W, C) -> (B, H W / k², C'), (H / k, W / k)."""
        sampler = self.sampler
        (high, wide), (height, width) = sampler.kernel_size, input_size
        usual = type(sampler) is nn.Unfold and not is_hooked(sampler)
        whole = usual and height % high == 0 and width % wide == 0 and sampler.stride == sampler.kernel_size
        if not whole or sampler.dilation != (1, 1) or sampler.padding != (0, 0) or traced():
            return super().forward(x, input_size)
        batch, size = len(x), (height // high, width // wide)
        x = x.view(batch, size[0], high, size[1], wide, -1).permute(0, 1, 3, 5, 2, 4)
        x = x.reshape(batch, size[0] * size[1], -1)
        return self.reduction(self.norm(x) if self.norm else x), size


FAST.update(
    {
        Linear: FastLinear,
        MultiheadAttention: FastMultiheadAttention,
        PatchMerging: FastPatchMerging,
        ShiftWindowMSA: FastShiftWindowMSA,
        SwinBlock: FastSwinBlock,
        TransformerEncoderLayer: FastEncoderLayer,
    }
)


LARGE = 16 * 2**20  # bytes of hidden features from which on pieces pay


def hidden_bytes(x: Tensor, width: int) -> int:
    return x.numel() // x.shape[-1] * width * x.element_size()


def is_large(x: Tensor, width: int) -> bool:
    """Whether features of this width, of the tokens of x (..., C), do not fit into a CPU's cache."""
    return x.device.type == 'cpu' and hidden_bytes(x, width) > LARGE


def in_pieces(branch: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    """``branch(x)`` for a branch that treats tokens independently.

    Args:
        x: (..., C).
        width: of the branch's widest features.
    """
    if not is_large(x, width):
        return branch(x)
    rows = x.reshape(-1, x.shape[-1]).tensor_split(-(-hidden_bytes(x, width) // CACHED))
    return torch.cat([branch(r) for r in rows]).view(*x.shape[:-1], -1)
