"""What ends a limited process says something of its input only if nobody else sent it."""

import pytest

from data.limited_process import Crashed, TakesTooLong, run_limited

MODULE = "tests.data.killed_once"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGHUP", "SIGINT"])
def test_a_process_that_somebody_else_ends_is_started_again_in_a_session_of_its_own(name, tmp_path):
    assert run_limited(MODULE, str(tmp_path / "mark"), name) == b"True\n"


def test_its_own_end_is_a_verdict_at_once(tmp_path):
    with pytest.raises(TakesTooLong):
        run_limited(MODULE, str(tmp_path / "first"), "SIGXCPU")
    with pytest.raises(Crashed):
        run_limited(MODULE, str(tmp_path / "second"), "SIGSEGV")
