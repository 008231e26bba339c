"""The breaks that ``mutations.py`` applies, each with the test that must fail. How to add one: README.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """A small break of the kind a careless change would make.

    Attributes:
        decision: number of the decision of the design that it breaks, or a group: 'resume', 'configs', 'delta', 'interop', 'data', 'seeing',
            'study', 'ops', 'bench'.
        what: the break in a few words.
        file: path from the root of the checkout.
        old: source text that occurs exactly once in ``file``.
        new: what stands there instead.
        test: pytest node id of the test that must fail.
    """

    decision: str
    what: str
    file: str
    old: str
    new: str
    test: str


LAYER_MAP = 'scalenet_mm/layer_map.py'
ADAPTERS = 'scalenet_mm/adapters.py'
HOSTS = 'scalenet_mm/hosts.py'
SCALING = 'scalenet_mm/scaling.py'
ROLES = 'scalenet_mm/roles.py'
SCALED = 'scalenet_mm/backbones/scaled.py'
BLOCKS = 'scalenet_mm/ops/blocks.py'
SWIN = 'scalenet_mm/backbones/swin.py'
DEIT = 'scalenet_mm/backbones/deit.py'
DENSE = 'scalenet_mm/backbones/dense_args.py'
DIALECTS = 'scalenet_mm/checkpoint/dialects.py'
READING = 'scalenet_mm/checkpoint/reading.py'
STRICT = 'scalenet_mm/checkpoint/strict.py'
OPTIM = 'scalenet_mm/engine/optim.py'
HOOKS = 'scalenet_mm/engine/hooks.py'
RESUME = 'scalenet_mm/engine/resume.py'
WRAPPER = 'scalenet_mm/engine/wrapper.py'
SHARDING = 'scalenet_mm/sharding.py'
ATOMIC = 'scalenet_mm/engine/atomic.py'
DELTA = 'scalenet_mm/checkpoint/delta.py'
COMPAT = 'scalenet_mm/compat.py'
EXPORT = 'scalenet_mm/export.py'

T_LAYER_MAP = 'tests/test_layer_map.py::'
T_ADAPTERS = 'tests/test_adapters.py::'
T_SCALING = 'tests/test_scaling.py::'
T_ROLES = 'tests/test_roles.py::'
T_BACKBONES = 'tests/test_backbones.py::'
T_DIALECTS = 'tests/test_dialects.py::'
T_CONVERT = 'tests/test_convert_checkpoint.py::'
T_ENGINE = 'tests/test_engine.py::'
T_RESUME = 'tests/test_resume.py::'
T_DISTRIBUTED = 'tests/test_distributed.py::'
T_ATOMIC = 'tests/test_atomic.py::'
T_DELTA = 'tests/test_delta.py::'
T_INTEROP = 'tests/test_interop.py::'
T_LOAD_RULE = 'tests/test_load_rule.py::'
T_EXPORT = 'tests/test_export.py::'
T_QUICKSTART = 'tests/test_quickstart.py::'
T_DENSE = 'tests/test_dense_configs.py::'
T_OPS = 'tests/test_ops.py::'
T_BENCH = 'tests/test_benchmark.py::'
T_STARTUP = 'tests/test_startup.py::'

MUTATIONS = (
    # 1. One tensor, one key
    Mutation(
        '1',
        'tied keys stay in the state dict',
        SCALING,
        'state_dict.pop(prefix + key, None)',
        'state_dict.get(prefix + key, None)',
        T_SCALING + 'test_one_tensor_one_key[timm ViT]',
    ),
    Mutation(
        '1',
        'buffers are not shared',
        SCALING,
        'module._buffers.update(_persistent(owners[owner][name]))',
        'pass',
        T_SCALING + 'test_instances_hold_their_sources_buffers',
    ),
    Mutation(
        '1',
        'the last instance owns the keys in a file',
        SCALING,
        'own = layer_map.owner(i) == i\n',
        'own = layer_map.instances(source)[-1] == i\n',
        T_SCALING + 'test_an_unscaled_state_dict_loads_with_norms_copied[timm ViT]',
    ),
    Mutation(
        '1',
        'the optimizer gets a shared tensor once an instance',
        COMPAT,
        "params[:] = [g for g in params if first[id(g['params'][0])] is g]",
        'pass',
        T_ENGINE + 'test_the_optimizer_holds_the_trainable_set_once',
    ),
    Mutation(
        '1',
        'a shared tensor counts once an instance',
        ROLES,
        'Count(1, n, n if p.requires_grad else 0, n * uses[id(p)])',
        'Count(1, n * uses[id(p)], n if p.requires_grad else 0, n * uses[id(p)])',
        T_ROLES + 'test_counts_are_of_unique_parameters',
    ),
    # 2. Ties survive
    Mutation(
        '2',
        '.to() and .half() do not tie again',
        SCALING,
        'super()._apply(fn, recurse)\n        self.retie()',
        'super()._apply(fn, recurse)',
        T_SCALING + 'test_ties_survive[timm ViT-swap on conversion]',
    ),
    Mutation(
        '2',
        'to_empty() loses the ties',
        SCALING,
        'super()._apply(fn, recurse)\n        self.retie()',
        'super()._apply(fn, recurse)',
        T_SCALING + 'test_ties_hold_right_after_to_empty',
    ),
    Mutation(
        '2',
        'a load does not tie again',
        SCALING,
        'def _after_load(layers, incompatible_keys) -> None:\n    layers.retie()',
        'def _after_load(layers, incompatible_keys) -> None:\n    pass',
        T_SCALING + 'test_ties_survive[timm ViT-load_state_dict assign]',
    ),
    Mutation(
        '2',
        'pickle is not told how to make the class',
        SCALING,
        'def __reduce__(self):',
        'def _reduce(self):',
        T_SCALING + 'test_ties_survive[timm ViT-pickle]',
    ),
    Mutation(
        '2',
        'the load hook is a closure: copies mend the original',
        SCALING,
        'layers.register_load_state_dict_post_hook(_after_load)',
        'layers.register_load_state_dict_post_hook(lambda _, keys: _after_load(layers, keys))',
        T_SCALING + 'test_ties_survive[timm ViT-load_state_dict assign]',
    ),
    Mutation(
        '2',
        'the state-dict hook is a closure: pickle refuses it',
        SCALING,
        'layers._register_state_dict_hook(_one_tensor_one_key)',
        'layers._register_state_dict_hook(lambda _, *args: _one_tensor_one_key(layers, *args))',
        T_SCALING + 'test_ties_survive[timm ViT-torch.save]',
    ),
    Mutation(
        '2',
        'wrapping a linear copies its weight',
        ADAPTERS,
        'k: copy.copy(v)',
        'k: copy.deepcopy(v)',
        T_ADAPTERS + 'test_the_wrapper_keeps_parameters_hooks_and_keys',
    ),
    # 3. An unscaled pretrained checkpoint loads by itself
    Mutation(
        '3',
        'only the owner gets the norms of its source',
        SCALING,
        '.clone() if name in own else None',
        '.clone() if name not in own else None',
        T_SCALING + 'test_an_unscaled_state_dict_loads_with_norms_copied[mmpretrain ViT]',
    ),
    Mutation(
        '3',
        'norms of one source are one tensor after assign',
        SCALING,
        'return by_source[self.layer_map.sources[instance]].clone()',
        'return by_source[self.layer_map.sources[instance]]',
        T_SCALING + 'test_norms_are_tensors_of_their_own_after_loading_with_assign',
    ),
    Mutation(
        '3',
        'layers keep the index they have in the file',
        SCALING,
        "state_dict[f'{prefix}{i}.{rest}'] = value",
        "state_dict[f'{prefix}{source}.{rest}'] = value",
        T_SCALING + 'test_an_unscaled_state_dict_loads_with_norms_copied[torch encoder]',
    ),
    Mutation(
        '3',
        'adapters are missing in an expanded file',
        SCALING,
        'state_dict.update({prefix + k: v for k, v in adjustments.items()})',
        'pass',
        T_BACKBONES + 'test_the_scaled_net_equals_the_deep_host_of_copied_layers[swin-None-depth0]',
    ),
    Mutation(
        '3',
        'keys are not translated before the layers move',
        SCALED,
        'entries = to_host(split(entries)[0] if not prefix else entries, self.host)',
        'entries = split(entries)[0] if not prefix else entries',
        T_DIALECTS
        + 'test_scaled_deit_equals_the_deep_host_of_copied_layers_in_each_dialect[official]',
    ),
    Mutation(
        '3',
        'init_weights() ignores the checkpoint',
        SCALED,
        "for cfg in pretrained:\n            self.load_pretrained(cfg['checkpoint'], cfg.get('prefix'))",
        'pass',
        T_DIALECTS
        + 'test_scaled_deit_equals_the_deep_host_of_copied_layers_in_each_dialect[mmseg]',
    ),
    Mutation(
        '3',
        'load_from does not translate the keys',
        HOOKS,
        'for_model(unwrap(checkpoint), model)',
        'unwrap(checkpoint)',
        T_ENGINE + 'test_load_from_takes_an_official_file',
    ),
    Mutation(
        '3',
        "Swin's patch merging keeps the order of its file",
        DIALECTS,
        '(4, -1))[..., [0, 2, 1, 3], :]',
        '(4, -1))[..., [0, 1, 2, 3], :]',
        T_DIALECTS + 'test_patch_merging_is_permuted_so_that_unfold_and_concatenation_agree',
    ),
    Mutation(
        '3',
        'bias tables are not resized to the window',
        SWIN,
        'elif key in tables:',
        'elif False:',
        T_BACKBONES + 'test_sizes_are_adapted_on_loading',
    ),
    # 4. Strict
    Mutation(
        '4',
        'keys are not compared before the load',
        SCALED,
        'self.register_load_state_dict_pre_hook(require_exact_keys)',
        'pass',
        T_BACKBONES + 'test_mmengines_lenient_loading_is_strict_too[deit]',
    ),
    Mutation(
        '4',
        'every key may be missing',
        SCALED,
        '(may_miss & set(expected))',
        'set(expected)',
        T_BACKBONES + 'test_mmengines_lenient_loading_is_strict_too[swin]',
    ),
    Mutation(
        '4',
        'shapes are not compared',
        STRICT,
        'if k in got and got[k].shape != Size(s)',
        'if k in got and got[k].ndim != len(s)',
        T_BACKBONES + 'test_a_file_that_does_not_fit_is_refused_before_anything_changes[deit]',
    ),
    Mutation(
        '4',
        'the map is not stored',
        SCALING,
        "local_metadata['layer_map'] = list(layers.layer_map.sources)",
        'pass',
        T_SCALING + 'test_a_file_of_another_map_with_the_same_keys_is_refused',
    ),
    Mutation(
        '4',
        'the stored map is not compared',
        SCALING,
        'not in known:',
        'not in (None, tuple(stored or ())):',
        T_SCALING + 'test_a_file_of_another_map_with_the_same_keys_is_refused',
    ),
    Mutation(
        '4',
        'the backbone leaves the map to its containers, too late',
        SCALED,
        'check_stored_map(stored.get(name), layers.layer_map, prefix + name)',
        'pass',
        T_BACKBONES + 'test_a_file_of_another_map_is_refused_before_anything_changes[deit]',
    ),
    Mutation(
        '4',
        'the backbone does not store its maps',
        SCALED,
        'self._register_state_dict_hook(store_layer_maps)',
        'pass',
        T_BACKBONES + 'test_a_file_of_another_map_is_refused_before_anything_changes[swin]',
    ),
    Mutation(
        '4',
        'a safetensors file loses the map',
        READING,
        "OrderedDict(json.loads(header.pop('_metadata', '{}')))",
        'OrderedDict()',
        T_CONVERT + 'test_the_layer_map_of_a_scaled_file_survives_in_both_formats',
    ),
    Mutation(
        '4',
        'bias tables of another order are taken',
        DIALECTS,
        'if tensor.shape != expected.shape or not torch.equal(tensor.cpu().long(), expected):',
        'if tensor.shape != expected.shape:',
        T_DIALECTS + 'test_foreign_files_are_refused_by_name',
    ),
    Mutation(
        '4',
        'independent copies load, all but the last one lost',
        SCALING,
        'return a is b or (a.shape == b.shape and torch.equal(a, b))',
        'return a is b or a.shape == b.shape',
        T_SCALING + 'test_a_file_of_an_independent_copy_network_is_refused[timm ViT]',
    ),
    # 5. times=1 with untouched adapters is the host, bit for bit
    Mutation(
        '5',
        'adapters start with a small B instead of zero',
        ADAPTERS,
        'nn.init.zeros_(self.up)',
        'nn.init.normal_(self.up, std=1e-3)',
        T_SCALING + 'test_times_1_reproduces_the_host_bit_for_bit[mmpretrain Swin]',
    ),
    Mutation(
        '5',
        'norms are tied as well',
        SCALING,
        'if is_norm(block) or isinstance(block, Adjustment):',
        'if isinstance(block, Adjustment):',
        T_SCALING + 'test_keys_of_source_layers_are_the_hosts_own',
    ),
    Mutation(
        '5',
        'adapters are tied as well',
        SCALING,
        'if is_norm(block) or isinstance(block, Adjustment):',
        'if is_norm(block):',
        T_SCALING + 'test_one_tensor_one_key[mmpretrain ViT]',
    ),
    Mutation(
        '5',
        'rows and columns of relative positions are swapped',
        SWIN,
        'return rows * (2 * window - 1) + columns',
        'return columns * (2 * window - 1) + rows',
        T_BACKBONES + 'test_times_1_reproduces_the_host_bit_for_bit_at_any_size[swin-size2]',
    ),
    Mutation(
        '5',
        'small maps are not padded as mmdet does',
        DENSE,
        "{'pad_small_map': True}",
        "{'pad_small_map': False}",
        T_BACKBONES + 'test_the_arguments_of_mmdets_swin_are_understood[changed0]',
    ),
    Mutation(
        '5',
        "torch's encoder keeps its fast path past the adapters",
        HOSTS,
        "{'activation_relu_or_gelu': 0}",
        '{}',
        T_SCALING + 'test_adapters_act_on_every_host_in_eval_mode[torch encoder]',
    ),
    # 6. One rule gives every parameter its role
    Mutation(
        '6',
        'a name makes an adjustment',
        ROLES,
        'for module in model.modules():\n'
        '        for p in module.parameters(recurse=False):\n'
        '            if isinstance(module, Adjustment):',
        'for path, module in model.named_modules():\n'
        '        for p in module.parameters(recurse=False):\n'
        "            if 'adapter' in path:",
        T_ROLES + 'test_names_do_not_decide',
    ),
    Mutation(
        '6',
        "a head's norm is an increment",
        ROLES,
        'elif is_norm(module) and id(module) in in_host:',
        'elif is_norm(module):',
        T_ROLES + 'test_norms_of_a_head_are_not_increments',
    ),
    Mutation(
        '6',
        'a layer used once counts as shared',
        ROLES,
        'if uses[id(p)] > 1 else',
        'if uses[id(p)] > 0 else',
        T_ROLES + 'test_every_parameter_has_one_role_by_what_holds_it',
    ),
    Mutation(
        '6',
        "only torch's LayerNorm is a norm",
        SCALING,
        "return isinstance(module, NORMS) or type(module).__name__.rstrip('123dD').endswith('Norm')",
        'return isinstance(module, nn.LayerNorm)',
        T_SCALING + 'test_norms_of_other_libraries_are_norms',
    ),
    Mutation(
        '6',
        'patterns match anywhere in a name',
        ROLES,
        'return len(wanted) <= len(parts) and all(map(fnmatchcase, parts, wanted))',
        'return pattern in name',
        T_ROLES + 'test_patterns_add_to_the_policy_by_whole_path_components',
    ),
    # 7. Frozen before DDP wraps (here: on a single process)
    Mutation(
        '7',
        'the constructor groups without freezing',
        WRAPPER,
        '    policy.apply(bare)\n',
        '    pass\n',
        T_ENGINE + 'test_the_optimizer_holds_the_trainable_set_once',
    ),
    Mutation(
        '7',
        'any wrapper is built again',
        WRAPPER,
        'if type(wrapper) not in REBUILT:',
        'if False:',
        T_DISTRIBUTED + 'test_a_wrapper_passes_or_is_refused_at_the_start_with_the_remedy[own]',
    ),
    Mutation(
        '7',
        'a plain DDP keeps the buckets of before the freezing',
        WRAPPER,
        '        _rebuild(model)\n',
        '        pass\n',
        T_DISTRIBUTED + 'test_the_constructor_alone_trains_a_segmentor_under_plain_ddp',
    ),
    Mutation(
        '7',
        'our wrapper wraps without freezing',
        WRAPPER,
        '        TrainPolicy.from_cfg(policy).apply(module)\n',
        '        pass\n',
        T_DISTRIBUTED + 'test_a_wrapper_passes_or_is_refused_at_the_start_with_the_remedy[ours]',
    ),
    Mutation(
        '2',
        'blocks sharded one by one pass',
        SHARDING,
        'if held.get(a) is not held.get(b)]',
        'if a not in held]',
        T_DISTRIBUTED
        + 'test_a_wrapper_passes_or_is_refused_at_the_start_with_the_remedy[FSDP2 of blocks]',
    ),
    Mutation(
        'configs',
        'mmseg:: is not registered before it is read',
        'configs/_base_/register.py',
        "__import__('scalenet_mm')  #",
        '#',
        T_DENSE + 'test_mmsegs_configs_are_found_by_a_program_that_knows_nothing_of_scalenet',
    ),
    Mutation(
        'configs',
        "the evaluator's annotations do not follow the root",
        'configs/_base_/scalenet_coco_1x.py',
        "ann_file=data_root + 'annotations/instances_val2017.json'",
        "ann_file='data/coco/annotations/instances_val2017.json'",
        T_DENSE
        + 'test_a_dataset_root_is_set_once_and_reaches_every_place[mask_rcnn_scalenet_swin_t_1x.py]',
    ),
    Mutation(
        'configs',
        'P6 of the simple feature pyramid is rounded down',
        'scalenet_mm/backbones/simple_fpn.py',
        'ceil_mode=True',
        'ceil_mode=False',
        T_DENSE + 'test_a_simple_feature_pyramid_covers_maps_of_any_size_at_strides_4_to_64[size1]',
    ),
    Mutation(
        '7',
        'train() wakes frozen BatchNorm and drop-out',
        ROLES,
        'leaf.register_forward_pre_hook(_stay_in_eval)',
        'pass',
        T_ROLES + 'test_frozen_leaves_stay_in_eval_after_train',
    ),
    Mutation(
        '7',
        'drop path beside frozen weights is frozen too',
        ROLES,
        'elif id(leaf) not in in_host and frozen',
        'elif frozen',
        T_ROLES + 'test_frozen_leaves_stay_in_eval_after_train',
    ),
    Mutation(
        '7',
        'activation checkpointing is reentrant',
        BLOCKS,
        'use_reentrant=False',
        'use_reentrant=True',
        T_BACKBONES + 'test_checkpointed_blocks_train_behind_frozen_embeddings[deit]',
    ),
    # 8. Function-preserving start
    Mutation(
        '8',
        'gates start at one',
        ADAPTERS,
        'self.scale = nn.Parameter(torch.zeros(()))',
        'self.scale = nn.Parameter(torch.ones(()))',
        T_BACKBONES + 'test_the_function_preserving_start_is_the_pretrained_function[deit-stack]',
    ),
    Mutation(
        '8',
        'the gate scales the adapter as well',
        ADAPTERS,
        'if self.gate is not None:\n'
        '            y = self.gate(y)\n'
        '        return y if self.adapter is None or low_rank else y + self.adapter(x)',
        'if self.adapter is not None and not low_rank:\n'
        '            y = y + self.adapter(x)\n'
        '        return y if self.gate is None else self.gate(y)',
        T_ADAPTERS + 'test_gate_scales_the_linear_and_not_the_adapter',
    ),
    Mutation(
        '8',
        'the live instance has the wrong window shift',
        LAYER_MAP,
        'i > after and (i - source) % period == 0',
        'i > after',
        T_BACKBONES
        + 'test_the_function_preserving_start_is_the_pretrained_function[swin-interpolate]',
    ),
    Mutation(
        '8',
        'gates are decayed',
        OPTIM,
        'if id(p) in gates:',
        'if False:',
        T_ENGINE + 'test_groups_are_merged_by_setting',
    ),
    Mutation(
        '8',
        'it is the default, not the paper',
        DEIT,
        "start='paper',\n        growth",
        "start='function',\n        growth",
        T_BACKBONES + 'test_the_scaled_net_equals_the_deep_host_of_copied_layers[deit-None-6]',
    ),
    # Exact resume
    Mutation(
        'resume',
        'an iteration goes on with the generators as they are',
        RESUME,
        'seed_everything(MAIN, runner.seed, runner.iter, get_rank())',
        'pass',
        T_ENGINE + 'test_an_iterations_randomness_depends_on_its_number_only',
    ),
    Mutation(
        'resume',
        'every iteration gets the same seed',
        RESUME,
        'seed_everything(MAIN, runner.seed, runner.iter, get_rank())',
        'seed_everything(MAIN, runner.seed, get_rank())',
        T_ENGINE + 'test_an_iterations_randomness_depends_on_its_number_only',
    ),
    Mutation(
        'resume',
        "a sample is drawn with the worker's generators",
        RESUME,
        'seed_everything(*index.key)',
        'pass',
        T_RESUME + 'test_a_samples_randomness_depends_on_its_place_only',
    ),
    Mutation(
        'resume',
        'samples are augmented alike in every epoch',
        RESUME,
        'get_rank(), epoch, position)',
        'get_rank(), position)',
        T_RESUME + 'test_a_samples_randomness_depends_on_its_place_only',
    ),
    # Deltas and checkpoints that survive a kill
    Mutation(
        'delta',
        'the better best checkpoint is written after the old one is removed',
        ATOMIC,
        '        self.file_backend = later\n',
        '',
        T_ATOMIC + 'test_the_best_checkpoint_is_removed_after_the_better_one_is_written',
    ),
    Mutation(
        'delta',
        'any base is taken',
        DELTA,
        '    if wrong or fingerprint(found) != delta.fingerprint:',
        '    if False:',
        T_DELTA + 'test_another_base_is_refused_by_the_names_of_its_tensors',
    ),
    Mutation(
        'delta',
        'a frozen tensor that the base lacks is left out',
        'scalenet_mm/engine/delta_hook.py',
        "{*record['new']} | ",
        '',
        T_DELTA + 'test_what_the_base_lacks_is_in_the_delta_although_it_is_frozen',
    ),
    Mutation(
        'delta',
        'what the base lacks is taken for what it has',
        'scalenet_mm/checkpoint/export.py',
        "            tensor.fill_(float('nan'))",
        '            pass',
        T_DELTA + 'test_an_adapter_that_training_left_at_zero_is_in_the_delta_all_the_same',
    ),
    # Other people's tools
    Mutation(
        'interop',
        "mmengine's constructor lists a shared tensor once an instance",
        COMPAT,
        "params[:] = [g for g in params if first[id(g['params'][0])] is g]",
        'pass',
        T_INTEROP
        + 'test_mask2formers_custom_keys_mean_on_every_instance_what_they_mean_on_its_source[DefaultOptimWrapperConstructor]',
    ),
    Mutation(
        'interop',
        'custom_keys that name layers count scaled layers',
        COMPAT,
        'zip(layer_map.sources, module.children())',
        'enumerate(module.children())',
        T_INTEROP
        + 'test_mask2formers_custom_keys_mean_on_every_instance_what_they_mean_on_its_source[DefaultOptimWrapperConstructor]',
    ),
    Mutation(
        'interop',
        "a script does not find its neighbours' modules",
        'scalenet_mm/run.py',
        '    sys.path[0] = str(Path(argv[0]).resolve().parent)',
        '    pass',
        T_INTEROP + 'test_the_wrapper_runs_a_script_as_python_would',
    ),
    # Your own data
    Mutation(
        'data',
        'a frozen head may be missing in load_from',
        'scalenet_mm/engine/load_rule.py',
        'if key in later or (training and _trained(model, key))}',
        'if key in later or training}',
        T_LOAD_RULE + 'test_new_classes_train_a_new_head_and_the_rest_is_the_files',
    ),
    Mutation(
        'data',
        'the load rule does not look into DDP',
        'scalenet_mm/engine/delta_hook.py',
        'while is_model_wrapper(model) or isinstance(model, BaseTTAModel):',
        'while False:',
        T_LOAD_RULE + 'test_the_rule_looks_into_ddp',
    ),
    Mutation(
        'data',
        'annotations of other class names pass',
        'scalenet_mm/engine/preflight_data.py',
        'unknown = [c for c in classes if c not in names]',
        'unknown = []',
        'tests/test_preflight.py::test_annotations_of_other_names_which_mmdet_drops_without_a_word',
    ),
    Mutation(
        'data',
        'a pattern that matches nothing names no neighbour',
        ROLES,
        "ending = [p for p in paths if p.endswith('.' + pattern)]",
        'ending = []',
        T_ROLES
        + 'test_a_pattern_that_matches_nothing_names_the_nearest_parameters[fc_cls-roi_head.bbox_head.fc_cls]',
    ),
    # Seeing it
    Mutation(
        'seeing',
        'the ONNX graph stores a transposed copy of a shared weight for each instance',
        EXPORT,
        'optimize=False,',
        'optimize=True,',
        T_EXPORT + 'test_a_deit_keeps_its_outputs_at_any_batch_and_stores_shared_tensors_once',
    ),
    Mutation(
        'seeing',
        'the mask of shifted windows is one row too early',
        EXPORT,
        '>= n - shift_size for n in',
        '>= n - window_size for n in',
        T_EXPORT + 'test_what_is_traced_computes_what_the_host_does_at_every_size',
    ),
    Mutation(
        'seeing',
        'an exception leaves the bar on the terminal',
        'scalenet_mm/engine/progress.py',
        'while len(self.open) > outer:',
        'while False:',
        'tests/test_progress.py::test_an_exception_leaves_the_terminal_clean',
    ),
    Mutation(
        'seeing',
        'objects are paired whatever their class',
        'scalenet_mm/analysis/matching.py',
        '    same = _pairs(iou * one_class)',
        '    same = _pairs(iou)',
        'tests/test_side_by_side.py::test_objects_are_paired_by_class_and_place_then_by_place',
    ),
    Mutation(
        'seeing',
        'a head may be missing in inference',
        'scalenet_mm/inference.py',
        '        check_supplied(model, state_dict, training=False)\n',
        '',
        'tests/test_inference.py::test_what_cannot_be_loaded_is_told',
    ),
    Mutation(
        'seeing',
        'a source below the floor is compared all the same',
        'tools/quickstart.py',
        '    if reached < floor:',
        '    if reached < 0:',
        T_QUICKSTART + 'test_a_source_below_the_floor_ends_the_call_with_floor_and_value',
    ),
    Mutation(
        'seeing',
        'detections of any score are drawn',
        'tools/_quickstart/tasks.py',
        'scores >= SURE',
        'scores >= 0',
        T_QUICKSTART + 'test_detections_with_a_score_below_the_threshold_are_not_drawn',
    ),
    # The paper's experiments
    Mutation(
        'study',
        'averaged layers are summed',
        'scalenet_mm/growth.py',
        'torch.stack(sampled).mean(0)',
        'torch.stack(sampled).sum(0)',
        'tests/test_growth.py::test_an_unscaled_file_fills_the_grown_network_and_its_layers_stay_themselves[swa]',
    ),
    Mutation(
        'study',
        'nothing is zeroed',
        'scalenet_mm/growth.py',
        'torch.zeros_like(own) if name',
        'own.clone() if name',
        'tests/test_growth.py::test_zero_initialised_layers_keep_the_source_function_bit_for_bit[2]',
    ),
    Mutation(
        'study',
        'new layers are no increments',
        'scalenet_mm/roles.py',
        'elif id(module) in grown:',
        'elif id(module) in ():',
        'tests/test_growth.py::test_increments_of_a_grown_network_are_its_new_layers_and_norms',
    ),
    Mutation(
        'study',
        'one layer too few',
        'scalenet_mm/growth.py',
        '-(-(target - params) // layer_params)',
        '(target - params) // layer_params',
        'tests/test_growth.py::test_adding_one_by_one_until_scalenets_size_gives_the_papers_counts[swin_t-28288354-29246818-384-stages2-30.06]',
    ),
    Mutation(
        'study',
        'equal digits count as smaller',
        'scalenet_mm/study/rank.py',
        '(digits[:, None, :] < digits[:, :, None])',
        '(digits[:, None, :] <= digits[:, :, None])',
        'tests/test_study.py::test_a_label_is_the_number_of_cells_with_a_smaller_digit',
    ),
    Mutation(
        'study',
        'no correction for many tests',
        'scalenet_mm/study/stats.py',
        '(len(p) - rank) * p[i]',
        'p[i]',
        'tests/test_study.py::test_holm_rejects_as_the_step_down_procedure_does',
    ),
    Mutation(
        'study',
        'failed runs count',
        'scalenet_mm/study/claims.py',
        "if row == k and r['status'] == 'done'",
        'if row == k',
        'tests/test_study.py::test_pairs_are_of_one_seed_and_failed_runs_do_not_count',
    ),
    Mutation(
        'study',
        'runs of other settings count as done',
        'scalenet_mm/study/pool.py',
        "r['status'] == 'done' and r['digest'] == digests.get(k)",
        "r['status'] == 'done'",
        'tests/test_study.py::test_a_record_of_other_settings_is_run_again',
    ),
    Mutation(
        'study',
        'the temperature does not weigh the loss',
        'scalenet_mm/distill.py',
        'return temperature**2 * (p.exp()',
        'return (p.exp()',
        'tests/test_distill.py::test_the_loss_on_logits_is_the_sum_of_its_definition[shape0-2.5]',
    ),
    Mutation(
        'study',
        'stacked layers match their last instance',
        'scalenet_mm/distill.py',
        'sum(i <= s for i in layer_map.sources) - 1',
        'layer_map.instances(s)[-1]',
        'tests/test_distill.py::test_stacked_layers_match_at_the_same_share_of_the_depth',
    ),
    Mutation(
        'study',
        'any file passes for the published one',
        'scalenet_mm/reproduce/run.py',
        '    if digits and not found.startswith(digits):',
        '    if not found:',
        'tests/test_reproduce.py::test_a_checkpoint_is_fetched_once_and_compared_with_its_name',
    ),
    Mutation(
        'study',
        'a part of a data set is the whole',
        'scalenet_mm/data/public.py',
        '        if found != wanted:',
        '        if not found:',
        'tests/test_reproduce.py::test_a_part_of_a_data_set_is_not_taken_for_the_whole',
    ),
    Mutation(
        'study',
        "the paper's figures are ours",
        'scalenet_mm/analysis/model_index.py',
        "**({'Results': measured} if measured else {}),",
        "**({'Results': measured or printed} if measured or printed else {}),",
        'tests/test_model_index.py::test_an_entry_is_what_its_config_says_now',
    ),
    Mutation(
        'study',
        'CKA is biased',
        'scalenet_mm/analysis/cka.py',
        'rows = k.sum(-1) / (n - 2)',
        'rows = k.sum(-1) / n',
        'tests/test_analyze.py::test_centred_gram_matrices_give_the_unbiased_estimator_by_its_definition',
    ),
    Mutation(
        'study',
        'each micro-batch counts alike',
        'scalenet_mm/analysis/gradients.py',
        'prepared(model, batch)) * n',
        'prepared(model, batch))',
        'tests/test_analyze.py::test_gradient_norms_are_those_of_one_backward_pass_over_the_whole_batch',
    ),
    Mutation(
        'study',
        'a baseline has one layer too many',
        'scalenet_mm/analysis/paper_rows.py',
        'layers_to_reach(*sizes) for model',
        'layers_to_reach(*sizes) + 1 for model',
        'tests/test_experiments.py::test_the_committed_configs_are_what_the_rows_say',
    ),
    Mutation(
        'study',
        'a config that drifted passes',
        'tools/make_configs.py',
        'elif path.read_text() != text:',
        'elif not path.read_text():',
        'tests/test_experiments.py::test_a_config_that_drifted_from_its_row_is_named',
    ),
    Mutation(
        'ops',
        'a frozen layer saves its input',
        'scalenet_mm/ops/linear.py',
        'needs_input = ctx.needs_input_grad[1] or ctx.needs_input_grad[3]',
        'needs_input = True',
        T_OPS + 'test_a_frozen_linear_layer_saves_nothing_and_an_adjusted_one_its_input_once',
    ),
    Mutation(
        'ops',
        "the adapter's part of the input gradient is left out",
        'scalenet_mm/ops/linear.py',
        'torch.addmm(dx, dz, down.to(dtype), out=dx)',
        'pass',
        T_OPS + 'test_the_gradients_of_an_adjusted_linear_layer_are_right[GELU-False]',
    ),
    Mutation(
        'ops',
        'rows and columns of the shift masks are exchanged',
        'scalenet_mm/ops/window.py',
        '2 * last[0][:, None] + 1 * last[1]',
        '1 * last[0][:, None] + 2 * last[1]',
        T_OPS + 'test_the_shift_masks_are_the_hosts[shape0]',
    ),
    Mutation(
        'ops',
        'a kept bias outlives a change of its table',
        'scalenet_mm/ops/window.py',
        '(table._version, table.data_ptr(), table.device)',
        '(table.data_ptr(), table.device)',
        T_OPS
        + 'test_a_frozen_tables_bias_is_made_once_for_all_its_instances_and_anew_when_it_changes',
    ),
    Mutation(
        'ops',
        'padding holds tokens',
        'scalenet_mm/ops/window.py',
        'return y if padding is None else y.masked_fill_(padding, 0)',
        'return y',
        T_OPS
        + 'test_every_switch_gives_the_outputs_and_gradients_of_the_plain_path[swin padded-None-increments]',
    ),
    Mutation(
        'ops',
        'nothing runs where every sample drops the branch',
        'scalenet_mm/ops/drop_path.py',
        'kept = keep.nonzero().flatten() if keep.any() else torch.zeros(1, dtype=torch.long)',
        'kept = keep.nonzero().flatten()',
        T_OPS + 'test_sparse_drop_path_equals_the_dense_one_for_a_given_mask[keep2]',
    ),
    Mutation(
        'ops',
        'kept branches are not scaled',
        'scalenet_mm/ops/drop_path.py',
        'weight = 1 / (1 - rate)',
        'weight = 1.0',
        T_OPS + 'test_sparse_drop_path_equals_the_dense_one_for_a_given_mask[keep0]',
    ),
    Mutation(
        'ops',
        'a cast outlives a change of its weight',
        'scalenet_mm/ops/gemm.py',
        'if kept.get(dtype, (None,))[0] != state:',
        'if dtype not in kept:',
        T_OPS + 'test_under_autocast_a_frozen_weight_is_cast_once_and_a_trained_one_each_time',
    ),
    Mutation(
        'ops',
        'plain leaves fast classes behind',
        'scalenet_mm/ops/__init__.py',
        '            module.__class__ = host\n',
        '            pass\n',
        T_OPS + 'test_plain_gives_every_module_its_hosts_class_and_keys_and_outputs_stay',
    ),
    Mutation(
        'ops',
        'drop path is applied by the block and by the branch',
        'scalenet_mm/ops/blocks.py',
        '    def forward(self, x: Tensor) -> Tensor:\n        return x\n',
        '    def forward(self, x: Tensor) -> Tensor:\n        return super().forward(x)\n',
        T_OPS
        + 'test_a_block_with_sparse_drop_path_leaves_a_sample_or_adds_its_scaled_branch[swin]',
    ),
    Mutation(
        'ops',
        'weights stored in bf16 are trained',
        'scalenet_mm/roles.py',
        '    if half and len(set(dtypes.values())) > 1:',
        '    if half and not dtypes:',
        T_OPS
        + 'test_frozen_weights_stored_in_bf16_are_half_as_large_and_computed_with_as_such[deit]',
    ),
    Mutation(
        'ops',
        'the attention of windows is saved with recompute',
        'scalenet_mm/ops/blocks.py',
        'ops.recompute is True',
        'False',
        T_OPS + 'test_each_degree_of_recomputation_saves_less',
    ),
    Mutation(
        'bench',
        'a round does not go back',
        'scalenet_mm/benchmark/timing.py',
        'for name in (*runs, *reversed(runs)):',
        'for name in (*runs, *runs):',
        T_BENCH + 'test_a_round_goes_through_the_runs_and_back',
    ),
    Mutation(
        'bench',
        'what a step makes anew counts as a constant',
        'scalenet_mm/benchmark/memory.py',
        'if at not in before[1])',
        'if at)',
        T_BENCH + 'test_cached_constants_and_buffers_are_not_of_the_step_but_what_is_rebuilt_is',
    ),
    Mutation(
        'bench',
        'a speed is told without parity',
        'scalenet_mm/benchmark/run.py',
        '    if broken:\n',
        '    if broken and False:\n',
        T_BENCH + 'test_a_row_without_parity_tells_the_difference_and_no_speed',
    ),
    Mutation(
        'bench',
        'a difference that is no number passes',
        'scalenet_mm/benchmark/parity.py',
        'key=lambda name: _nan_last(differences[name])',
        'key=differences.get',
        T_BENCH + 'test_a_difference_that_is_not_a_number_is_no_parity',
    ),
    Mutation(
        'bench',
        "a delta's header counts",
        'scalenet_mm/benchmark/counted.py',
        'return (file - HEADER) / trainable',
        'return file / trainable',
        T_BENCH + 'test_a_delta_file_may_have_64_kilobytes_beside_its_tensors',
    ),
    Mutation(
        'bench',
        'the frozen stock detector trains everything',
        'scalenet_mm/benchmark/detectors.py',
        'p.requires_grad_(name in trained)',
        'p.requires_grad_(True)',
        T_STARTUP + 'test_the_frozen_stock_detector_trains_what_ours_does_but_the_adapters',
    ),
    Mutation(
        'bench',
        'importing the package imports onnx',
        'scalenet_mm/__init__.py',
        'from importlib.util import find_spec\n',
        'from importlib.util import find_spec\n\nimport onnx\n',
        T_STARTUP
        + 'test_importing_the_package_adds_little_time_and_no_heavy_module_to_what_the_hosts_import',
    ),
    Mutation(
        'ops',
        'places beyond the window get attention',
        'scalenet_mm/ops/triton_window.py',
        "    s = tl.where((j < N)[None, :], s, float('-inf'))\n",
        '',
        'tests/test_triton_window.py::test_the_kernels_equal_the_reference_with_gradients[window 3, shifted, whole-pad]',
    ),
    Mutation(
        'ops',
        "the softmax's gradient lacks its row sum",
        'scalenet_mm/ops/triton_window.py',
        '(p * (dp - tl.sum(p * dp, 1)[:, None]) * scale)',
        '(p * dp * scale)',
        'tests/test_triton_window.py::test_the_kernels_equal_the_reference_with_gradients[window 3, shifted, whole-pad]',
    ),
    Mutation(
        'ops',
        'a bias that is trained is taken',
        'scalenet_mm/ops/triton_window.py',
        "for name, x in ('bias', bias), ('pad', pad):",
        "for name, x in (('pad', pad),):",
        "tests/test_triton_window.py::test_what_the_kernels_cannot_do_is_refused[bias-no gradient to bias, which requires one; use method 'matmul']",
    ),
    Mutation(
        'ops',
        'constants made in inference mode stay so',
        'scalenet_mm/ops/window.py',
        'with torch.inference_mode(False), torch.no_grad():',
        'with torch.no_grad():',
        T_OPS + 'test_what_inference_mode_kept_serves_training[False]',
    ),
    Mutation(
        'hosts',
        'drop-path rates are copied, not drawn out',
        'scalenet_mm/positions.py',
        'rate = was[low][0] * (1 - (at - low)) + was[high][0] * (at - low)',
        'rate = was[low][0]',
        'tests/test_hosts.py::test_the_scaled_net_is_the_deep_net_that_the_host_builds[timm ViT]',
    ),
    Mutation(
        'hosts',
        "a part's config leaves the whole's",
        'scalenet_mm/positions.py',
        'setattr(module, attribute, copy.deepcopy(value, memo))',
        'setattr(module, attribute, copy.deepcopy(value))',
        'tests/test_live.py::test_the_config_of_a_part_is_deepened_inside_the_config_of_the_whole',
    ),
    Mutation(
        'hosts',
        'every tower is touched',
        'scalenet_mm/live.py',
        'found = {name: everything[name] for name in names if towers[name] in touched}',
        'found = everything',
        'tests/test_live.py::test_two_towers_need_stages_and_only_the_named_one_is_touched',
    ),
    Mutation(
        'hosts',
        'quantised linears are found out midway',
        'scalenet_mm/live.py',
        'AdaptedLinear.wrap(getattr(holder, name))',
        'pass',
        'tests/test_live.py::test_quantised_linears_are_refused_before_anything_is_changed',
    ),
    Mutation(
        'hosts',
        'a delta leaves out adjustments that are zero',
        'scalenet_mm/checkpoint/live.py',
        'if name in own or mine[name] != theirs.get(name)]',
        'if mine[name] != theirs.get(name)]',
        'tests/test_hosts.py::test_the_source_and_a_delta_are_the_trained_model[timm ViT]',
    ),
    Mutation(
        'backbones',
        'registers are taken for patches',
        'scalenet_mm/backbones/live.py',
        'y[:, -h * w :].unflatten(1, (h, w))',
        'y[:, : h * w].unflatten(1, (h, w))',
        'tests/test_live_backbones.py::test_each_output_type_is_what_its_name_says',
    ),
    Mutation(
        'backbones',
        'any layer map is taken',
        'scalenet_mm/backbones/live.py',
        "maps = {f'net.{k}': m['layer_map'] for k, m in metadata.items() if 'layer_map' in m}",
        'maps = {}',
        'tests/test_live_backbones.py::test_a_scaled_file_loads_only_into_its_own_layer_map',
    ),
    Mutation(
        'backbones',
        'positions keep their grid',
        'scalenet_mm/backbones/libraries.py',
        'return dict(convert(dict(entries), like, **options))',
        'return dict(entries)',
        'tests/test_live_backbones.py::test_positions_are_resampled_as_timm_does_it',
    ),
    Mutation(
        'lm',
        'the prompt is learnt as well',
        'scalenet_mm/lm/alpaca.py',
        'labels = [*[IGNORED] * len(before), *after,',
        'labels = [*before, *after,',
        'tests/test_lm.py::test_the_loss_is_that_of_the_response_and_its_end_alone',
    ),
    Mutation(
        'lm',
        'increments are trained in bfloat16',
        'scalenet_mm/lm/training.py',
        '        p.data = p.data.float()',
        '        pass',
        'tests/test_lm.py::test_frozen_weights_stay_in_bfloat16_while_increments_are_trained_in_float32',
    ),
    Mutation(
        'lm',
        'a tied output layer is not filled',
        'scalenet_mm/lm/saving.py',
        '            state[name] = state[by_tensor[id(tensor)]]',
        '            pass',
        'tests/test_lm.py::test_a_saved_model_is_read_back_to_the_bit_with_its_ties',
    ),
    Mutation(
        'lm',
        'instances share a place in the cache',
        'scalenet_mm/positions.py',
        'setattr(module, INDEX, i)',
        'pass',
        'tests/test_lm.py::test_cached_generation_equals_uncached_token_for_token_also_in_left_padded_batches',
    ),
    Mutation(
        'lm',
        'one right word is enough',
        'scalenet_mm/lm/toy_study.py',
        '| ~asked).all(1)',
        '| ~asked).any(1)',
        'tests/test_lm.py::test_the_score_is_perplexity_and_the_share_that_greedy_decoding_answers',
    ),
    Mutation(
        'elastic',
        'window shifts are not looked at',
        'scalenet_mm/elastic.py',
        'layers.layer_map.live(period(layers))',
        'layers.layer_map.live()',
        'tests/test_elastic.py::test_windows_shift_as_in_the_source',
    ),
    Mutation(
        'elastic',
        'skipped instances have no gradient under DDP',
        'scalenet_mm/elastic.py',
        '    if shared.zero_gradients and block.training:',
        '    if False:',
        'tests/test_elastic.py::test_random_depth_trains_under_ddp_where_plain_skipping_does_not',
    ),
    Mutation(
        'elastic',
        'a skipped block returns a tensor always',
        'scalenet_mm/elastic.py',
        '        return x if self.outputs is None else (x, *[None] * (self.outputs - 1))',
        '        return x',
        'tests/test_elastic.py::test_at_the_source_depth_untouched_adapters_give_the_source_bit_for_bit[HF Swin stack]',
    ),
    Mutation(
        'elastic',
        'states of other samples are taken over',
        'scalenet_mm/early_exit.py',
        'states[run.kept][left]',
        'states[run.kept][: len(left)]',
        'tests/test_elastic.py::test_every_sample_has_the_result_of_the_depth_it_stopped_at[stack]',
    ),
    Mutation(
        'elastic',
        'earlier passes cost nothing',
        'scalenet_mm/early_exit.py',
        '.cumsum(0)',
        '',
        'tests/test_elastic.py::test_multiply_adds_are_those_that_count_flops_finds_in_networks_of_these_blocks',
    ),
)
