"""What the libraries test of their own networks, restated, on their classes and ours: python tests/neighbours.py [KIND]

No library ships its tests in its package. What mmengine and PEFT test of their parts is restated on others' networks. A
check that a library's own class fails here is not counted against ours.
"""

from __future__ import annotations

import copy
import logging
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mmdet.models.backbones.swin as det
import mmpretrain.models.backbones as cls
import mmseg.models.backbones as seg
import timm
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner, load_checkpoint, save_checkpoint
from peft import LoraConfig, PeftModel, get_peft_model
from timm.optim import param_groups_layer_decay
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import scalenet_mm
from scalenet_mm.backbones import ScaleNetDeiT, ScaleNetSwin
from scalenet_mm.lm.saving import from_pretrained

SWIN = dict(embed_dims=16, depths=[2, 2, 2, 2], num_heads=[1, 2, 2, 4])
DEIT = dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64)
OUTPUTS = dict(window_size=4, out_indices=(0, 1, 2, 3))
KINDS = ('backbone', 'swin', 'vit', 'timm', 'mmengine', 'transformers', 'peft')
CHECKS: dict[str, list[Callable]] = {kind: [] for kind in KINDS}
Make = Callable[..., nn.Module]  # of a class, with the arguments that are its library's


@dataclass(frozen=True)
class Class:
    """A library's class.

    Attributes:
        kinds: of checks.
        host: makes one of the library's own.
        ours: makes one of ours, of these times.
    """

    kinds: tuple[str, ...]
    host: Make
    ours: Callable[[int], Make]


def registered(host: type, ours: type, **given) -> tuple[Make, Callable[[int], Make]]:
    def scaled(times: int) -> Make:
        scale = dict(times=times, adjust=None) if times == 1 else dict(times=times)
        return lambda **kw: ours(**{**given, **kw}, scale=scale)

    return lambda **kw: host(**{**given, **kw}), scaled


def live(create: Callable[..., nn.Module], **given) -> tuple[Make, Callable[[int], Make]]:
    def host(**kw) -> nn.Module:
        return create(**{**given, **kw})

    return host, lambda times: lambda **kw: scalenet_mm.scale(host(**kw), times=times)


def llama(**config) -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**config))


DENSE = dict(window_size=4, **SWIN)
VIT = dict(embed_dim=32, num_heads=2, depth=3, img_size=32, patch_size=8)
LLAMA = dict(
    **dict(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, max_position_embeddings=64),
    **dict(num_attention_heads=4, num_key_value_heads=2, bos_token_id=1, eos_token_id=None, pad_token_id=0),
    tie_word_embeddings=True,
    attn_implementation='eager',
)
CLASSES = {
    'mmpretrain Swin': Class(
        ('backbone', 'swin', 'mmengine'),
        *registered(cls.SwinTransformer, ScaleNetSwin, arch=SWIN, img_size=64, pad_small_map=True, **OUTPUTS),
    ),
    'mmdet Swin': Class(('backbone',), *registered(det.SwinTransformer, ScaleNetSwin, **DENSE)),
    'mmseg Swin': Class(('backbone',), *registered(seg.SwinTransformer, ScaleNetSwin, **DENSE)),
    'mmpretrain ViT': Class(
        ('backbone', 'vit', 'mmengine'),
        *registered(cls.VisionTransformer, ScaleNetDeiT, arch=DEIT, img_size=64, patch_size=16, out_type='featmap'),
    ),
    'mmseg ViT': Class(
        ('backbone',),
        *registered(
            seg.VisionTransformer,
            ScaleNetDeiT,
            **dict(img_size=64, embed_dims=32, num_layers=3, num_heads=2, mlp_ratio=2, final_norm=True),
        ),
    ),
    'timm ViT': Class(('timm',), *live(timm.create_model, model_name='vit_tiny_patch16_224', num_classes=5, **VIT)),
    'timm Swin': Class(
        ('timm',),
        *live(
            timm.create_model,
            **dict(model_name='swin_tiny_patch4_window7_224', num_classes=5, img_size=32, window_size=4),
            **dict(embed_dim=16, depths=(2, 2), num_heads=(1, 2)),
        ),
    ),
    'transformers Llama': Class(('transformers', 'peft'), *live(llama, **LLAMA)),
}


def check(kind: str) -> Callable[[Callable], Callable]:
    def add(test: Callable) -> Callable:
        CHECKS[kind].append(test)
        return test

    return add


def images(side: int = 64, other: int | None = None) -> torch.Tensor:
    return torch.randn(2, 3, side, other or side, generator=torch.Generator().manual_seed(0))


@check('backbone')
def gives_one_map_for_each_output_at_sizes_that_are_no_multiple_of_a_patch(make: Make) -> None:
    net = make()
    net.init_weights()
    for size in ((64, 64), (67, 93)):
        outs = net(images(*size))
        assert isinstance(outs, (tuple, list)) and len(outs) == len(net.out_indices)
        assert all(out.ndim == 4 and out.shape[0] == 2 and out.isfinite().all() for out in outs)


@check('backbone')
def every_parameter_gets_a_gradient(make: Make) -> None:
    net = make()
    net.train()
    sum(out.square().mean() for out in net(images())).backward()
    assert not [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None]


@check('backbone')
def a_checkpoint_of_mmengine_comes_back(make: Make) -> None:
    first, second = make(), make()
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / 'a.pth')
        save_checkpoint(dict(state_dict=first.state_dict(), meta={}), file)
        load_checkpoint(second, file, strict=True, map_location='cpu')
    for net in (first, second):
        net.eval()
    assert all(map(torch.equal, first(images()), second(images())))


@check('backbone')
def train_and_eval_reach_every_module(make: Make) -> None:
    net = make()
    for mode in (True, False):
        net.train(mode)
        assert all(m.training is mode for m in net.modules())


@check('backbone')
def an_unknown_argument_is_refused(make: Make) -> None:
    refused(TypeError, lambda: make(no_such_argument=1))


def refused(kinds, call: Callable) -> None:
    try:
        call()
    except kinds:
        return
    raise AssertionError('it was not refused')


@check('swin')
def swin_takes_names_of_architectures_and_dicts_with_all_keys(make: Make) -> None:
    refused((AssertionError, ValueError), lambda: make(arch='unknown'))
    refused((AssertionError, ValueError), lambda: make(arch=dict(embed_dims=16, num_heads=[1])))
    assert make(arch='t').embed_dims == 96


@check('swin')
def swin_shrinks_its_maps_by_two_a_stage(make: Make) -> None:
    outs = make()(images(64))
    assert [tuple(o.shape[1:]) for o in outs] == [(16 * 2**i, 16 // 2**i, 16 // 2**i) for i in range(4)]
    after = make(out_after_downsample=True, out_indices=(0,))(images(64))
    assert tuple(after[0].shape[1:]) == (32, 8, 8)


@check('swin')
def swin_draws_and_resizes_its_absolute_position_embedding(make: Make) -> None:
    net = make(use_abs_pos_embed=True)
    assert not net.absolute_pos_embed.any()
    net.init_weights()
    assert net.absolute_pos_embed.any()
    larger = make(use_abs_pos_embed=True, img_size=96)
    larger.load_state_dict(net.state_dict())
    assert larger.absolute_pos_embed.shape[1] == 24 * 24


@check('swin')
def swin_drops_paths_in_proportion_to_the_depth(make: Make) -> None:
    net = make(drop_path_rate=0.3)
    rates = [float(block.attn.drop.drop_prob) for stage in net.stages for block in stage.blocks]
    assert all(abs(rate - 0.3 * i / (len(rates) - 1)) < 1e-6 for i, rate in enumerate(rates))


@check('swin')
@check('vit')
def every_parameter_has_a_layer_depth(make: Make) -> None:
    net = make()
    found = {name: net.get_layer_depth(name) for name, _ in net.named_parameters()}
    number = {n for _, n in found.values()}
    assert len(number) == 1 and all(0 <= depth < n for depth, n in found.values())


@check('vit')
def vit_gives_each_type_of_output(make: Make) -> None:
    shapes = dict(raw=(2, 17, 32), cls_token=(2, 32), featmap=(2, 32, 4, 4), avg_featmap=(2, 32))
    for out_type, shape in shapes.items():
        assert tuple(make(out_type=out_type)(images())[-1].shape) == shape
    refused((AssertionError, ValueError), lambda: make(out_type='unknown'))
    refused((AssertionError, ValueError), lambda: make(out_type='cls_token', with_cls_token=False))


@check('vit')
def vit_gives_the_outputs_of_several_layers(make: Make) -> None:
    assert len(make(out_indices=[0, 1, -1])(images())) == 3
    refused((AssertionError, ValueError), lambda: make(out_indices=[0, 99]))
    refused((AssertionError, ValueError), lambda: make(out_indices={1: 1}))


@check('vit')
def vit_resizes_its_position_embedding(make: Make) -> None:
    net = make()
    assert not net.pos_embed.any()
    net.init_weights()
    larger = make(img_size=96)
    larger.load_state_dict(net.state_dict())
    assert larger.pos_embed.shape[1] == 6 * 6 + 1


@check('timm')
def timm_forward_features_and_head_make_the_forward(make: Make) -> None:
    net = make().eval()
    x = images(32)
    assert net(x).shape == (2, 5)
    assert torch.equal(net.forward_head(net.forward_features(x)), net(x))
    assert net.forward_head(net.forward_features(x), pre_logits=True).shape == (2, net.num_features)


@check('timm')
def timm_resets_its_classifier(make: Make) -> None:
    net = make()
    net.reset_classifier(0)
    assert net(images(32)).shape[1] == net.num_features
    net.reset_classifier(7)
    assert net(images(32)).shape == (2, 7) and isinstance(net.get_classifier(), nn.Linear)


@check('timm')
def timm_keeps_its_default_cfg(make: Make) -> None:
    cfg = make().default_cfg
    params = dict(make().named_parameters())
    assert cfg['first_conv'] + '.weight' in params and cfg['classifier'] + '.weight' in params
    assert cfg['architecture'] and len(cfg['input_size']) == 3


@check('timm')
def timm_checkpoints_its_gradients(make: Make) -> None:
    net = make()
    net.set_grad_checkpointing()
    net(images(32)).mean().backward()
    assert not [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None]


@check('timm')
def timm_gives_intermediates(make: Make) -> None:
    net = make().eval()
    final, several = net.forward_intermediates(images(32))
    assert final.isfinite().all() and len(several) >= 2 and all(f.ndim == 4 for f in several)
    if hasattr(net, 'get_intermediate_layers'):
        (last,) = net.get_intermediate_layers(images(32), n=1, norm=True)
        assert torch.equal(last, net.forward_features(images(32))[:, net.num_prefix_tokens :])


@check('timm')
def timm_prunes_its_later_layers(make: Make) -> None:
    net = make().eval()
    kept = net.prune_intermediate_layers([0], prune_head=True)
    assert net.forward_features(images(32)).isfinite().all() and kept


@check('timm')
def timm_groups_its_parameters(make: Make) -> None:
    net = make()
    assert set(net.group_matcher(coarse=False)) >= {'stem', 'blocks'}
    groups = param_groups_layer_decay(net)
    assert sum(len(g['params']) for g in groups) == len(list(net.parameters()))


class OneMap(BaseModel):
    """A model of mmengine whose loss is the mean square of a backbone's last map."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, inputs, mode: str = 'tensor'):
        out = self.backbone(torch.stack(inputs) if isinstance(inputs, list) else inputs)[-1]
        return dict(loss=out.square().mean()) if mode == 'loss' else out


def trained(make: Make, folder: Path, steps: int, resume: bool = False, hooks=()) -> Runner:
    """A runner of mmengine after so many steps; it saves its model at every second one."""
    torch.manual_seed(0)
    net = OneMap(make(drop_path_rate=0.0))
    net.backbone.init_weights()
    data = dict(dataset=[dict(inputs=image) for image in images()], batch_size=2, num_workers=0)
    runner = Runner(
        **dict(model=net, work_dir=str(folder), custom_hooks=list(hooks), resume=resume, log_level='ERROR'),
        train_dataloader=dict(sampler=dict(type='DefaultSampler', shuffle=False), **data),
        train_cfg=dict(by_epoch=False, max_iters=steps),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2), logger=None),
        default_scope='mmpretrain',
        experiment_name=folder.name + str(steps),
    )
    runner.train()
    return runner


def states_equal(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@check('mmengine')
def mmengine_resumes_a_run_as_if_it_had_not_ended(make: Make) -> None:
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        whole = trained(make, Path(one), 4)
        trained(make, Path(two), 2)
        resumed = trained(make, Path(two), 4, resume=True)
        assert resumed.iter == 4 and states_equal(whole.model.state_dict(), resumed.model.state_dict())
        first, last = (torch.load(Path(one) / f'iter_{n}.pth', weights_only=False) for n in (2, 4))
    assert first.keys() >= {'meta', 'state_dict', 'optimizer', 'message_hub'} and last['meta']['iter'] == 4
    assert not states_equal(first['state_dict'], last['state_dict'])
    assert states_equal(last['state_dict'], whole.model.state_dict())


@check('mmengine')
def mmengine_steps_every_parameter_once(make: Make) -> None:
    with tempfile.TemporaryDirectory() as folder:
        runner = trained(make, Path(folder), 2)
    given = [p for group in runner.optim_wrapper.param_groups for p in group['params']]
    assert len(given) == len({id(p) for p in given}) == len(list(runner.model.parameters()))
    steps = {int(state['step']) for state in runner.optim_wrapper.optimizer.state.values()}
    assert steps == {2}


@check('mmengine')
def mmengines_ema_hook_saves_the_average_for_the_model_and_the_model_beside_it(make: Make) -> None:
    with tempfile.TemporaryDirectory() as folder:
        hook = dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.5)
        runner = trained(make, Path(folder), 2, hooks=[hook])
        saved = torch.load(Path(folder) / 'iter_2.pth', weights_only=False)
    hook = next(h for h in runner.hooks if type(h).__name__ == 'EMAHook')
    average, own = hook.ema_model.module, runner.model
    assert not states_equal(average.state_dict(), own.state_dict())
    assert states_equal(saved['state_dict'], average.state_dict())
    assert states_equal({k: v for k, v in saved['ema_state_dict'].items() if k != 'steps'}, with_module(own))
    before, theirs = (copy.deepcopy(m.state_dict()) for m in (own, average))
    hook.before_val_epoch(runner)
    assert states_equal(own.state_dict(), theirs)
    hook.after_val_epoch(runner)
    assert states_equal(own.state_dict(), before) and states_equal(average.state_dict(), theirs)


def with_module(net: nn.Module) -> dict:
    return {f'module.{k}': v for k, v in net.state_dict().items()}


def tokens(length: int = 9) -> torch.Tensor:
    return torch.randint(2, 50, (2, length), generator=torch.Generator().manual_seed(0))


@check('transformers')
def transformers_save_and_load_give_the_same_outputs(make: Make) -> None:
    net = make().eval()
    with tempfile.TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        again = from_pretrained(folder, attn_implementation='eager')
    assert states_equal(net.state_dict(), again.state_dict())
    assert torch.equal(again(tokens()).logits, net(tokens()).logits)


@check('transformers')
def transformers_attentions_and_hidden_states_are_one_a_layer(make: Make) -> None:
    net = make().eval()
    out = net(tokens(), output_attentions=True, output_hidden_states=True)
    depth = net.config.num_hidden_layers
    assert len(out.attentions) == depth == len(net.model.layers) and len(out.hidden_states) == depth + 1
    for weights in out.attentions:
        assert weights.shape == (2, 4, 9, 9) and not weights.triu(1).any()
        assert torch.allclose(weights.sum(-1), torch.ones(2, 4, 9))
    assert all(h.shape == (2, 9, 32) for h in out.hidden_states)
    out.hidden_states[0].retain_grad()
    out.attentions[0].retain_grad()
    out.logits.sum().backward()
    assert out.hidden_states[0].grad is not None and out.attentions[0].grad is not None


@check('transformers')
def transformers_checkpoints_its_gradients_and_changes_none(make: Make) -> None:
    net, found = make().train(), []
    for enable in (lambda: None, net.gradient_checkpointing_enable):
        enable()
        net.zero_grad()
        loss = net(tokens(), labels=tokens()).loss
        loss.backward()
        found.append((loss.detach(), {n: p.grad.clone() for n, p in net.named_parameters()}))
    assert net.is_gradient_checkpointing
    torch.testing.assert_close(*found)


@check('transformers')
def transformers_resizes_its_tokens_and_keeps_the_output_layer_tied(make: Make) -> None:
    net = make().eval()
    before = net.get_input_embeddings().weight.detach().clone()
    for size in (60, 35):
        net.resize_token_embeddings(size)
        weight = net.get_input_embeddings().weight
        assert net.config.vocab_size == size == len(weight)
        assert torch.equal(weight[: min(50, size)], before[:size])
        assert net.get_output_embeddings().weight is weight
        assert net(tokens() % 35).logits.shape == (2, 9, size)


@check('transformers')
def transformers_generates_greedily_the_same_without_its_cache(make: Make) -> None:
    net = make().eval()
    options = dict(max_new_tokens=8, do_sample=False)
    made = net.generate(tokens(), **options)
    assert made.shape == (2, 17) and torch.equal(made, net.generate(tokens(), use_cache=False, **options))
    expanded = net.generate(inputs_embeds=net.get_input_embeddings()(tokens()), **options)
    assert torch.equal(expanded, made[:, 9:])


@check('transformers')
def transformers_ties_its_tied_weights_and_saves_them_once(make: Make) -> None:
    net = make()
    net.tie_weights()
    params = dict(net.named_parameters(remove_duplicate=False))
    assert all(params[k] is net.get_input_embeddings().weight for k in net._tied_weights_keys)
    with tempfile.TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        size = (Path(folder) / 'model.safetensors').stat().st_size
        _, told = type(net).from_pretrained(folder, output_loading_info=True)
    bytes_each = sum(p.numel() * 4 for p in net.parameters())
    assert bytes_each < size < 1.2 * bytes_each and not set(told['missing_keys']) & set(net._tied_weights_keys)


@check('transformers')
def transformers_takes_embeddings_and_tuples(make: Make) -> None:
    net = make().eval()
    wanted = net(tokens()).logits
    assert torch.equal(net(inputs_embeds=net.get_input_embeddings()(tokens())).logits, wanted)
    assert torch.equal(net(tokens(), return_dict=False)[0], wanted)


def with_lora(net: nn.Module) -> nn.Module:
    kind = LoraConfig(target_modules=['q_proj', 'down_proj'], r=2, init_lora_weights=False)
    return get_peft_model(net, kind).eval()


@check('peft')
def peft_trains_its_own_alone(make: Make) -> None:
    net = with_lora(make()).train()
    names = {n for n, p in net.named_parameters() if p.requires_grad}
    assert len(names) == 2 * 2 * net.config.num_hidden_layers and all('.lora_' in n for n in names)
    net(tokens(), labels=tokens()).loss.backward()
    assert {n for n, p in net.named_parameters() if p.grad is not None and p.grad.any()} == names


@check('peft')
def peft_saves_and_loads_its_adapter_alone(make: Make) -> None:
    plain = make().eval()
    net = with_lora(copy.deepcopy(plain))
    with tempfile.TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        again = PeftModel.from_pretrained(copy.deepcopy(plain), folder).eval()
        size = (Path(folder) / 'adapter_model.safetensors').stat().st_size
    assert torch.equal(again(tokens()).logits, net(tokens()).logits)
    assert not torch.equal(net(tokens()).logits, plain(tokens()).logits)
    assert size < 4 * sum(p.numel() for p in net.parameters() if p.requires_grad) + 8192


@check('peft')
def peft_switched_off_or_unloaded_gives_the_outputs_before(make: Make) -> None:
    plain = make().eval()
    wanted, net = plain(tokens()).logits, with_lora(plain)
    on = net(tokens()).logits
    with net.disable_adapter():
        assert torch.equal(net(tokens()).logits, wanted)
    assert torch.equal(net(tokens()).logits, on) and not torch.equal(on, wanted)
    assert torch.equal(net.unload()(tokens()).logits, wanted)


@check('peft')
def peft_has_several_adapters_and_switches_between_them(make: Make) -> None:
    net = with_lora(make())
    first = net(tokens()).logits
    net.add_adapter('other', net.peft_config['default'])
    net.set_adapter('other')
    assert not torch.equal(net(tokens()).logits, first)
    net.set_adapter('default')
    assert torch.equal(net(tokens()).logits, first)


@check('peft')
def peft_merges_into_weights_that_one_layer_uses_and_refuses_others_unchanged(make: Make) -> None:
    net = with_lora(make())
    wanted = net(tokens()).logits
    if net.config.num_hidden_layers == LLAMA['num_hidden_layers']:
        merged = net.merge_and_unload()
        torch.testing.assert_close(merged(tokens()).logits, wanted)
        assert not any('lora' in name for name, _ in merged.named_parameters())
    else:
        refused(ValueError, net.merge_and_unload)
        assert torch.equal(net(tokens()).logits, wanted)


def run(only: str = '') -> dict[tuple[str, str], tuple[str, str, str]]:
    """(class, check) -> what the host's, ours at times=1 and ours at times=2 gave: '' or the error."""
    found = {}
    for name, tested in CLASSES.items():
        for kind in [kind for kind in tested.kinds if kind == (only or kind)]:
            for test in CHECKS[kind]:
                makes = tested.host, tested.ours(1), tested.ours(2)
                found[name, test.__name__] = tuple(map(lambda make, test=test: _error(test, make), makes))
    return found


def _error(test: Callable, make: Make) -> str:
    torch.manual_seed(0)
    try:
        test(make)
    except Exception as e:
        return f'{type(e).__name__}: {e}'
    return ''


if __name__ == '__main__':
    logging.disable()  # mmengine lists every tensor that is initialised
    failed = 0
    for (name, test), (host, *ours) in run(*sys.argv[1:]).items():
        bad = [e for e in ours if e]
        failed += bool(bad and not host)
        print(f'{name:16} {test:75} {"not counted, the host fails" if host else bad or "ok"}')
    sys.exit(failed > 0)
