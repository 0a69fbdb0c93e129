"""Which files one step of the loop enters, and in which order."""

import sys

import pytest
import trace_step
from step_profile import StepProfile


@pytest.mark.long
def test_only_the_third_step_is_traced_and_the_loop_comes_first():
    namespaces = {name: {} for name in ("loop", "model", "first_step", "flag")}
    code = {
        "flag": "def agreed(): return False",
        "first_step": "def compile_all(): pass",
        "model": "def forward(): pass",
        "loop": """
def loop(first_step, model, flag):
    for step in range(5):
        if step == 0:
            first_step()
        if step < 4:
            model()
        flag()
""",
    }
    for name, text in code.items():
        exec(compile(text, f"{name}.py", "exec"), namespaces[name])
    profile = StepProfile()
    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        namespaces["loop"]["loop"](
            namespaces["first_step"]["compile_all"], namespaces["model"]["forward"], namespaces["flag"]["agreed"]
        )
        assert sys.getprofile() is None  # it ends by itself
    finally:
        sys.setprofile(before)
    assert list(profile.files) == ["loop.py", "model.py", "flag.py"]


@pytest.mark.slow
def test_a_step_of_the_real_loop(capsys):
    assert trace_step.main([]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    files = [line.split()[1] for line in lines]
    assert files[0] == "engine/training/loop.py"
    order = ["loaders/adapters/torch_loader.py", "engine/learner/step.py", "engine/distributed/stop_flag.py"]
    assert [name for name in files if name in order] == order
    assert not any(name.startswith("kernels/") for name in files)
    assert last == f"{len(files)} files outside kernels/ in one step"
