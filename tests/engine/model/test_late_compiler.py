"""torch's compiler is loaded by what compiles, and by nothing that a training without it does."""

import subprocess
import sys

import pytest

START = "from rlpheads.engine.model import late_compiler\nlate_compiler.defer()\nimport sys, torch\n"
UNLOADED = "assert 'torch._dynamo.eval_frame' not in sys.modules\n"
LOADED = "assert 'torch._dynamo.eval_frame' in sys.modules\n"


def run(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_a_step_does_without_it_and_a_compiled_one_gets_it_with_its_settings():
    run(
        START
        + """
import timm, timm.optim, torchvision
weight = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.AdamW([weight])
weight.sum().backward()
optimizer.step()
optimizer.zero_grad()
"""
        + UNLOADED
        + """
assert late_compiler.is_deferred()
marked = torch.compiler.disable(lambda x: x + 1)
assert marked(torch.ones(1)) == 2
held = torch._dynamo
held_settings = held.config

def double(x):
    return 2 * x, torch.compiler.is_compiling()

compiled = torch.compile(double, backend="eager")
value, traced = compiled(torch.ones(1))
assert value == 2 and traced
"""
        + LOADED
        + """
assert not late_compiler.is_deferred()
assert torch._dynamo is sys.modules["torch._dynamo"] is not held
assert torch._dynamo.config.cache_size_limit == 1_000_000  # timm's optimizers set it
assert held.disable is torch._dynamo.disable and held.config is torch._dynamo.config
held_settings.recompile_limit = 77
assert torch._dynamo.config.recompile_limit == held_settings.recompile_limit == 77

graphs = []
def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward

def through(x):
    return marked(x * 3) * 5

assert torch.compile(through, backend=backend)(torch.ones(1)) == 20
assert len(graphs) == 2  # what was marked before the compiler was there is not traced
"""
    )


@pytest.mark.long
@pytest.mark.parametrize(
    "asked",
    [
        "import torch._dynamo.config as found\nassert found is torch._dynamo.config",
        "from torch._dynamo import OptimizedModule as found",
        "from torch._dynamo.utils import counters as found",
        "from torch._dynamo.utils import is_compile_supported\nfound = is_compile_supported('cpu')",
    ],
)
def test_its_parts_are_there_for_who_asks(asked: str):
    run(START + UNLOADED + asked + "\nassert found is not None\n" + LOADED)


def test_a_compiler_that_is_loaded_stays():
    run("import sys, torch, torch._dynamo as before\n" + START + "assert sys.modules['torch._dynamo'] is before\n")
