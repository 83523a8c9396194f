"""What the dry run promises: it has compiled all that a run will need, or is refused before anything is written."""

import json
import logging
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from configs.errors import UserError
from configs.schema import parse_preset
from lm import evaluate
from lm.learner import Learner
from lm.runtime.compiler import toolchain
from lm.runtime.distributed import World
from lm.train.dry_run import dry_run
from tests.constants import FULL_COUNTS
from tests.program import ADAPTIVE, ALL_HEADS, ENVIRONMENT, NOT_A_RUN, ROOT, preset_json, write_text

# `aot_eager` is torch.compile without its code generator: as particular about what it has seen, and quick.
COMPILED = """
import functools, json, sys
import torch
from torch._dynamo.utils import counters
from torch._dynamo.utils import counters
import lm.learner, main
from configs.schema import parse_preset

lm.learner.compile_choice = lambda device: (True, "for this test")
torch.compile = functools.partial(torch.compile, backend="aot_eager")
training_loop, graphs = main.training_loop, []

def counted(*arguments):
    graphs.append(counters["stats"]["unique_graphs"])
    training_loop(*arguments)
    graphs.append(counters["stats"]["unique_graphs"])

main.training_loop = counted
main.train(parse_preset(sys.argv[1], "test"), token_budget=20_011, checkpoint_dir=sys.argv[2])
print(json.dumps(graphs))
"""

TOO_LITTLE = """
import resource, sys
from functools import partial
from pathlib import Path
import lm.learner, main
from configs.errors import UserError
from configs.schema import parse_preset
from lm.train import setup, trainer

lm.learner.check_memory = lambda *_, **__: None  # the estimate was wrong
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 700 * 2**20, -1))
try:
    main.train(parse_preset(sys.argv[1], "test"), checkpoint_dir=sys.argv[2])
except UserError as error:
    print(error)
"""

CACHED = """
import sys
from functools import partial
from pathlib import Path
from configs.schema import parse_preset
from lm.learner import Learner
from lm.model import Transformer
from lm.runtime.distributed import World
from lm.runtime.log import show_log
from lm.train import dry_run

show_log(True)
Transformer.forward_embedded = lambda trunk, x: trunk.norm(x.float())  # one kernel of the forty of a model
dry_run._evaluate_batch = lambda *_: None
preset, cache, world = parse_preset(sys.argv[1], "test"), Path(sys.argv[2]), World.start()
learner = Learner(preset, world, vocab_size=300, end_of_text=0, tokens_per_step=256)
before = {path for path in cache.rglob("*") if path.is_file()}  # of the tiny function that is tried first
print(learner.decisions, dry_run.dry_run(learner, 8))
if len(sys.argv) > 3:
    for path in cache.rglob("*"):
        if path.is_file() and path not in before and path.suffix not in (".so", ".h"):
            path.write_bytes(b"")  # as a power cut leaves files that were not synced
"""


@pytest.mark.slow(60)
@pytest.mark.skipif(not toolchain("cpu")[0], reason="no compiler")
def test_a_damaged_cache_of_the_compiler_is_made_anew(tmp_path):
    cache = tmp_path / "compiled"
    preset = json.dumps(preset_json(tmp_path))
    environment = {**os.environ, **ENVIRONMENT, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    environment["TORCHINDUCTOR_VEC_ISA_OK"] = "0"  # plain kernels, which compile in half the time
    del environment["TORCH_COMPILE_DISABLE"]
    said = []
    for more in (["damage"], [], []):
        command = [sys.executable, "-c", CACHED, preset, str(cache), *more]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert "torch.compile" in run.stdout
        assert "no torch.compile" not in run.stdout
        said.append("compiling again" in run.stdout)
    assert said == [False, True, False]


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("is_cured", [True, False])
def test_processes_of_a_job_make_the_cache_anew_before_they_do_without_the_compiler(
    is_cured, monkeypatch, tmp_path, caplog
):
    preset = parse_preset(json.dumps(preset_json(tmp_path)), "test")
    learner = Learner(preset, World.start(), vocab_size=300, end_of_text=0, tokens_per_step=256)
    learner.compiled, learner.world.gradients = True, "a group"
    problems = iter(["an empty file", "" if is_cured else "no disk space"])
    monkeypatch.setattr("lm.train.dry_run._problem_of_compiler", lambda *_: next(problems))
    monkeypatch.setattr(logging.getLogger("lm"), "propagate", True)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    (tmp_path / "compiled").mkdir()
    (tmp_path / "compiled" / "damaged").touch()
    dry_run(learner, 8)
    assert not (tmp_path / "compiled").exists()
    assert "compiling again" in caplog.text
    assert learner.compiled == is_cured
    assert next(problems, "asked twice") == "asked twice"


@pytest.mark.slow
def test_each_of_many_runs_of_a_process_is_compiled(compiler, monkeypatch, tmp_path):
    monkeypatch.setattr("lm.learner.compile_choice", lambda device: (True, "for this test"))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    preset, learners, graphs = parse_preset(json.dumps(preset_json(tmp_path)), "test"), [], []
    for _ in range(6):
        learners.append(Learner(preset, World.start(), vocab_size=300, end_of_text=0, tokens_per_step=256))
        before = counters["stats"]["unique_graphs"]
        dry_run(learners[-1], 8)
        graphs.append(counters["stats"]["unique_graphs"] - before)
    assert graphs == [graphs[0]] * 6
    assert graphs[0] > 1
    assert all(learner.compiled for learner in learners)


@pytest.mark.slow
@pytest.mark.parametrize(
    "gradient", ["annealed", "none"] if FULL_COUNTS else ["annealed"]
)  # the latter has both graphs
def test_nothing_is_compiled_after_it(gradient, tmp_path):
    """Evaluation, samples, the short last step, the end of the heads' gradient and of further tokens: a compiler would
    be heard in each."""
    auxiliary = {**ALL_HEADS, **ADAPTIVE, "trunk_gradient": gradient}
    train = {"multi_token_weights": [0.5, 0.25]}
    preset = preset_json(write_text(tmp_path / "text"), model={"seq_length": 64}, train=train, auxiliary=auxiliary)
    command = [sys.executable, "-c", COMPILED, json.dumps(preset), str(tmp_path / "checkpoints")]
    environment = {**os.environ, **ENVIRONMENT}
    del environment["TORCH_COMPILE_DISABLE"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    before, after = json.loads(run.stdout.splitlines()[-1])
    assert before == after > 2


def test_an_evaluation_that_memory_cannot_hold_is_met_before_the_run(tmp_path, monkeypatch):
    """The logits of an evaluation come on top of what a captured step holds."""
    monkeypatch.setattr("lm.learner.compile_choice", lambda device: (False, "for this test"))
    loss = evaluate.linear_cross_entropy

    def limited(hidden_ND, *inputs):
        if len(hidden_ND) > 4 * 32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(hidden_ND, *inputs)

    monkeypatch.setattr(evaluate, "linear_cross_entropy", limited)
    given = preset_json(tmp_path, model={"seq_length": 32}, train={"per_gpu_batch_size": 16})
    preset, world = parse_preset(json.dumps(given), "test"), World.start()
    learner = Learner(preset, world, vocab_size=300, end_of_text=0, tokens_per_step=16 * 32)
    with pytest.raises(UserError, match=r"does not fit .* 4 fits: set train\.per_gpu_batch_size to 4"):
        dry_run(learner, 16)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_step_that_memory_cannot_hold_names_a_batch_for_the_same_step(tmp_path):
    train = {"per_gpu_batch_size": 4096, "accumulation_steps": 2}
    preset = preset_json(write_text(tmp_path / "text"), model={"hidden_size": 64, "seq_length": 128}, train=train)
    folder = tmp_path / "checkpoints"
    command = [sys.executable, "-c", TOO_LITTLE, json.dumps(preset), str(folder)]
    run = subprocess.run(command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "does not fit into the memory of" in run.stdout
    advice = r"(\d+) (?:may fit|fits): set train.per_gpu_batch_size to \1 and train.accumulation_steps to (\d+)"
    size, steps = map(int, re.search(advice, run.stdout).groups())  # how small depends on the machine's precision
    assert size < 4096
    assert size * steps == 4096 * 2
    assert {path.name for path in Path(folder).glob("*")} <= NOT_A_RUN
