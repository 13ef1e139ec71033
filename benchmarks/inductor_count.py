"""What Inductor would run of a function and its gradient: its own count of bytes and kernels, no code being generated.

The graphs are those of ``torch.compile``: traced, cut into forward and backward by the same partitioner and scheduled
by the same fusions. It schedules for a CPU, also where there is no compiler; on a GPU it fuses by rules of its own,
which agree in which reductions and elementwise chains become one.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx
from torch._functorch.aot_autograd import aot_function
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.compile_fx import view_to_reshape
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.post_grad import post_grad_passes
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V

from vidlab.cost.traffic import Traffic


def inductor_count(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> Traffic:
    """Bytes and kernels of a function of fake tensors and of its gradient; products are calls of libraries.

    Args:
        function: of tensors, returns tensors; everything that it differentiates is among its arguments.
        inputs: fake tensors on a CPU.
    """
    found: list[Traffic] = []
    with as_if_compiling():
        made = [out for out in counted(function, found.append, nullcontext)(*inputs) if out.requires_grad]
        torch.autograd.backward(made, [torch.empty_like(out) for out in made])
    return sum(found, Traffic())


def counted(
    function: Callable[..., Any],
    count: Callable[[Traffic], object],
    running: Callable[[], AbstractContextManager[None]],
) -> Callable[..., Any]:
    """A function of fake tensors that tells what Inductor would run of it, forward and backward, as that is run.

    Args:
        function: of tensors.
        count: called with the traffic of each of the two graphs.
        running: entered while a graph is counted and run.
    """

    def compiler(graph: fx.GraphModule, example: list[Any]) -> Callable[..., Any]:
        with running():
            traffic = _scheduled(graph, example)

        def run(*args: Any) -> Any:
            count(traffic)
            with running():
                return graph(*args)

        return run

    return aot_function(  # type: ignore[no-any-return]
        function, compiler, compiler, partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )  # fmt: skip


def as_if_compiling() -> AbstractContextManager[Any]:
    """Functions take the form that they have in a compiled graph."""
    return patch.object(torch.compiler, "is_compiling", lambda: True)


def _scheduled(graph: fx.GraphModule, example: list[Any]) -> Traffic:
    mode = torch._guards.detect_fake_mode(example)
    with V.set_fake_mode(mode):
        view_to_reshape(graph)
        post_grad_passes(graph, False)
        lowering = GraphLowering(graph, example_inputs=example)
        with V.set_graph_handler(lowering), V.set_debug_handler(DebugContext()):
            lowering.run(*example)
            lowering._update_scheduler()  # type: ignore[no-untyped-call]
            return sum((_traffic(node) for node in lowering.scheduler.nodes), Traffic())


def _traffic(node: Any) -> Traffic:
    moved = node.get_read_write_buffers_sizes()
    if not moved:
        return Traffic()
    called = str(getattr(node.node, "python_kernel_name", None) or "")
    if "vidlab_traffic" in called:
        return Traffic(attention=moved, kernels=1)
    if called.startswith("extern_kernels") or "convolution" in called:
        return Traffic(products=moved, kernels=1)
    return Traffic(other=moved, kernels=1)
