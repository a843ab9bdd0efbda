"""Counts the floating-point operations of a program.

Only matrix products and convolutions count, each multiply-add as two operations:
they are nearly all of the arithmetic, what a matrix unit can do, and the same
number in every framework. The counts are those of the program as traced, forward
and backward, before a compiler fuses and rewrites it. Zeros count where the program
multiplies by them (padding, the interpolation matrices of `ResizeConv2D`), except
for those that a strided convolution's gradient puts between the pixels.
"""

import math

CONVOLUTIONS = ("Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter")
PRODUCTS = ("MatMul", "BatchMatMulV2")


def count_tensorflow(graph):
    """Operations of a `FuncGraph` of known shapes, by name of the op.

    Ops that nothing depends on are left out, as TensorFlow leaves them out.
    """
    return {
        op.name: _count_op(op)
        for op in _live_ops(graph)
        if op.type in CONVOLUTIONS + PRODUCTS
    }


def _live_ops(graph):
    live = set()
    todo = [tensor.op for tensor in graph.outputs] + list(graph.control_outputs)
    while todo:
        op = todo.pop()
        if op not in live:
            live.add(op)
            todo += [tensor.op for tensor in op.inputs] + list(op.control_inputs)
    return live


def _count_op(op):
    if op.type in PRODUCTS:
        transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
        inner = op.inputs[0].shape[-2 if transposed else -1]
        return 2 * math.prod(op.outputs[0].shape) * inner
    if op.type == "Conv2D":
        pixels, kernel = op.outputs[0], op.inputs[1]
    elif op.type == "Conv2DBackpropInput":
        pixels, kernel = op.inputs[2], op.inputs[1]
    else:
        pixels, kernel = op.inputs[2], op.outputs[0]
    return 2 * math.prod(pixels.shape) * math.prod(kernel.shape[:-1])


def count_jax(jaxpr):
    """Operations of a `jax.make_jaxpr(...)(...)`, a number."""
    total = 0
    for equation in jaxpr.eqns:
        parameters = equation.params
        shapes = [variable.aval.shape for variable in equation.invars]
        output = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            total += 2 * output * math.prod(shapes[0][axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            out_features = parameters["dimension_numbers"].rhs_spec[0]
            taps = math.prod(shapes[1]) // shapes[1][out_features]
            zeros = math.prod(parameters["lhs_dilation"])
            total += 2 * output * taps // zeros
        for inner in _inner_jaxprs(parameters.values()):
            total += count_jax(inner)
    return total


def _inner_jaxprs(values):
    for value in values:
        if hasattr(value, "jaxpr"):
            yield value.jaxpr
        elif hasattr(value, "eqns"):
            yield value


def count_torch(function):
    """Operations of a call of `function`, a number. Calls it."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()
