"""Where a host's block keeps its linear layers: two small tables, and a register for what they do not know. torch only.

A block is a token mixer (attention or convolution) and an MLP. Each half is recognised by structure, by the paths of
its linear layers, so a host is any row of ``MIXERS`` with any row of ``MLPS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import nn

LINEARS = ('qkv', 'proj', 'fc1', 'fc2')
Paths = str | tuple[str, ...] | None


@dataclass(frozen=True)
class HostFacts:
    """Paths of the linear layers inside a block; None where the host computes them without calling the module.

    Attributes:
        name: for messages.
        qkv, proj: of the attention; a tuple where a host keeps them apart (``q_proj``, ``k_proj``, ``v_proj``).
        fc1, fc2: of the MLP; a gated MLP has its gate and up projections in ``fc1``.
        writes: which of them write to the residual stream, so that their zeros leave it as it is; None where that is
            unknown or not so (a norm behind them).
        marks: other attributes by which a block is recognised.
        bypassed: linears that the host reads without calling them where an attribute is set, ``{target: attribute}``.
        plain: attributes to set on a block so that it takes its plain path and calls its linears' ``forward``.
    """

    name: str
    qkv: Paths = None
    proj: Paths = None
    fc1: Paths = None
    fc2: Paths = None
    writes: tuple[str, ...] | None = ('proj', 'fc2')
    marks: tuple[str, ...] = ()
    bypassed: Mapping[str, str] = field(default_factory=dict)
    plain: Mapping[str, object] = field(default_factory=dict)

    def paths(self, target: str) -> tuple[str, ...]:
        """Paths of the linears that ``target`` means; empty where this host has none."""
        found = getattr(self, target, None) if target in LINEARS else None
        return (found,) if isinstance(found, str) else tuple(found or ())

    def fits(self, block: nn.Module) -> bool:
        """Whether all paths lead to linear layers of ``block``, and all marks are there, be it as None."""
        missing, linears = object(), [p for t in LINEARS for p in self.paths(t)]
        return all(isinstance(_attribute(block, p), nn.Linear) for p in linears) and all(
            _attribute(block, mark, missing) is not missing for mark in self.marks
        )

    def linears(self, block: nn.Module, target: str) -> list[tuple[nn.Module, str]]:
        """For each linear that ``target`` means: the module that holds it, and its name in there.

        Raises:
            ValueError: if this host has no such linear or does not call its ``forward``.
        """
        bypassed = [t for t, mark in self.bypassed.items() if _attribute(block, mark) is not None]
        usable = [t for t in LINEARS if self.paths(t) and t not in bypassed]
        if target not in usable:
            raise ValueError(f'{self.name} has no adjustable linear {target!r}; choose from {usable}.')
        parents = [path.rpartition('.') for path in self.paths(target)]
        return [(block.get_submodule(parent), name) for parent, _, name in parents]

    def identity_at_zero(self) -> tuple[str, ...]:
        """The linears whose zeros make a block the identity.

        Raises:
            ValueError: if they do not, or nobody knows.
        """
        if self.writes is None:
            raise ValueError(
                f'{self.name} is not known to be the identity where its last linears are zero (a norm may stand behind '
                "them), so nothing can start at the pretrained function: leave start='function' or growth='zero' out, "
                'or say how with facts=HostFacts(..., writes=...).'
            )
        return self.writes


def _apart(attention: str, out: str, names: str = '{}_proj') -> dict[str, Paths]:
    return dict(qkv=tuple(f'{attention}.{names.format(x)}' for x in 'qkv'), proj=out, writes=('proj',))


MIXERS = (
    HostFacts(
        'mmpretrain Swin v2',
        qkv='attn.w_msa.qkv',
        proj='attn.w_msa.proj',
        writes=None,
        marks=('attn.w_msa.logit_scale',),
        bypassed={'qkv': 'attn.w_msa.q_bias'},
    ),
    HostFacts('mmpretrain Swin', qkv='attn.w_msa.qkv', proj='attn.w_msa.proj', writes=('proj',)),
    # Swin v2: a norm stands between the branch and the residual stream. Its qkv is read together with q_bias.
    HostFacts(
        'timm Swin v2',
        qkv='attn.qkv',
        proj='attn.proj',
        writes=None,
        marks=('attn.logit_scale',),
        bypassed={'qkv': 'attn.q_bias'},
    ),
    # timm ViT, DeiT, DINOv2, Swin; BEiT and EVA, which read qkv themselves where it has a bias; mmpretrain ViT
    HostFacts('fused attention', qkv='attn.qkv', proj='attn.proj', writes=('proj',), bypassed={'qkv': 'attn.q_bias'}),
    HostFacts('timm EVA-02', **_apart('attn', 'attn.proj')),
    HostFacts('Hugging Face ViT', **_apart('attention', 'attention.o_proj')),
    *(
        HostFacts(
            'Hugging Face post-norm decoder',
            **_apart('self_attn', 'self_attn.o_proj') | {'writes': None},
            marks=(mark,),
        )
        for mark in ('post_feedforward_layernorm', 'post_mlp_layernorm')
    ),
    HostFacts('Hugging Face decoder', **_apart('self_attn', 'self_attn.o_proj')),
    # CLIP, SigLIP and the towers made like them
    HostFacts('Hugging Face CLIP', **_apart('self_attn', 'self_attn.out_proj'), marks=('layer_norm1', 'layer_norm2')),
    HostFacts(
        'Hugging Face Swin v2',
        qkv=('attention.self.query', 'attention.self.key', 'attention.self.value'),
        proj='attention.output.dense',
        writes=None,
        marks=('attention.self.logit_scale',),
    ),
    HostFacts(  # VideoMAE multiplies by the weights of query, key and value itself
        'Hugging Face encoder with biases apart',
        qkv=('attention.attention.query', 'attention.attention.key', 'attention.attention.value'),
        proj='attention.output.dense',
        writes=('proj',),
        marks=('attention.attention.q_bias',),
        bypassed={'qkv': 'attention'},
    ),
    *(  # before transformers 5; BERT's norms stand behind the sum
        HostFacts(
            'Hugging Face encoder',
            qkv=tuple(f'attention.{inner}.{x}' for x in ('query', 'key', 'value')),
            proj='attention.output.dense',
            writes=writes,
            marks=marks,
        )
        for inner, writes, marks in (
            ('attention', ('proj',), ()),
            ('self', None, ('attention.output.LayerNorm',)),
            ('self', ('proj',), ()),
        )
    ),
    *(HostFacts('convolution', writes=(), marks=(conv,)) for conv in ('conv_dw', 'dwconv', 'depthwise_conv')),
    HostFacts('unknown mixer', writes=None),
)

MLPS = (
    HostFacts('', fc1='ffn.layers.0.0', fc2='ffn.layers.1', writes=('fc2',)),  # mmpretrain
    HostFacts('', fc1='mlp.fc1', fc2='mlp.fc2', writes=('fc2',)),
    HostFacts('', fc1=('mlp.fc1_g', 'mlp.fc1_x'), fc2='mlp.fc2', writes=('fc2',)),  # timm SwiGLU
    HostFacts('', fc1=('mlp.gate_proj', 'mlp.up_proj'), fc2='mlp.down_proj', writes=('fc2',)),
    HostFacts('', fc1='mlp.up_proj', fc2='mlp.down_proj', writes=('fc2',)),
    HostFacts('', fc1='mlp.gate_up_proj', fc2='mlp.down_proj', writes=('fc2',)),
    HostFacts('', fc1='mlp.linear_fc1', fc2='mlp.linear_fc2', writes=('fc2',)),
    HostFacts('', fc1='mlp.weights_in', fc2='mlp.weights_out', writes=('fc2',)),
    HostFacts('', fc1='intermediate.dense', fc2='output.dense', writes=('fc2',)),
    HostFacts('', fc1='pwconv1', fc2='pwconv2', writes=('fc2',)),  # ConvNeXt of Hugging Face ...
    HostFacts('', fc1='pointwise_conv1', fc2='pointwise_conv2', writes=('fc2',)),  # ... mmpretrain
    # torch.nn.TransformerEncoderLayer: its attention reads its weights itself, its fast path those of the MLP too.
    HostFacts('', fc1='linear1', fc2='linear2', writes=('fc2',), plain={'activation_relu_or_gelu': 0}),
)

# Blocks with a norm behind each branch where others of the same structure have it before: only the class tells.
POST_NORM = (
    'ResPostBlock',
    'ResPostRelPosBlock',
    'EvaBlockPostNorm',
    'SwinTransformerV2CrBlock',
    'CLIPSegDecoderLayer',
)

REGISTERED: list[HostFacts] = []


def register_host(facts: HostFacts) -> HostFacts:
    """Makes another kind of block known; the last one registered is asked first, before the tables.

    >>> facts = register_host(HostFacts('my block', proj='mix.out', fc1='wide.0', fc2='wide.2'))
    >>> REGISTERED.remove(facts)

    Raises:
        ValueError: if it names no linear layer of the MLP, which the paper's adapters need.
    """
    if not (facts.paths('fc1') and facts.paths('fc2')):
        raise ValueError(
            f"A host needs the paths of its MLP's linear layers, {facts.name!r} has fc1={facts.fc1!r}, "
            f"fc2={facts.fc2!r}: HostFacts({facts.name!r}, fc1='mlp.fc1', fc2='mlp.fc2')."
        )
    REGISTERED.insert(0, facts)
    return facts


def host_facts(block: nn.Module) -> HostFacts:
    """What is registered for blocks like this one, else the rows of ``MIXERS`` and ``MLPS`` that fit it, joined.

    Raises:
        ValueError: for an unknown block.
    """
    for facts in REGISTERED:
        if facts.fits(block):
            return facts
    mlp = next((m for m in MLPS if m.fits(block)), None)
    if mlp is None:
        raise unknown(block, 'No known host has such blocks')
    mixer = next(m for m in MIXERS if m.fits(block))
    name = f'{type(block).__module__}.{type(block).__qualname__}'
    facts = replace(mixer, name=name, fc1=mlp.fc1, fc2=mlp.fc2, plain=mlp.plain, writes=None)
    behind = mixer.writes is None or type(block).__name__ in POST_NORM
    if behind or _has_more_branches(block, facts):
        return facts
    return replace(facts, writes=(*(mixer.writes or ()), *(mlp.writes or ())))


def _has_more_branches(block: nn.Module, facts: HostFacts) -> bool:
    """Whether matrices or kernels lie beside the token mixer and the MLP: a convolution between them, say."""
    paths = (*facts.marks, *(p for t in LINEARS for p in facts.paths(t)))
    known = {path.partition('.')[0] for path in paths}
    others = (child for name, child in block.named_children() if name not in known)
    return any(p.ndim > 1 for child in others for p in child.parameters())


def unknown(block: nn.Module, rule: str) -> ValueError:
    """The error for a block that no row fits: its linear layers, and how to make them known."""
    linears = [name for name, m in block.named_modules() if isinstance(m, nn.Linear)]
    told = (
        f'its linear layers are {linears}. Name those of its MLP: scalenet_mm.register_host(HostFacts('
        "'my host', qkv=..., proj=..., fc1=..., fc2=...)); docs/hosts.md tells how."
        if linears
        else 'it holds no nn.Linear, and only those can carry adapters (convolutions and quantised layers cannot).'
    )
    return ValueError(f'{rule}: {type(block).__module__}.{type(block).__qualname__} is none, {told}')


def holds_blocks(module: nn.Module) -> bool:
    """Whether ``module`` is a list or sequence of blocks that ``host_facts`` knows, and of nothing else."""
    containers = (nn.ModuleList, nn.Sequential)
    return isinstance(module, containers) and len(module) > 0 and all(map(_is_block, module))


def _is_block(module: nn.Module) -> bool:
    if any(facts.fits(module) for facts in REGISTERED):
        return True
    mlp = next((m for m in MLPS if m.fits(module)), None)
    if mlp is None:
        return False
    linears = (module.get_submodule(p) for t in ('fc1', 'fc2') for p in mlp.paths(t))
    own = {id(linear.weight) for linear in linears}
    return any(p.ndim > 1 and id(p) not in own for p in module.parameters())  # an MLP alone is none


def _attribute(block: nn.Module, path: str, missing: object = None) -> object:
    for name in path.split('.'):
        block = getattr(block, name, missing)
    return block
