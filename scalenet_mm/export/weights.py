"""How a graph stores its weights: transposed once for all that share them, as half floats, or as int8."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..compat import quiet

if TYPE_CHECKING:  # an optional dependency
    import onnx_ir as ir

STORED = ('float32', 'fp16', 'int8')
LEAST = 1024  # bytes of a tensor from which half of it is worth a cast


def nbytes(model: ir.Model) -> int:
    """Of the tensors in a graph."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values())


def transpose_once(model: ir.Model) -> None:
    """Stores a linear layer's weight as its product reads it, in place of one transpose for each layer instance.

    onnxruntime would keep the result of each, and its quantizer knows products with stored tensors alone.
    """
    import onnx_ir.passes.common as passes
    from onnxscript.optimizer import fold_constants

    passes.CommonSubexpressionEliminationPass()(model)
    for node in model.graph:
        source = node.inputs[0] if node.op_type == 'Transpose' else None
        if source is not None and source.is_initializer() and [*node.attributes['perm'].as_ints()] == [1, 0]:
            node.outputs[0].name = f'{source.name}.T'
    fold_constants(
        model,
        onnx_shape_inference=False,
        input_size_limit=2**40,
        output_size_limit=2**40,
        should_fold=lambda node: node.op_type == 'Transpose',
    )
    passes.RemoveUnusedNodesPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)  # a stack trace for each node


def round_to_half(model: nn.Module) -> None:
    """Gives matrices and kernels values that a half float holds, in place; norms and biases stay as they are.

    Raises:
        ValueError: for a value that is beyond half floats.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.dim() > 1 and tensor.is_floating_point():
            rounded = tensor.detach().half().float()
            if not rounded.isfinite().all():
                raise ValueError(
                    f'{name} has values of up to {float(tensor.abs().max()):.3g}, half floats end at 65504.'
                )
            with torch.no_grad():
                tensor.copy_(rounded)


def store_half(model: ir.Model) -> None:
    """Stores what loses nothing by it as half floats, one cast for each; the arithmetic stays float32.

    What ``round_to_half`` rounded is of it.
    """
    import onnx_ir as ir

    graph = model.graph
    for value in list(graph.initializers.values()):
        array = value.const_value.numpy()
        if array.dtype != np.float32 or array.nbytes < LEAST:
            continue
        with np.errstate(over='ignore'):
            half = array.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), array):
            continue
        stored = ir.Value(name=f'{value.name}.half', const_value=ir.tensor(half, name=f'{value.name}.half'))
        stored.shape, stored.dtype = value.shape, ir.DataType.FLOAT16
        cast = ir.node('Cast', [stored], attributes=dict(to=ir.DataType.FLOAT))
        value.replace_all_uses_with(cast.outputs[0])
        del graph.initializers[value.name]
        cast.outputs[0].name = value.name
        graph.initializers[stored.name] = stored
        graph.insert_before(graph[0], cast)


def quantize(source: Path, out: Path) -> None:
    """Writes a file whose linear layers are int8, with a scale for each output channel; a shared weight stays one.

    Activations are quantized as they come (onnxruntime's dynamic quantization); convolutions stay float32.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    del model.graph.value_info[:]  # the quantizer turns weights round and would find their shapes wrong
    with quiet('ERROR', logging.getLogger()):  # advice to quantize otherwise
        quantize_dynamic(model, out, op_types_to_quantize=['MatMul'], per_channel=True, weight_type=QuantType.QInt8)
