"""Show what a scaled model is made of and what it costs.

    scalenet inspect deit_b
    scalenet inspect configs/scalenet_swin_t_100e.py --json
    scalenet inspect swin_b --scale "dict(times=3, adjust=dict(type='LoRA', rank=8))"

Prints the layer map, the parameters by role, FLOPs and the size of a saved file, beside the unscaled network (times=1,
no adjustments) and the unshared deep one (as deep, every layer with tensors of its own, no adjustments).
No weights are made: large models take no memory.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config

from ..compat import read_config
from ..core.roles import Role, total
from ..core.tying import TiedLayers
from ..models.build import names_config
from ..models.counts import Report, adjustments, inspect
from ..models.layer_table import draw_maps
from ..runner.slips import refuse_slips
from ..tables import format_table
from .cfg_options import CfgOptions
from .main import command_parser
from .numbers import at_least_one

MEANING = {
    Role.SHARED: 'held by several layer instances',
    Role.NORM: 'every instance has its own',
    Role.ADJUSTMENT: 'adapters, LoRA, gates',
    Role.GROWN: 'new layers with tensors of their own',
    Role.OUTER: 'embeddings, layers used once, head',
}


def role_table(report: Report) -> str:
    rows = [
        (f'{role}: {MEANING[role]}', uses if uses > 1 else '-', c.tensors, c.params, c.trainable, c.uses)
        for (role, uses), c in report.roles.items()
    ]
    every = total(report.roles.values())
    rows.append(('total', '', every.tensors, every.params, every.trainable, every.uses))
    return format_table(('role', 'shared by', 'tensors', 'parameters', 'trained', 'if unshared'), rows)


def cost_table(report: Report) -> str:
    this, *_ = report.networks.values()
    rows = [
        (
            name,
            cost.params,
            f'{this.params / cost.params:.3f}',
            f'{cost.flops / 1e9:.2f}',
            f'{cost.flops_with_adjustments / 1e9:.2f}',
            f'{this.flops_with_adjustments / cost.flops_with_adjustments:.3f}',
            f'{cost.bytes / 1e6:.1f}',
        )
        for name, cost in report.networks.items()
    ]
    head = ('', 'parameters', 'ratio', 'GFLOPs', 'with adjustments', 'ratio', 'saved MB')
    return format_table(head, rows)


def as_text(report: Report) -> str:
    height, width = report.input_size
    policy = {
        'increments': 'adjustments and the norms of the scaled network',
        'adjustments': 'adjustments',
        'all': 'everything',
    }[report.policy.train]
    also = f', besides {", ".join(report.policy.also)}' if report.policy.also else ''
    tied = any(isinstance(layers, TiedLayers) for layers in report.layers.values())
    maps = {name: layers.layer_map for name, layers in report.layers.items()}
    return '\n'.join(
        [
            f'{report.model}, input {height} x {width}',
            '',
            'Layer map (source = the pretrained layer whose tensors an instance uses; * = shared with an earlier '
            'instance)'
            if tied
            else 'Layer map (source = the layer that an instance starts from; * = a new layer, nothing is shared)',
            draw_maps(maps, {name: adjustments(layers) for name, layers in report.layers.items()}),
            '',
            f'Parameters by role, each tensor once (trained: {policy}{also})',
            role_table(report),
            '',
            f'Cost (FLOPs of the {report.flops_of}: multiply-adds of one image in matrix products and convolutions;',
            'MB = 10^6 bytes; ratio = this network : that one)',
            cost_table(report),
            '',
            *['Sharing saves parameters, not arithmetic: the FLOPs are those of the deep network.'] * tied,
        ]
    )


def a_dict(text: str) -> dict[str, Any]:
    """The ``type`` of an option that is a dict as a config has it."""
    try:
        found = Config.fromstring(f'found = ({text})', '.py').to_dict()['found']
    except Exception:  # whatever Python says of what was typed
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f'must be a dict as a config has it, such as "dict(times=2)", got {text}')
    return found


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser(
        __doc__, epilog='--json: FLOPs in multiply-adds, sizes in bytes, parameters as counts, layers 0-based.'
    )
    parser.add_argument('config', help='config file, or a short name: deit_{t,s,b}, swin_{t,s,b}')
    parser.add_argument('--json', action='store_true', help='print JSON')
    parser.add_argument('--input-size', nargs=2, type=at_least_one, metavar=('H', 'W'), help="default: the model's")
    parser.add_argument(
        '--cfg-options', nargs='+', action=CfgOptions, help='settings that replace those of the config, as key=value'
    )
    parser.add_argument(
        '--scale', type=a_dict, metavar='DICT', help="replaces the config's scale, as written in a config"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    try:
        model = args.config
        if args.cfg_options:
            if not names_config(model):
                raise ValueError(
                    f'--cfg-options replaces settings of a config file, and {model} is the short name of a model; name '
                    'a config, such as configs/scalenet_swin_t_100e.py, or give --scale alone.'
                )
            model = read_config(model)
            refuse_slips(model, args.config, args.cfg_options)
            model.merge_from_dict(args.cfg_options)
        report = inspect(model, args.scale, args.input_size and tuple(args.input_size))
    except TypeError as error:  # of what was typed
        raise ValueError(str(error)) from error
    print(json.dumps(report.to_json(), indent=1) if args.json else as_text(report))
