"""Threads that wait awake take the time of those they wait for where other programs use the CPU: there they sleep."""

import os
import subprocess
import sys

import pytest

from lm.runtime.openmp import CPUTime
from tests.constants import ROOT

# What the program does, with another one beside it.
CHOOSES = """
import subprocess, sys, time
from lm.runtime import openmp
other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
time.sleep(1)
{chooses}
other.kill()
print(openmp.wait_policy_decisions())
"""
AT_THE_MENU = """
from pathlib import Path
from lm.cli.choose import gather_menu
gather_menu(Path(sys.argv[1]), Path(sys.argv[1]))  # measures the machine, for which it imports torch
"""


def test_what_others_use_is_all_use_but_our_own():
    before = CPUTime(clock=10.0, everybody=100.0, own=3.0)
    assert CPUTime(14.0, 106.0, 3.0).others_since(before) == 1.5  # cores
    assert CPUTime(14.0, 106.0, 9.0).others_since(before) == 0.0
    assert CPUTime(14.0, 106.0, 9.5).others_since(before) == 0.0  # clocks of different grain
    assert CPUTime(10.0, 100.0, 3.0).others_since(before) == 0.0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/stat")
@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, "[('threads sleep while they wait', 'other programs use "),
        ({"OMP_WAIT_POLICY": "active"}, "[]"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "[('threads sleep while they wait', 'OMP_WAIT_POLICY is set')]"),
        ({"TORCHELASTIC_RUN_ID": "1"}, "[]"),
    ],
)
def test_threads_sleep_beside_another_program(environment, says):
    variables = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | environment
    assert decisions(variables, "openmp.choose_wait_policy()").startswith(says)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/stat")
def test_the_first_start_which_measures_the_machine_chooses_before_that(tmp_path):
    variables = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    assert decisions(variables, AT_THE_MENU, str(tmp_path)).startswith("[('threads sleep while they wait', 'other")
    assert (tmp_path / "machine.json").exists()


def decisions(variables: dict[str, str], chooses: str, *arguments: str) -> str:
    command = [sys.executable, "-c", CHOOSES.format(chooses=chooses), *arguments]
    run = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout
