"""Tiny random instances of the hosts that ``scalenet_mm.scale`` takes, each with what its own code and shapes say of
it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from scalenet_mm import HostFacts

WIDTH, HIDDEN, RANK = 32, 64, 16
IMAGE, TOKENS, VOCABULARY = (2, 3, 32, 32), (2, 9), 64
NORMS = ('norm1', 'norm2')
PLAIN_MLP = ((WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH))
GATED_MLP = ((WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH))


@dataclass(frozen=True)
class Zoo:
    """A host.

    Attributes:
        make: the host's own constructor at these depths, one a container.
        containers: paths of the lists of blocks; empty where they are to be read from the source.
        depths: of the source.
        norms: paths of the normalisation layers in a block; everything else in it is to be tied.
        norm_params: their parameters in one block of the scaled container, the last.
        mlps: (in, out) of the linear layers of the MLP of one block, for each container; empty likewise.
        shape: of an input; two numbers are a batch of tokens.
        function: whether start='function' is possible.
        facts: of a host that scalenet_mm does not know.
    """

    make: Callable[[tuple[int, ...]], nn.Module]
    containers: tuple[str, ...]
    depths: tuple[int, ...] = (3,)
    norms: tuple[str, ...] = NORMS
    norm_params: int = 4 * WIDTH
    mlps: tuple[tuple[tuple[int, int], ...], ...] = (PLAIN_MLP,)
    shape: tuple[int, ...] = IMAGE
    function: bool = True
    facts: HostFacts | None = None

    def read_from(self, model: nn.Module) -> Zoo:
        """With what releases of a library name in different ways: the list of as many modules as the source is deep,
        and all linear layers of its ``mlp``.
        """
        lists = {n: len(m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList)}
        containers = self.containers or tuple(n for n in lists if (lists[n],) == self.depths)
        mlps = self.mlps or tuple(
            tuple((m.in_features, m.out_features) for m in block.modules() if type(m) is nn.Linear)
            for block in (model.get_submodule(name)[0].mlp for name in containers)
        )
        return replace(self, containers=containers, mlps=mlps)

    def input(self, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        if len(self.shape) == 2:
            return torch.randint(0, VOCABULARY, self.shape, generator=generator)
        return torch.randn(self.shape, generator=generator)


def plain(width: int, ratio: int = 4) -> tuple[tuple[int, int], ...]:
    return (width, ratio * width), (ratio * width, width)


def timm_model(name: str, **options) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=5, **options)


def timm_vit(name: str, **options) -> Callable[[tuple[int, ...]], nn.Module]:
    given = dict(embed_dim=WIDTH, num_heads=2, img_size=32, patch_size=8) | options
    return lambda depths: timm_model(name, depth=depths[0], **given)


def huggingface(model: str, config: str, **options) -> Callable[[tuple[int, ...]], nn.Module]:
    """``options`` with DEPTH stand for the depths."""

    def make(depths: tuple[int, ...]) -> nn.Module:
        import transformers

        said = dict(num_hidden_layers=depths[0]) if len(depths) == 1 else dict(depths=list(depths))
        made = getattr(transformers, config)(**said, **options)
        return getattr(transformers, model)(made)

    return make


WIDE = dict(hidden_size=WIDTH, num_attention_heads=2)
LANGUAGE = dict(
    **WIDE, intermediate_size=HIDDEN, num_key_value_heads=1, vocab_size=VOCABULARY, max_position_embeddings=64
)
SLIDING = dict(use_sliding_window=True, sliding_window=4, max_window_layers=1)
SEEN = dict(image_size=32, patch_size=8)
STAGES = dict(image_size=32, patch_size=2, embed_dim=16, num_heads=[1, 2], window_size=4)
TWO = (plain(16), plain(32))


def language_model(name: str, norms=(), more: int = 0, **options) -> Zoo:
    return Zoo(
        huggingface(f'{name}ForCausalLM', f'{name}Config', **LANGUAGE, **options),
        ('model.layers',),
        norms=('input_layernorm', 'post_attention_layernorm', *norms),
        norm_params=2 * WIDTH + more,
        mlps=(GATED_MLP,),
        shape=TOKENS,
    )


def timm_swin(name: str, window: int, image: int) -> Callable[[tuple[int, ...]], nn.Module]:
    options = dict(img_size=image, window_size=window, embed_dim=16, num_heads=(1, 2))
    return lambda depths: timm_model(name, depths=depths, drop_path_rate=0.3, **options)


def timm_convnext(name: str, **options) -> Callable[[tuple[int, ...]], nn.Module]:
    return lambda depths: timm_model(name, depths=depths, dims=(8, 16, 24, 32), drop_path_rate=0.1, **options)


def torch_encoder(depths: tuple[int, ...]) -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, HIDDEN, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, depths[0], enable_nested_tensor=False)


def mm_swin(depths: tuple[int, ...]) -> nn.Module:
    from mmpretrain.models.backbones import SwinTransformer

    arch = dict(embed_dims=16, depths=list(depths), num_heads=[1, 2])
    return SwinTransformer(arch, img_size=32, patch_size=2, window_size=4, out_indices=(1,))


def mm_convnext(depths: tuple[int, ...]) -> nn.Module:
    from mmpretrain.models.backbones import ConvNeXt

    arch = dict(depths=list(depths), channels=[16, 32])
    return ConvNeXt(arch, stem_patch_size=2, drop_path_rate=0.2, out_indices=(1,))


class Mixer(nn.Module):
    """A block of nobody's library: mixes tokens by a matrix."""

    def __init__(self):
        super().__init__()
        self.before = nn.RMSNorm(WIDTH)
        self.tokens = nn.Linear(16, 16)
        self.between = nn.LayerNorm(WIDTH)
        self.wide = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.before(x).mT).mT
        return x + self.wide(self.between(x))


class Mixers(nn.Module):
    def __init__(self, depths: tuple[int, ...]):
        super().__init__()
        self.blocks = nn.ModuleList(Mixer() for _ in range(depths[0]))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


MIXER = HostFacts('mixer', proj='tokens', fc1='wide.0', fc2='wide.2', writes=('proj', 'fc2'), marks=('before',))

HF_BERT_NORMS = ('attention.output.LayerNorm', 'output.LayerNorm')
BEFORE_AFTER = ('layernorm_before', 'layernorm_after')
SWIN_NORMS = dict(containers=('layers.0.blocks', 'layers.1.blocks'), depths=(2, 2), mlps=TWO)
HF_SWIN = dict(
    containers=('swin.encoder.layers.0.blocks', 'swin.encoder.layers.1.blocks'),
    depths=(2, 2),
    norms=BEFORE_AFTER,
    mlps=TWO,
)
FOUR = dict(
    containers=tuple(f'stages.{i}.blocks' for i in range(4)),
    depths=(2, 2, 2, 2),
    mlps=tuple(map(plain, (8, 16, 24, 32))),
)

ZOO = {
    'timm ViT': Zoo(timm_vit('vit_tiny_patch16_224', drop_path_rate=0.3), ('blocks',)),
    'timm DeiT-III': Zoo(timm_vit('deit3_small_patch16_224'), ('blocks',)),
    'timm BEiT': Zoo(timm_vit('beit_base_patch16_224', drop_path_rate=0.1), ('blocks',)),
    'timm EVA-02': Zoo(
        timm_vit('eva02_base_patch14_224', img_size=28, patch_size=14),
        ('blocks',),
        norms=('norm1', 'norm2', 'mlp.norm'),
        norm_params=4 * 32 + 2 * 85,
        mlps=(((32, 85), (32, 85), (85, 32)),),
        shape=(2, 3, 28, 28),
    ),
    'timm DINOv2 (registers)': Zoo(timm_vit('vit_small_patch14_reg4_dinov2', init_values=0.1), ('blocks',)),
    'timm DINOv2 (SwiGLU)': Zoo(
        timm_vit('vit_giant_patch14_dinov2', img_size=28, patch_size=14),
        ('blocks',),
        mlps=(((32, 170), (85, 32)),),
        shape=(2, 3, 28, 28),
    ),
    'timm DINOv3': Zoo(timm_vit('vit_small_patch16_dinov3'), ('blocks',)),
    'timm Swin': Zoo(timm_swin('swin_tiny_patch4_window7_224', 7, 56), shape=(2, 3, 56, 56), **SWIN_NORMS),
    'timm Swin v2': Zoo(
        timm_swin('swinv2_tiny_window8_256', 8, 64), shape=(2, 3, 64, 64), function=False, **SWIN_NORMS
    ),
    'timm ConvNeXt': Zoo(timm_convnext('convnext_tiny'), norms=('norm',), norm_params=2 * 32, **FOUR),
    'timm ConvNeXt v2': Zoo(
        timm_convnext('convnextv2_tiny', use_grn=True, ls_init_value=None),
        norms=('norm', 'mlp.grn'),
        norm_params=2 * 32 + 2 * 128,
        **FOUR,
    ),
    'Hugging Face ViT': Zoo(
        huggingface('ViTForImageClassification', 'ViTConfig', intermediate_size=HIDDEN, **WIDE, **SEEN),
        (),  # vit.encoder.layer, since transformers 5 vit.layers
        norms=BEFORE_AFTER,
        mlps=(plain(WIDTH, 2),),
    ),
    'Hugging Face DINOv2': Zoo(
        huggingface('Dinov2ForImageClassification', 'Dinov2Config', drop_path_rate=0.2, **WIDE, **SEEN),
        ('dinov2.encoder.layer',),
    ),
    'Hugging Face DINOv2 (SwiGLU)': Zoo(
        huggingface('Dinov2ForImageClassification', 'Dinov2Config', use_swiglu_ffn=True, **WIDE, **SEEN),
        ('dinov2.encoder.layer',),
        mlps=(),  # 32 -> 88 twice, before transformers 5 once 32 -> 176; 88 -> 32
    ),
    **{
        f'Hugging Face {name}': Zoo(
            huggingface(f'{name}VisionModel', f'{name}VisionConfig', intermediate_size=HIDDEN, **WIDE, **SEEN),
            ('vision_model.encoder.layers',),
            norms=('layer_norm1', 'layer_norm2'),
            mlps=(plain(WIDTH, 2),),
        )
        for name in ('CLIP', 'Siglip')
    },
    'Hugging Face Swin': Zoo(huggingface('SwinForImageClassification', 'SwinConfig', **STAGES), **HF_SWIN),
    'Hugging Face Swin v2': Zoo(
        huggingface('Swinv2ForImageClassification', 'Swinv2Config', **STAGES),
        **HF_SWIN
        | dict(containers=('swinv2.encoder.layers.0.blocks', 'swinv2.encoder.layers.1.blocks'), function=False),
    ),
    'Hugging Face ConvNeXt': Zoo(
        huggingface(
            'ConvNextForImageClassification',
            'ConvNextConfig',
            image_size=32,
            patch_size=2,
            hidden_sizes=[16, 32],
            num_stages=2,
        ),
        ('convnext.encoder.stages.0.layers', 'convnext.encoder.stages.1.layers'),
        depths=(2, 2),
        norms=('layernorm',),
        norm_params=2 * 32,
        mlps=TWO,
    ),
    'Hugging Face BERT': Zoo(
        huggingface('BertForMaskedLM', 'BertConfig', intermediate_size=HIDDEN, vocab_size=VOCABULARY, **WIDE),
        ('bert.encoder.layer',),
        norms=HF_BERT_NORMS,
        mlps=(plain(WIDTH, 2),),
        shape=TOKENS,
        function=False,
    ),
    'Hugging Face Llama': language_model('Llama'),
    'Hugging Face Mistral': language_model('Mistral', sliding_window=4),
    'Hugging Face Qwen2': language_model('Qwen2', tie_word_embeddings=True, **SLIDING),
    'Hugging Face Qwen3': language_model('Qwen3', ('self_attn.q_norm', 'self_attn.k_norm'), more=2 * 16, head_dim=16),
    'torch TransformerEncoder': Zoo(
        torch_encoder, ('layers',), mlps=(plain(WIDTH, 2),), shape=(2, 16, WIDTH), function=False
    ),
    'mmpretrain Swin': Zoo(mm_swin, ('stages.0.blocks', 'stages.1.blocks'), depths=(2, 2), mlps=TWO),
    'mmpretrain ConvNeXt': Zoo(
        mm_convnext, ('stages.0', 'stages.1'), depths=(2, 2), norms=('norm',), norm_params=2 * 32, mlps=TWO
    ),
    'a registered host': Zoo(
        Mixers,
        ('blocks',),
        norms=('before', 'between'),
        norm_params=WIDTH + 2 * WIDTH,
        mlps=(plain(WIDTH, 2),),
        shape=(2, 16, WIDTH),
        facts=MIXER,
    ),
}
