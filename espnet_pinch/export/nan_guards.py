"""Take the guards against NaN out of an exported graph.

torch's exporter puts one behind the softmax of every attention, for queries whose keys are all masked. There are none:
every utterance has a frame, and every frame attends to it. A guard reads and writes all attention weights, and keeps
runtimes from computing attention in one piece.
"""

import onnx_ir as ir


def drop_nan_guards(graph: ir.Graph) -> None:
    """Replace ``Where(IsNaN(x), 0, x)`` by ``x``, where ``x`` is a softmax."""
    for guard in list(graph):
        if guard.op_type != "Where":
            continue
        condition, _, weights = guard.inputs
        test = condition.producer() if condition is not None else None
        if test is None or test.op_type != "IsNaN" or weights is None or test.inputs[0] is not weights:
            continue
        softmax = weights.producer()
        if softmax is not None and softmax.op_type == "Softmax":
            guard.outputs[0].replace_all_uses_with(weights)
            graph.remove([guard, test], safe=True)
