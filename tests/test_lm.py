# ruff: noqa: E402
"""Language models: scaled decoders generate, train, save and are evaluated as Hugging Face's own."""

import copy
import json
import math
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import in_two_processes, perturb, scalenet
from safetensors.torch import load_file, save_file

import scalenet_mm
from scalenet_mm.checkpoint import CheckpointError
from scalenet_mm.commands.main import main
from scalenet_mm.core.roles import Role, TrainPolicy, roles
from scalenet_mm.core.tying import shared_names

pytest.importorskip('transformers')
ROOT = Path(__file__).resolve().parents[1]

from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from scalenet_mm.experiments.study import lm_data as toy_data
from scalenet_mm.experiments.study import lm_study as toy_study
from scalenet_mm.lm import alpaca, evaluation
from scalenet_mm.lm.saving import from_pretrained, load_increments, save_increments
from scalenet_mm.lm.training import (
    Recipe,
    checkpoint_of,
    make_trainer,
    require_same_run,
    run_of,
    train,
    trainable_table,
)

SHAPE = dict(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=None,
    pad_token_id=0,
)
# every second layer has a window
GEMMA = dict(head_dim=8, sliding_window=4, layer_types=['sliding_attention', 'full_attention', 'sliding_attention'])
HOSTS = {
    'Llama': lambda **c: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True, **c)),
    'Qwen2': lambda **c: Qwen2ForCausalLM(Qwen2Config(**SHAPE, **c)),
    'Mistral': lambda **c: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4, **c)),
    'Gemma 3': lambda **c: Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, **GEMMA, **c)),
}
ADAPTER = dict(type='ParallelAdapter', rank=4)


def made(host, order='interpolate', times=2, **config):
    """A scaled decoder whose weights, adapters and norms are nowhere trivial."""
    torch.manual_seed(0)
    model = HOSTS[host](**config)
    return perturb(scalenet_mm.scale(model, times=times, order=order, adjust=ADAPTER)).eval()


@pytest.fixture(params=[(h, o) for h in HOSTS for o in ('interpolate', 'stack')], ids=' '.join)
def decoder(request):
    return made(*request.param)


def rows_padded_on_the_left(lengths=(9, 5, 2)):
    """(B, L) tokens and their mask; the shorter rows have pad tokens before them."""
    generator = torch.Generator().manual_seed(1)
    longest = max(lengths)
    mask = torch.tensor([[0] * (longest - n) + [1] * n for n in lengths])
    return torch.randint(2, 50, mask.shape, generator=generator) * mask, mask


def greedy_without_cache(model, tokens, steps):
    """(L,) -> (steps,): the whole sequence is read again for every new token."""
    for _ in range(steps):
        logits = model(tokens[None], use_cache=False).logits[0, -1]
        tokens = torch.cat([tokens, logits.argmax()[None]])
    return tokens[-steps:]


# --- generation


@torch.no_grad()
def test_cached_generation_equals_uncached_token_for_token_also_in_left_padded_batches(decoder):
    tokens, mask = rows_padded_on_the_left()
    made = decoder.generate(tokens, attention_mask=mask, max_new_tokens=8, do_sample=False)[:, -8:]
    for row, kept, answer in zip(tokens, mask.bool(), made):
        assert torch.equal(answer, greedy_without_cache(decoder, row[kept], 8))
    assert made.unique().numel() > 1  # the model does not repeat one token; logits are compared below


@torch.no_grad()
def test_every_instance_has_an_entry_of_its_own_in_the_cache(decoder):
    tokens, _ = rows_padded_on_the_left((6,))
    whole = decoder(tokens, use_cache=False).logits
    cache, logits = None, []
    for token in tokens[0]:
        out = decoder(token[None, None], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits.append(out.logits[:, -1])
    assert torch.allclose(torch.stack(logits, 1), whole, atol=1e-5)
    assert len(cache.layers) == 6 and len({id(layer) for layer in cache.layers}) == 6
    keys = [layer.keys for layer in cache.layers]
    assert not any(torch.equal(a, b) for i, a in enumerate(keys) for b in keys[:i])


@torch.no_grad()
def test_beam_search_gives_the_same_beams_with_and_without_the_cache(decoder):
    tokens, mask = rows_padded_on_the_left()
    options = dict(attention_mask=mask, max_new_tokens=5, num_beams=3, do_sample=False)
    assert torch.equal(decoder.generate(tokens, **options), decoder.generate(tokens, use_cache=False, **options))


@torch.no_grad()
def test_looking_the_next_tokens_up_in_the_prompt_changes_none_of_them(decoder):
    tokens = rows_padded_on_the_left((9,))[0].repeat(1, 2)  # every token has been there before
    options = dict(max_new_tokens=20, do_sample=False, eos_token_id=49)
    plain = decoder.generate(tokens, **options)
    looked_up = decoder.generate(tokens, prompt_lookup_num_tokens=3, **options)
    # transformers 4.57 may make one token more than was asked for, on networks of its own too
    assert plain.shape[1] == 38 and torch.equal(looked_up[:, :38], plain)


@torch.no_grad()
def test_mistrals_window_reaches_as_far_per_instance_as_in_a_deep_mistral_of_its_own():
    scaled = made('Mistral')
    config = MistralConfig(**{**SHAPE, 'num_hidden_layers': 6}, sliding_window=4)
    deep = MistralForCausalLM(config).eval()
    for block, theirs in zip(deep.model.layers, scaled.model.layers):
        for name, p in block.named_parameters():
            p.copy_(theirs.get_parameter(name))
    for name in ('model.embed_tokens', 'model.norm', 'lm_head'):
        deep.get_submodule(name).load_state_dict(scaled.get_submodule(name).state_dict())
    for linear in (m for m in scaled.modules() if hasattr(m, 'adapter')):
        linear.adapter.up.zero_()
    tokens, _ = rows_padded_on_the_left((20,))
    assert torch.allclose(scaled(tokens).logits, deep(tokens).logits, atol=1e-5)
    far = tokens.clone()
    far[0, 0] = 7 if tokens[0, 0] != 7 else 8
    assert not torch.allclose(scaled(far).logits[0, 16], scaled(tokens).logits[0, 16], atol=1e-6)
    assert torch.equal(scaled(far).logits[0, 19], scaled(tokens).logits[0, 19])  # 6 x 3 tokens back


# --- what is shared, adapted, trained


def test_adapters_sit_on_gate_up_and_down_and_norms_are_the_instances_own(decoder):
    layers = decoder.model.layers
    for block in layers:
        adapted = {n for n, m in block.named_modules() if getattr(m, 'adapter', None) is not None}
        assert adapted == {'mlp.gate_proj', 'mlp.up_proj', 'mlp.down_proj'}
    found = roles(decoder)
    norms = [n for n, r in found.items() if r is Role.NORM]
    assert len(norms) == sum(type(m).__name__.endswith('RMSNorm') for m in decoder.modules())
    assert len(norms) in (2 * len(layers) + 1, 6 * len(layers) + 1)  # Gemma 3 has six
    shared = {n.split('.', 3)[3] for n, r in found.items() if r is Role.SHARED}
    assert shared == set(shared_names(layers[0]))


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, 50, (3, 12), generator=generator)
    return dict(input_ids=tokens, labels=tokens.masked_fill(torch.arange(12) < 4, -100))


def gradients(model):
    model.zero_grad()
    model(**batch()).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize('train', ['increments', 'all'])
def test_gradient_checkpointing_changes_no_gradient(decoder, train):
    TrainPolicy(train).apply(decoder)
    plain = gradients(decoder.train())
    calls = []
    decoder.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    enable = getattr(decoder, 'activation_checkpointing_enable', None)
    (enable or decoder.gradient_checkpointing_enable)(dict(use_reentrant=False))
    again = gradients(decoder)
    assert len(calls) == 2  # once forward, once backward
    assert plain.keys() == again.keys() == set(TrainPolicy(train).trainable(decoder))
    assert all(torch.allclose(plain[n], again[n], atol=1e-6) for n in plain)


def test_a_shared_weight_gets_the_sum_of_its_instances_gradients():
    model = made('Llama')
    shared = model.model.layers[0].mlp.gate_proj.weight
    got = gradients(model.train())['model.layers.0.mlp.gate_proj.weight']
    apart = []
    for i in (0, 1):
        other = copy.deepcopy(model)
        other.model.layers[i].mlp.gate_proj.weight = torch.nn.Parameter(shared.detach().clone())
        other(**batch()).loss.backward()
        apart.append(other.model.layers[i].mlp.gate_proj.weight.grad)
    assert torch.allclose(got, sum(apart), atol=1e-5)


# --- bfloat16


@torch.no_grad()
@pytest.mark.parametrize('host', HOSTS)
def test_a_model_in_bfloat16_is_saved_loaded_and_generates_the_same(host, tmp_path):
    model = made(host)
    for p in model.parameters():  # .to(torch.bfloat16) would round the rotary frequencies too
        p.data = p.data.bfloat16()
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    tokens, mask = rows_padded_on_the_left()
    options = dict(attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert torch.equal(model.generate(tokens, **options), again.generate(tokens, **options))
    near = from_pretrained(tmp_path, dtype=torch.float32)(tokens, attention_mask=mask).logits[:, -1]
    far = model(tokens, attention_mask=mask).logits[:, -1].float()
    assert torch.nn.functional.cosine_similarity(near, far).min() > 0.99


def test_frozen_weights_stay_in_bfloat16_while_increments_are_trained_in_float32(tmp_path):
    torch.manual_seed(0)
    model = HOSTS['Llama']().to(torch.bfloat16)
    scalenet_mm.scale(model, adjust=ADAPTER)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    examples = [dict(input_ids=row.tolist(), labels=row.tolist()) for row in batch()['input_ids']] * 4
    recipe = Recipe(lr=1e-2, batch_size=4, micro_batch=2, max_steps=6, bf16=True, save_steps=None)
    trainer = make_trainer(model, examples, tmp_path, recipe)
    trainer.train()
    trained = set(TrainPolicy().trainable(model))
    for name, p in model.named_parameters():
        assert p.dtype is (torch.float32 if name in trained else torch.bfloat16), name
        if name not in trained:
            assert torch.equal(p, before[name]), name
    assert all(not torch.equal(model.get_parameter(n).bfloat16(), before[n]) for n in trained)
    losses = [entry['loss'] for entry in trainer.state.log_history if 'loss' in entry]
    assert losses[-1] < losses[0]


def test_a_half_precision_model_is_not_trained_without_autocast(tmp_path):
    model = scalenet_mm.scale(HOSTS['Llama']().to(torch.bfloat16), adjust=ADAPTER)
    with pytest.raises(ValueError, match=r'--bf16'):
        make_trainer(model, [batch()], tmp_path, Recipe(batch_size=1, micro_batch=1))


# --- saving


@pytest.mark.parametrize('dtype', ['auto', 'float32'])
def test_a_saved_model_is_read_back_to_the_bit_with_its_ties(decoder, dtype, tmp_path):
    decoder.save_pretrained(tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    assert config['num_hidden_layers'] == 6 and config['scalenet'] == decoder.scale_spec
    again = from_pretrained(tmp_path, dtype=dtype)
    assert type(again) is type(decoder) and not again.training
    theirs = dict(decoder.named_parameters())
    assert {n: p.tolist() for n, p in again.named_parameters()} == {n: p.tolist() for n, p in theirs.items()}
    assert not any(p.is_meta for p in (*again.parameters(), *again.buffers()))
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in theirs.values())
    tokens, _ = rows_padded_on_the_left((7,))
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, decoder(tokens).logits)
    size = sum(f.stat().st_size for f in tmp_path.glob('*.safetensors'))
    assert size < 1.1 * sum(p.numel() * 4 for p in theirs.values()) + 20_000


def test_a_plain_model_is_read_by_its_own_class_and_a_broken_folder_is_refused(tmp_path):
    plain = HOSTS['Llama']()
    plain.save_pretrained(tmp_path / 'plain')
    assert not hasattr(from_pretrained(tmp_path / 'plain'), 'scale_spec')
    model = made('Llama')
    model.save_pretrained(tmp_path / 'scaled')
    weights = tmp_path / 'scaled' / 'model.safetensors'
    state = load_file(weights)
    lost = 'model.layers.1.mlp.up_proj.adapter.down'
    save_file({k: v for k, v in state.items() if k != lost}, weights)
    with pytest.raises(RuntimeError, match=lost):
        from_pretrained(tmp_path / 'scaled')
    weights.unlink()
    with pytest.raises(FileNotFoundError, match='save_pretrained'):
        from_pretrained(tmp_path / 'scaled')


def lose(state, key):
    del state[key]


def turn_to_int8(state, key):
    state[key] = (state[key] * 1000).to(torch.int8)


def put_nan(state, key):
    state[key][0, 0] = math.nan


def cut_a_row(state, key):
    state[key] = state[key][1:].clone()


DAMAGE = {lose: 'missing in the file', turn_to_int8: 'torch.int8 values', put_nan: 'NaN or infinity in 1 of'}
DAMAGE[cut_a_row] = r'expected \(48, 32\), the file has \(47, 32\)'


@pytest.mark.parametrize('layout', ['whole', 'sharded', 'bin', 'scaled'])
@pytest.mark.parametrize('change', DAMAGE, ids=lambda f: f.__name__)
def test_a_damaged_model_is_refused_by_file_key_and_rule(layout, change, tmp_path):
    model = made('Llama') if layout == 'scaled' else HOSTS['Llama']()
    size = '20KB' if layout == 'sharded' else '1GB'
    model.save_pretrained(tmp_path, max_shard_size=size, safe_serialization=layout != 'bin')
    from_pretrained(tmp_path)
    key = 'model.layers.0.mlp.up_proj.weight'
    read, write = (torch.load, torch.save) if layout == 'bin' else (load_file, save_file)
    files = [f for f in tmp_path.iterdir() if f.suffix in ('.safetensors', '.bin')]
    file, state = next((f, s) for f in files if key in (s := read(f)))
    assert ('-of-' in file.name) == (layout == 'sharded')
    change(state, key)
    write(state, file, *[dict(format='pt')] * (write is save_file))
    with pytest.raises(CheckpointError, match=DAMAGE[change]) as caught:
        from_pretrained(tmp_path)
    assert str(file) in str(caught.value) and key in str(caught.value)


def test_a_truncated_shard_and_a_lost_one_are_named(tmp_path):
    HOSTS['Llama']().save_pretrained(tmp_path, max_shard_size='20KB')
    (tmp_path / 'model-of-another-tool.safetensors').write_bytes(b'not of the index')
    from_pretrained(tmp_path)
    shard = sorted(tmp_path.glob('model-0*'))[-1]
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=rf'{shard.name} .* is truncated'):
        from_pretrained(tmp_path)
    shard.unlink()
    with pytest.raises(OSError, match=shard.name):
        from_pretrained(tmp_path)
    (tmp_path / 'model.safetensors.index.json').write_text('{')
    with pytest.raises(CheckpointError, match=r'model\.safetensors\.index\.json'):
        from_pretrained(tmp_path)


def test_a_file_without_a_head_of_its_own_is_refused_unless_the_head_is_the_embedding(tmp_path):
    for host, whole in (('Llama', True), ('Qwen2', False)):  # tied, and not
        inner = HOSTS[host]().model
        inner.save_pretrained(tmp_path / host)
        if whole:
            assert torch.equal(from_pretrained(tmp_path / host).lm_head.weight, inner.embed_tokens.weight)
            with torch.no_grad():
                inner.norm.weight[3] = math.inf
            inner.save_pretrained(tmp_path / host)
            with pytest.raises(CheckpointError, match=r'  norm\.weight: NaN or infinity in 1 of 32'):
                from_pretrained(tmp_path / host)
        else:
            with pytest.raises(CheckpointError, match=r'lm_head\.weight \(50, 32\)'):
                from_pretrained(tmp_path / host)


@pytest.mark.parametrize('order', ['interpolate', 'stack'])
def test_the_increments_alone_make_the_model_from_its_source_and_refuse_another(order, tmp_path):
    torch.manual_seed(0)
    source = perturb(HOSTS['Llama']())
    source.save_pretrained(tmp_path / 'source')
    model = scalenet_mm.scale(copy.deepcopy(source), order=order, adjust=ADAPTER)
    with torch.no_grad():
        for name in TrainPolicy().trainable(model):
            model.get_parameter(name).add_(0.1)
    delta = save_increments(model, tmp_path / 'source', tmp_path / 'x.delta.safetensors')
    assert set(delta.tensors) == set(TrainPolicy().trainable(model))
    again = load_increments(tmp_path / 'x.delta.safetensors')
    tokens, _ = rows_padded_on_the_left((7,))
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model.eval()(tokens).logits)
    file = tmp_path / 'source' / 'model.safetensors'
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=rf'{file} .* is truncated'):
        load_increments(tmp_path / 'x.delta.safetensors')
    perturb(source, seed=5).save_pretrained(tmp_path / 'other')
    with pytest.raises(CheckpointError, match='another base'):
        load_increments(tmp_path / 'x.delta.safetensors', tmp_path / 'other')


def test_increments_in_a_finer_dtype_than_their_source_are_rounded_aloud_or_kept(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr('scalenet_mm.checkpoint.delta_file.print_log', lambda text, *_: told.append(text))
    HOSTS['Llama']().bfloat16().save_pretrained(tmp_path / 'source')
    model = scalenet_mm.scale(from_pretrained(tmp_path / 'source'), adjust=ADAPTER)
    trained = TrainPolicy().trainable(model)
    for name in trained:
        p = model.get_parameter(name)
        p.data = p.data.float() + torch.rand_like(p, dtype=torch.float32)  # as `lm-train --bf16` trains them
    file = tmp_path / 'x.delta.safetensors'
    save_increments(model, tmp_path / 'source', file)
    rounded = load_increments(file)
    assert len(told) == 1 and 'are rounded' in told[0] and 'float32 in bfloat16' in told[0]
    whole = load_increments(file, dtype='float32')
    for name in trained:
        p = model.get_parameter(name)
        assert torch.equal(rounded.get_parameter(name), p.bfloat16()) and torch.equal(whole.get_parameter(name), p)
    assert {p.dtype for p in whole.parameters()} == {torch.float32}


def test_a_folder_in_a_finer_dtype_than_its_config_is_rounded_aloud_or_kept(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr('scalenet_mm.checkpoint.delta_file.print_log', lambda text, *_: told.append(text))
    model = scalenet_mm.scale(HOSTS['Llama']().bfloat16(), adjust=ADAPTER)
    model.model.norm.float()
    with torch.no_grad():
        model.model.norm.weight.add_(2.0**-10)
    model.save_pretrained(tmp_path / 'x2')
    assert str(model.config.dtype).endswith('bfloat16')
    rounded, whole = from_pretrained(tmp_path / 'x2'), from_pretrained(tmp_path / 'x2', dtype='float32')
    assert len(told) == 1 and 'of the files are rounded' in told[0] and '(--dtype float32) keeps them' in told[0]
    assert torch.equal(rounded.model.norm.weight, model.model.norm.weight.bfloat16())
    assert torch.equal(whole.model.norm.weight, model.model.norm.weight)


def test_a_scaled_model_generates_as_its_folder_says(tmp_path):
    source = HOSTS['Llama']()
    source.generation_config.update(eos_token_id=[3, 7], temperature=0.6, do_sample=True)
    source.save_pretrained(tmp_path / 'source')
    scalenet_mm.scale(source).save_pretrained(tmp_path / 'x2')
    said = [from_pretrained(tmp_path / name).generation_config for name in ('source', 'x2')]
    assert [(g.eos_token_id, g.temperature, g.do_sample) for g in said] == [([3, 7], 0.6, True)] * 2
    (tmp_path / 'x2' / 'generation_config.json').unlink()
    assert from_pretrained(tmp_path / 'x2').generation_config.temperature in (None, 1.0)


def test_increments_know_the_dtype_of_their_source_whatever_the_config_says(tmp_path):
    HOSTS['Llama']().bfloat16().save_pretrained(tmp_path / 'source')
    model = scalenet_mm.scale(from_pretrained(tmp_path / 'source'), adjust=ADAPTER)
    policy = TrainPolicy(also=['model.embed_tokens'])
    for name in policy.trainable(model):
        p = model.get_parameter(name)
        p.data = p.data.float()
    model.save_pretrained(tmp_path / 'x2')  # writes the dtype of the first parameter into the config
    assert str(model.config.dtype).endswith('float32')
    save_increments(model, tmp_path / 'source', tmp_path / 'x.delta.safetensors', policy)
    assert {p.dtype for p in load_increments(tmp_path / 'x.delta.safetensors').parameters()} == {torch.bfloat16}
    model = HOSTS['Llama']()  # from a config, which says none
    model.config.dtype = None
    model.save_pretrained(tmp_path / 'plain')
    model.config.dtype = None
    delta = save_increments(scalenet_mm.scale(model, adjust=ADAPTER), tmp_path / 'plain', tmp_path / 'y.safetensors')
    assert json.loads(delta.config)['dtype'] == 'float32'


def test_increments_of_a_model_that_is_no_longer_its_sources_are_refused(tmp_path):
    source = HOSTS['Llama']()
    source.save_pretrained(tmp_path / 'source')

    def resize(model):
        model.resize_token_embeddings(source.config.vocab_size + 1)

    def move(model):
        with torch.no_grad():
            model.model.embed_tokens.weight.add_(1)

    path = tmp_path / 'x.delta.safetensors'
    for change, named in ((resize, r'model\.embed_tokens\.weight \(\d+, \d+\), there \('), (move, 'lm_head')):
        model = scalenet_mm.scale(copy.deepcopy(source), adjust=ADAPTER)
        change(model)
        with pytest.raises(CheckpointError, match=named):
            save_increments(model, tmp_path / 'source', path)
        assert not path.exists()
    save_increments(model, tmp_path / 'source', path, TrainPolicy(also=['model.embed_tokens']))
    assert torch.equal(load_increments(path).lm_head.weight, model.model.embed_tokens.weight)


# --- instruction data


@pytest.fixture(scope='module')
def tokenizer():
    return toy_data.make_tokenizer()


def written(folder, content):
    (folder / 'data.json').write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / 'data.json'


GOOD = dict(instruction='add', input='1 2', output='3')


@pytest.mark.parametrize(
    ('content', 'says'),
    [
        ('{"instruction": ', 'is not JSON'),
        (dict(GOOD), 'must be a list of at least one record, got dict'),
        ([], 'at least one record'),
        ([GOOD, 'add'], r'record 1 must be an object'),
        ([GOOD, GOOD, dict(instruction='add', output=3)], r"record 2: the key 'output' .* is 3"),
        ([dict(input='', output='3')], r"record 0: the key 'instruction' .* is missing \(it has"),
        ([dict(GOOD, input=None)], r"record 0: the key 'input' must be text, but it is None"),
        ([dict(GOOD, instruction=' ')], r"record 0: the key 'instruction' is empty"),
    ],
)
def test_a_broken_record_is_named_with_its_key(content, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        alpaca.read_alpaca(written(tmp_path, content))


def test_records_are_read_and_asked_in_the_two_standard_prompts(tmp_path):
    given = [dict(GOOD, text='left out'), dict(instruction='Say hi.', output='hi')]
    records = alpaca.read_alpaca(written(tmp_path, given))
    assert records == [GOOD, dict(instruction='Say hi.', input='', output='hi')]
    with_input, without = map(alpaca.prompt, records)
    assert '### Instruction:\nadd\n\n### Input:\n1 2\n\n### Response:' in with_input
    assert '### Instruction:\nSay hi.\n\n### Response:' in without and 'Input' not in without
    with pytest.raises(FileNotFoundError, match='alpaca_data.json'):
        alpaca.read_alpaca(tmp_path / 'nowhere.json')


def test_the_loss_is_that_of_the_response_and_its_end_alone(tokenizer):
    records = [dict(instruction='add', input='1 2', output='3'), dict(GOOD, output='4 5 6')]
    examples = alpaca.encode(records, tokenizer, 32, toy_data.PROMPTS)
    for record, example in zip(records, examples):
        learnt = [i for i, label in zip(example['input_ids'], example['labels']) if label != -100]
        assert tokenizer.convert_ids_to_tokens(learnt) == [*record['output'].split(), '</s>']
        assert [label for label in example['labels'] if label != -100] == learnt
        asked = tokenizer(alpaca.prompt(record, toy_data.PROMPTS))['input_ids']
        assert example['input_ids'] == asked + learnt and asked[0] == tokenizer.bos_token_id
    padded = alpaca.pad(examples, tokenizer.pad_token_id)
    model = LlamaForCausalLM(toy_data.toy_config()).eval()
    with torch.no_grad():
        got = model(**padded).loss.item()
        terms = []
        for example in examples:
            probs = model(torch.tensor([example['input_ids']])).logits[0].log_softmax(-1)
            for at, label in enumerate(example['labels']):
                if label != -100:
                    terms.append(-probs[at - 1, label].item())
    assert len(terms) == 6 and got == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_long_records_are_cut_and_those_without_room_left_out(tokenizer):
    records = [dict(GOOD, output='3 ' * 30), dict(GOOD, input='1 ' * 30)]
    (one,) = alpaca.encode(records, tokenizer, 16, toy_data.PROMPTS)
    assert len(one['input_ids']) == len(one['labels']) == 16 and one['labels'][-1] != -100
    with pytest.raises(ValueError, match='max_length is 4; raise it above 6'):
        alpaca.encode(records, tokenizer, 4, toy_data.PROMPTS)


# --- training


def toy_examples(tokenizer, n=24):
    return alpaca.encode(toy_data.make_records(n, 0), tokenizer, 48, toy_data.PROMPTS)


def toy_model():
    torch.manual_seed(0)
    return scalenet_mm.scale(
        LlamaForCausalLM(toy_data.toy_config(num_hidden_layers=2, attention_dropout=0.1)), adjust=ADAPTER
    )


RECIPE = dict(epochs=2, lr=1e-2, batch_size=8, micro_batch=4, save_steps=2, keep=9)


def test_the_trainer_trains_the_increments_alone_and_a_resumed_run_is_exact(tokenizer, tmp_path):
    examples = toy_examples(tokenizer)
    model = toy_model()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer = make_trainer(model, examples, tmp_path / 'a', Recipe(**RECIPE), tokenizer=tokenizer)
    trainer.train()
    names = {id(p): n for n, p in model.named_parameters()}
    optimised = [names[id(p)] for g in trainer.optimizer.param_groups for p in g['params']]
    wanted = TrainPolicy().trainable(model)
    assert sorted(optimised) == sorted(wanted) and trainer.state.global_step == 6
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == set(wanted)

    resumed = toy_model()
    perturb(resumed, seed=3)  # all of it comes from the checkpoint
    again = make_trainer(resumed, examples, tmp_path / 'a', Recipe(**RECIPE), tokenizer=tokenizer)
    again.train(resume_from_checkpoint=str(tmp_path / 'a' / 'checkpoint-4'))
    for name, p in resumed.named_parameters():
        assert torch.equal(p, model.get_parameter(name)), name
    layers = resumed.model.layers
    assert layers[0].mlp.up_proj.weight is layers[1].mlp.up_proj.weight

    for steps in (-1, 6, 3):  # the Trainer itself would take a step more
        ended = perturb(toy_model(), seed=4)
        trainer = make_trainer(ended, examples, tmp_path / 'a', Recipe(**RECIPE, max_steps=steps), tokenizer=tokenizer)
        train(trainer, str(tmp_path / 'a' / 'checkpoint-6'))
        assert trainer.state.global_step == 0
        assert all(torch.equal(p, model.get_parameter(name)) for name, p in ended.named_parameters())
    longer = make_trainer(toy_model(), examples, tmp_path / 'a', Recipe(**RECIPE, max_steps=7), tokenizer=tokenizer)
    train(longer, str(tmp_path / 'a' / 'checkpoint-6'))
    assert longer.state.global_step == 7


def test_the_rate_falls_by_a_cosine_and_the_batch_must_fit_the_micro_batch(tokenizer, tmp_path):
    recipe = Recipe(**{**RECIPE, 'epochs': 4, 'warmup': 0.0, 'save_steps': None})
    trainer = make_trainer(toy_model(), toy_examples(tokenizer), tmp_path, recipe)
    trainer.train()
    rates = [e['learning_rate'] for e in trainer.state.log_history if 'loss' in e]
    cosine = [1e-2 * (1 + math.cos(math.pi * i / 12)) / 2 for i in range(12)]
    assert min(sum(abs(a - b) for a, b in zip(rates, shifted)) for shifted in (cosine, cosine[1:])) < 1e-6
    with pytest.raises(ValueError, match=r'batch_size must be a multiple .* got 10 and 4 x 1'):
        Recipe(batch_size=10, micro_batch=4).arguments(tmp_path)
    with pytest.raises(ValueError, match='lr must be above 0'):
        Recipe(lr=0)


def test_the_table_of_what_is_trained_adds_up():
    model = toy_model()
    TrainPolicy().apply(model)
    last = trainable_table(model).splitlines()[-1].replace(',', '').split()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert last[0] == 'total' and list(map(int, last[2:])) == [model.num_parameters(), trained]


# --- counts


def test_llama_3_2_1b_has_the_counts_of_the_digest():
    from scalenet_mm.experiments.paper.table_10 import SHAPE as shape
    from scalenet_mm.experiments.paper.table_10 import llama_1b, table_10

    d, wide, kv = 2048, 8192, 8 * 64
    layer = 2 * d * d + 2 * d * kv + 3 * d * wide + 2 * d
    base = 128_256 * d + 16 * layer + d
    increments = {r: 32 * 3 * r * (d + wide) + 16 * 2 * d for r in (16, 32)}
    assert base == 1_235_814_400 and shape['num_hidden_layers'] == 16
    rows = {row['variant']: row for row in table_10()}
    assert {v: row['params'] for v, row in rows.items()} == {
        'base': base,
        'ScaleNet r=16': base + increments[16],
        'ScaleNet r=32': base + increments[32],
    }
    assert [f'{row["params"] / 1e6:.1f}' for row in rows.values()] == ['1235.8', '1251.6', '1267.3']
    matrices = layer - 2 * d
    attention = 2 * d  # one key and one value of 32 heads of 64
    head = 128_256 * d
    assert rows['base']['flops'] * 1e9 == pytest.approx(16 * (matrices + attention) + head)
    assert rows['ScaleNet r=16']['flops'] * 1e9 == pytest.approx(32 * (matrices + attention) + head)
    assert rows['ScaleNet r=32']['flops_with_adjustments'] > rows['ScaleNet r=16']['flops']
    TrainPolicy().apply(model := llama_1b(dict(adjust=dict(type='ParallelAdapter', rank=16))))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == increments[16] + 16 * 2 * d + d


# --- the tools


def run_tool(name, folder, *args, code=0):
    """Runs a tool as a user does, offline, its caches below ``folder``."""
    environment = dict(os.environ, HF_HOME=str(folder / 'hf'), HF_HUB_OFFLINE='1')
    environment['PYTHONPATH'] = str(ROOT)
    command = scalenet(*name.split(), *args)
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=600, env=environment)
    assert done.returncode == code, done.stdout + done.stderr
    assert 'Traceback' not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def source_folder(tokenizer, tmp_path):
    torch.manual_seed(0)
    source = LlamaForCausalLM(toy_data.toy_config(num_hidden_layers=2, max_position_embeddings=128))
    source.save_pretrained(tmp_path / 'source')
    tokenizer.save_pretrained(tmp_path / 'source')
    (tmp_path / 'alpaca.json').write_text(json.dumps(toy_data.make_records(24, 0)))
    return tmp_path / 'source'


def harness_accuracy(model, tokenizer, lines):
    """Share of the questions whose right choice has the largest summed log-probability, read one by one."""
    right = 0
    for line in lines:
        asked = tokenizer(line['question'])['input_ids']
        scores = []
        for choice in line['choices']:
            whole = tokenizer(f'{line["question"]} {choice}')['input_ids']
            with torch.no_grad():
                logs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            scores.append(sum(logs[i - 1, whole[i]].item() for i in range(len(asked), len(whole))))
        right += scores.index(max(scores)) == line['answer']
    return right / len(lines)


TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: " "
tag: {tag}
metric_list:
  - metric: acc
  - metric: acc_norm
"""


def write_task(folder, name, records):
    """A multiple-choice task for lm-evaluation-harness; the wrong choices are other records' outputs.

    Returns:
        Its lines of ``{question, choices, answer}``, ``answer`` the index of the right choice.
    """
    rng = random.Random(0)
    outputs, lines = sorted({r['output'] for r in records}), []
    for record in records:
        wrong = rng.sample([o for o in outputs if o != record['output']], 3)
        offered = rng.sample([record['output'], *wrong], 4)
        question = alpaca.prompt(record, toy_data.PROMPTS)
        lines.append(dict(question=question, choices=offered, answer=offered.index(record['output'])))
    folder.mkdir(exist_ok=True)
    data = folder / f'{name}.jsonl'
    data.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    (folder / f'{name}.yaml').write_text(TASK.format(name=name, tag='toys', file=json.dumps(str(data.resolve()))))
    return lines


@pytest.mark.slow
def test_a_tag_is_evaluated_as_each_of_its_tasks(tokenizer, tmp_path):
    from scalenet_mm.lm.evaluation import evaluate, table

    torch.manual_seed(0)
    config = toy_data.toy_config(num_hidden_layers=2, max_position_embeddings=128)
    model = perturb(LlamaForCausalLM(config), std=0.1).eval()
    lines = {
        n: write_task(tmp_path / 'tasks', n, toy_data.make_records(5, seed)) for n, seed in (('one', 1), ('two', 2))
    }
    found = evaluate(model, tokenizer, ['two', 'toys'], include_path=tmp_path / 'tasks')
    assert list(found) == ['two', 'one']
    for name, records in lines.items():
        assert found[name]['acc'] == pytest.approx(share := harness_accuracy(model, tokenizer, records))
        assert found[name]['acc_stderr'] == pytest.approx((share * (1 - share) / (len(records) - 1)) ** 0.5)
    assert table(found).splitlines()[0].split()[-2:] == ['two', 'one']


@pytest.mark.slow
def test_a_model_is_trained_saved_and_evaluated_from_the_command_line(source_folder, tokenizer):
    folder = source_folder.parent
    common = ('--model', source_folder, '--data', folder / 'alpaca.json', '--out', folder / 'x2')
    recipe = ('--rank', 4, '--batch-size', 8, '--lr', 1e-2, '--save-steps', 4, '--max-length', 100)
    said = run_tool('lm-train', folder, *common, *recipe, '--epochs', 1)
    assert 'step 3 of 3' in said and 'increments.delta.safetensors' in said
    assert '24 records, 24 with room for a response, 0 as long as' in said
    trained = next(line.split() for line in said.splitlines() if line.startswith('adjustment'))
    assert int(trained[3].replace(',', '')) == 4 * 3 * 4 * (64 + 128)
    model = from_pretrained(folder / 'x2')
    tokens, _ = rows_padded_on_the_left((9,))
    tokens = tokens % 30
    delta = folder / 'x2' / 'increments.delta.safetensors'
    with torch.no_grad():
        assert torch.equal(load_increments(delta)(tokens).logits, model(tokens).logits)
    assert delta.stat().st_size < (folder / 'x2' / 'model.safetensors').stat().st_size / 2

    # another run to 9 steps: refused, then resumed where its checkpoint stands
    recipe = (*recipe[:-4], '--save-steps', 2, '--max-length', 100)
    out = ('--out', folder / 'again')
    run_tool('lm-train', folder, *common[:4], *out, *recipe, '--max-steps', 4, '--epochs', 3)
    again = (*common[:4], *out, *recipe, '--epochs', 3, '--max-steps', 6)
    assert '--resume' in run_tool('lm-train', folder, *again, code=2)
    assert 'step 6 of 6' in run_tool('lm-train', folder, *again, '--resume')

    lines = write_task(folder / 'tasks', 'toy_choice', toy_data.make_records(36, 7))
    evaluated = ('--tasks', 'toy_choice', '--include_path', folder / 'tasks')
    said = run_tool('lm-eval', folder, '--model', folder / 'x2', *evaluated, '--json')
    result = json.loads(said[said.index('{\n') : said.rindex('}') + 1])
    assert result['toy_choice']['acc'] == pytest.approx(harness_accuracy(model, tokenizer, lines))
    by_delta = ('--model', source_folder, '--increments', delta, *evaluated, '--limit', 5)
    said = run_tool('lm-eval', folder, *by_delta)
    five = 100 * harness_accuracy(model, tokenizer, lines[:5])
    ours = next(line for line in said.splitlines() if line.startswith(str(source_folder)))
    assert ours.split()[-1] == f'{five:.2f}' and 'not comparable' in said


@pytest.mark.parametrize(
    ('args', 'says'),
    [
        (('--model', '/no/such/model'), '/no/such/model gives no config: name a folder'),
        (('--data', 'nowhere.json'), 'There is no file nowhere.json'),
        (('--batch-size', 10), 'batch_size must be a multiple'),
        (('--resume',), 'leave --resume out'),
        (('--rank', 0), '--rank: must be a whole number from 1 on, got 0'),
        (('--times', 1, '--adjust', 'none'), 'add --train all'),
        (('--max-length', 5), 'No record has room for a response'),
    ],
)
def test_wrong_arguments_of_training_end_with_one_line_before_anything_is_written(
    source_folder, args, says, capsys, monkeypatch
):
    folder = source_folder.parent
    monkeypatch.setattr(sys, 'path', list(sys.path))
    usual = ('--model', source_folder, '--data', folder / 'alpaca.json', '--out', folder / 'out')
    try:
        code = main(['lm-train', *map(str, (*usual, *args))])
    except SystemExit as ended:  # argparse
        code = ended.code
    assert code == 2 and says in capsys.readouterr().err
    assert not (folder / 'out').exists()


def test_a_damaged_source_is_refused_before_anything_is_written(source_folder, capsys):
    folder, file = source_folder.parent, source_folder / 'model.safetensors'
    state = load_file(file)
    put_nan(state, 'model.layers.1.mlp.up_proj.weight')
    save_file(state, file, dict(format='pt'))
    args = ('--model', source_folder, '--data', folder / 'alpaca.json', '--out', folder / 'out', '--max-steps', 1)
    assert main(['lm-train', *map(str, args)]) == 2
    assert f'{file}: the checkpoint holds values that are no weights' in capsys.readouterr().err
    assert not (folder / 'out').exists()


def test_a_folder_without_a_tokenizer_is_refused_before_anything_is_written(source_folder, capsys):
    folder = source_folder.parent
    for file in source_folder.glob('*token*'):
        file.unlink()
    args = ('--model', source_folder, '--data', folder / 'alpaca.json', '--out', folder / 'out')
    assert main(['lm-train', *map(str, args)]) == 2
    assert f'{source_folder} gives no tokenizer: name a folder' in capsys.readouterr().err
    assert not (folder / 'out').exists()


def test_a_run_that_would_lose_later_checkpoints_is_refused(tmp_path):
    for name in ('a/checkpoint-4', 'a/checkpoint-8', 'a/checkpoint-12', 'a/checkpoint-x', 'b/checkpoint-4'):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / 'trainer_state.json').write_text('{}')
    (tmp_path / 'a' / 'checkpoint-12' / 'trainer_state.json').write_text('{')  # killed while it was written
    (tmp_path / 'a' / 'checkpoint-x' / 'trainer_state.json').unlink()
    last = str(tmp_path / 'a' / 'checkpoint-8')
    assert checkpoint_of(tmp_path / 'a', True) == checkpoint_of(tmp_path / 'a', last) == last
    assert checkpoint_of(tmp_path / 'c', last) == last
    for other in ('a/checkpoint-4', 'b/checkpoint-4'):
        with pytest.raises(ValueError, match=r'a has the checkpoint \S*checkpoint-8, which .* --resume alone'):
            checkpoint_of(tmp_path / 'a', str(tmp_path / other))
    with pytest.raises(ValueError, match=r'checkpoint-12 was not written to its end.*alone continues from \S*-8\.$'):
        checkpoint_of(tmp_path / 'a', str(tmp_path / 'a' / 'checkpoint-12'))
    (tmp_path / 'a' / 'checkpoint-8-good').mkdir()  # whose digits the Trainer reads, to remove the oldest
    for resume in (None, True):
        with pytest.raises(ValueError, match=r'a has checkpoint-8-good, which the Trainer .* move it elsewhere'):
            checkpoint_of(tmp_path / 'a', resume)


def test_the_folder_of_the_source_is_not_written_over(source_folder, capsys):
    before = {file: file.read_bytes() for file in source_folder.iterdir()}
    args = ('--data', source_folder.parent / 'alpaca.json', '--model', source_folder, '--max-steps', 1)
    assert main(['lm-train', *map(str, args), '--out', f'{source_folder}/']) == 2
    assert f'--out {source_folder} is the folder of --model' in capsys.readouterr().err
    assert {file: file.read_bytes() for file in source_folder.iterdir()} == before


def test_a_folder_that_holds_another_model_is_not_written_over(source_folder, tmp_path, capsys):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'model.safetensors').write_bytes(b'of a run whose checkpoints were removed')
    args = ('--data', source_folder.parent / 'alpaca.json', '--model', source_folder, '--max-steps', 1)
    assert main(['lm-train', *map(str, args), '--out', str(out)]) == 2
    assert f'--out {out} holds a model, which' in capsys.readouterr().err
    assert [file.name for file in out.iterdir()] == ['model.safetensors']
    (tmp_path / 'other' / 'checkpoint-2').mkdir(parents=True)
    (tmp_path / 'other' / 'checkpoint-2' / 'trainer_state.json').write_text('{}')
    resumed = ('--out', str(out), '--resume', str(tmp_path / 'other' / 'checkpoint-2'))
    assert main(['lm-train', *map(str, args), *resumed]) == 2
    assert f'--out {out} holds a model, which' in capsys.readouterr().err


def test_a_run_that_has_nothing_to_train_is_refused_before_its_first_step(source_folder, tmp_path, capsys):
    args = ('--data', source_folder.parent / 'alpaca.json', '--model', source_folder, '--out', tmp_path / 'out')
    assert main(['lm-train', *map(str, args), '--adjust', 'none', '--train', 'adjustments']) == 2
    assert "train='adjustments' trains adjustments, and this model has none" in capsys.readouterr().err


def test_a_run_is_not_resumed_with_another_scale_policy_recipe_or_data(source_folder, tokenizer, capsys):
    folder = source_folder.parent
    source = from_pretrained(source_folder)
    examples = alpaca.encode(toy_data.make_records(24, 0), tokenizer, alpaca.MAX_LENGTH)
    run = run_of(Recipe(), 'increments', examples, source)
    model = scalenet_mm.scale(source, times=2)
    model.config.scalenet_run = run
    model.config.save_pretrained(folder / 'out' / 'checkpoint-2')
    require_same_run(folder / 'out' / 'checkpoint-2', model.config)
    (folder / 'other.json').write_text(json.dumps(toy_data.make_records(24, 1)))
    digest = run['examples']
    other = from_pretrained(source_folder)
    with torch.no_grad():
        other.model.norm.weight.mul_(2)
    other.save_pretrained(folder / 'other')
    tokenizer.save_pretrained(folder / 'other')
    (folder / 'out' / 'checkpoint-2' / 'trainer_state.json').write_text('{}')  # the Trainer's last
    usual = ('--model', source_folder, '--data', folder / 'alpaca.json', '--out', folder / 'out')
    for args, theirs, ours in (
        (('--rank', 4), "'rank': 16", "'rank': 4"),
        (('--order', 'stack'), '[0, 0, 1, 1]', '[0, 1, 0, 1]'),
        (('--times', 3), '[0, 0, 1, 1]', '[0, 0, 0, 1, 1, 1]'),
        (('--adjust', 'lora'), 'ParallelAdapter', 'LoRA'),
        (('--start', 'function'), "{'start': 'paper'}", "{'start': 'function'}"),
        (('--train', 'all'), "{'train': 'increments'}", "{'train': 'all'}"),
        (('--lr', 1e-3), "{'lr': 0.0002}", "{'lr': 0.001}"),
        (('--batch-size', 64), "{'batch_size': 128}", "{'batch_size': 64}"),
        (('--seed', 1), "{'seed': 0}", "{'seed': 1}"),
        (('--max-length', 44), f"{{'examples': '{digest}'}}", "{'examples': '"),
        (('--data', folder / 'other.json'), f"{{'examples': '{digest}'}}", "{'examples': '"),
        (('--model', folder / 'other'), f"{{'source': '{run['source']}'}}", "{'source': '"),
    ):
        assert main(['lm-train', *map(str, (*usual, '--resume', *args))]) == 2
        told = capsys.readouterr().err.partition('these arguments make')
        assert 'checkpoint-2 is of a run with' in told[0]
        assert theirs in told[0] and ours in told[2]
    assert sorted(p.name for p in (folder / 'out').rglob('*.*')) == ['config.json', 'trainer_state.json']
    model.config.scalenet_run = {}  # of an older version: what it does not say is not held against it
    model.config.save_pretrained(folder / 'old')
    model.config.scalenet_run = {**run, 'lr': 1}
    require_same_run(folder / 'old', model.config)


def test_increments_are_evaluated_in_the_precision_that_is_asked_for(source_folder, monkeypatch):
    model = scalenet_mm.scale(from_pretrained(source_folder), times=2)
    delta = source_folder.parent / 'x.delta.safetensors'
    save_increments(model, source_folder, delta)
    dtypes = []
    monkeypatch.setattr(evaluation, 'evaluate', lambda model, *a: dtypes.append({p.dtype for p in model.parameters()}))
    monkeypatch.setattr(evaluation, 'known_tasks', lambda *a: None)
    for dtype in ('auto', 'bfloat16'):
        args = ('--model', source_folder, '--increments', delta, '--dtype', dtype, '--json', '--device', 'cpu')
        assert main(['lm-eval', *map(str, args)]) == 0
    assert dtypes == [{torch.float32}, {torch.bfloat16}]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('args', 'says'),
    [
        (('--tasks', 'arc_esy'), "no task ['arc_esy']; nearest are"),
        (('--include_path', 'nowhere'), 'no folder nowhere of tasks'),
        (('--model', '/no/such/model', '--tasks', 'piqa'), '/no/such/model gives no config'),
        (('--limit', 0), '--limit: must be a whole number from 1 on'),
    ],
)
def test_wrong_arguments_of_evaluation_end_with_one_line(source_folder, args, says, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'path', list(sys.path))
    try:
        code = main(['lm-eval', *map(str, ('--model', source_folder, *args))])
    except SystemExit as ended:  # argparse
        code = ended.code
    assert code == 2 and says in capsys.readouterr().err


@pytest.mark.slow
def test_where_the_extras_are_missing_all_modules_are_importable_and_the_tools_say_what_to_install():
    names = sorted(p.stem for p in (ROOT / 'scalenet_mm' / 'lm').glob('*.py'))
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('transformers', 'accelerate', 'datasets', 'lm_eval')))\n"
        'from mmpretrain.utils import dependency\n'
        'dependency.WITH_MULTIMODAL = False\n'  # else it imports transformers 4
        'from importlib import import_module\n'
        f"for name in {names}: import_module(f'scalenet_mm.lm.{{name}}'.removesuffix('.__init__'))\n"
        'from scalenet_mm.commands.main import main\n'
        "sys.exit(main(['lm-train', '--model', 'm', '--data', 'd', '--out', 'o']))"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        'scalenet lm-train: error: transformers, accelerate not installed; language models need: '
        'pip install scalenet_mm[lm]'
    ), done.stderr


def test_the_table_has_table_xs_columns_and_printed_figures_beside_ours():
    from scalenet_mm.lm.evaluation import TASKS, table

    results = {task: dict(acc=0.5) for task in TASKS}
    results['piqa'] = dict(acc=0.5, acc_norm=0.625)
    head, _, base, scaled, ours, metric = [line.split() for line in table(results, 'ours').splitlines()]
    assert head[-7:] == ['BoolQ', 'PIQA', 'HellaSwag', 'WinoGrande', 'ARC-e', 'ARC-c', 'OBQA']
    assert base[-7:] == ['63.98', '74.59', '63.66', '60.69', '60.48', '36.26', '37.20']
    assert scaled[-7:] == ['66.12', '75.73', '64.98', '61.17', '60.82', '37.63', '36.80']
    assert ours == ['ours', '50.00', '62.50', *['50.00'] * 5]
    assert metric == ['metric', 'acc', 'acc_norm', *['acc'] * 5]
    own = [x for x in table({'mine': dict(acc=0.25)}).splitlines() if x.strip('-')]
    assert [line.split()[-1] for line in own] == ['mine', '-', '-', '25.00', 'acc']


# --- the toy study


def answer_to(record):
    """Worked out anew from the text of instruction and input."""
    words, given = record['instruction'].split(), record['input'].split()
    if words[0] == 'follow':
        to, at = dict(zip(given[::2], given[1::2])), words[2]
        for _ in range(int(words[1])):
            at = to[at]
        return at
    answers = dict(reverse=reversed(given), sort=sorted(given))
    return ' '.join(answers.get(words[0]) or str(sum(int(d) for d in given)))


def test_generated_answers_are_right_and_held_out_records_are_in_no_training_set():
    held_out = toy_data.make_records(120, 1)
    train = toy_data.make_records(600, 2, without=held_out)
    assert all(r['output'] == answer_to(r) for r in train)
    asked = {(r['instruction'], r['input']) for r in train}
    assert len(asked) == 600 and not asked & {(r['instruction'], r['input']) for r in held_out}
    assert {r['family'] for r in held_out} == set(toy_data.FAMILIES)


def test_the_score_is_perplexity_and_the_share_that_greedy_decoding_answers(tokenizer):
    train = toy_data.make_records(64, 0, families=('sort', 'follow1'))
    torch.manual_seed(0)
    model = LlamaForCausalLM(toy_data.toy_config(num_hidden_layers=2))
    batch = alpaca.pad(alpaca.encode(train, tokenizer, 48, toy_data.PROMPTS), 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    found = toy_study.score(model, train, tokenizer)
    with torch.no_grad():
        assert found['perplexity'] == pytest.approx(model(**batch).loss.exp().item(), rel=1e-4)
    matches = []
    for record in train:
        asked = tokenizer(alpaca.prompt(record, toy_data.PROMPTS), return_tensors='pt')
        out = model.generate(**asked, max_new_tokens=8, do_sample=False)[0]
        said = tokenizer.decode(out[asked['input_ids'].shape[1] :], skip_special_tokens=True)
        matches.append(said.strip() == record['output'])
    assert found['exact'] == pytest.approx(100 * sum(matches) / 64) and 0 < found['exact'] < 100


RESULTS = ROOT / 'docs' / 'results' / 'lm_toy.json'


def test_the_committed_toy_table_is_that_of_its_runs():
    content = json.loads(RESULTS.read_text())
    assert toy_study.summary(content['runs']) == content['rows']
    made = toy_study.as_markdown(content['rows'], 'COMMAND').partition('|')[2]
    assert made == RESULTS.with_suffix('.md').read_text().partition('|')[2]
    for row in content['rows']:
        values = [r['perplexity'] for r in content['runs'] if r['row'] == row['row']]
        assert len(values) >= 3
        assert row['perplexity']['mean'] == pytest.approx(statistics.mean(values))
        assert row['perplexity']['sd'] == pytest.approx(statistics.stdev(values))
    assert [row['row'] for row in content['rows']] == list(toy_study.ROWS)


@pytest.mark.slow
def test_the_toy_study_continues_where_it_stopped(tmp_path):
    args = ('--seeds', 1, '--shorten', 400, '--work-dir', tmp_path / 'work')
    work = tmp_path / 'work' / '400_times_shorter'
    said = run_tool('experiment lm-toy', tmp_path, *args)
    assert f'{len(toy_study.ROWS)} runs, 0 of them done before' in said and '0 runs left' in said
    table = (work / 'lm_toy.md').read_text()
    results = work / 'results.jsonl'
    lines = results.read_text().splitlines(keepends=True)
    assert (work / 'lm_toy.png').stat().st_size > 5000
    results.write_text(''.join(lines[:-1]) + lines[-1][:20])  # killed while it wrote the last one
    said = run_tool('experiment lm-toy', tmp_path, *args)
    assert f'{len(lines) - 1} of them done before' in said
    assert (work / 'lm_toy.md').read_text() == table


@pytest.mark.slow
def test_two_processes_train_what_one_does(source_folder):
    folder = source_folder.parent
    usual = ['--model', source_folder, '--data', folder / 'alpaca.json', '--rank', 4, '--batch-size', 8, '--epochs', 1]
    usual += ['--lr', 1e-2, '--save-steps', 2, '--max-length', 100, '--micro-batch', 4]
    run_tool('lm-train', folder, *usual, '--out', folder / 'one')
    command = in_two_processes('-m', 'scalenet_mm', 'lm-train', *usual, '--out', 'two')
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=600, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count('wrote') == 2 and 'step 3 of 3' in done.stdout
    one, two = (load_file(folder / name / 'model.safetensors') for name in ('one', 'two'))
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=1e-3, atol=2e-4, msg=key)
    start = load_file(source_folder / 'model.safetensors')
    assert any(k not in start for k in two), 'adapters'
    delta = folder / 'two' / 'increments.delta.safetensors'
    tokens = rows_padded_on_the_left((9,))[0] % 30
    with torch.no_grad():
        assert torch.equal(load_increments(delta)(tokens).logits, from_pretrained(folder / 'two')(tokens).logits)
