"""A fingerprint of training: the same before and after a change that is meant to change nothing.

    python -m tests.golden

A run of 20,011 tokens with every head and adaptive sources, on one process and on two, each interrupted once and resumed;
prints a digest of the weights, of the optimizers' moments and of the tokens in the order in which they were seen. The
text is the standard library's, the arithmetic the machine's: compare on one machine, with one installation.
"""

import signal
import sys
import tempfile
from pathlib import Path

from tests.program import ADAPTIVE, ALL_HEADS, BUDGET, Program, digest_of, ended, torchrun, write_text


def train(folder: Path, text: Path, launcher: tuple[str, ...]) -> dict:
    """The checkpoint at the end of a run that was interrupted in its middle."""
    program = Program(folder, text)
    program.add(
        model={"seq_length": 64},
        train={"per_gpu_batch_size": 4},
        auxiliary=ALL_HEADS | ADAPTIVE,
        data={"mix_strategy": "weighted", "source_weights": [1.0, 3.0]},
    )
    try:
        process = program.start(launcher=launcher)
        program.wait_for(BUDGET // 2, process)
        process.send_signal(signal.SIGINT)
        interrupted = ended(process)
        assert (program.checkpoints / "lm_current.pth").exists(), interrupted.err
        assert program.state()["tokens_seen"] < BUDGET, "it was meant to be interrupted"
        result = program.run(launcher=launcher)
        assert result.code == 0, result.err
        return program.state()
    finally:
        program.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        text = write_text(Path(temporary) / "text")
        for processes, launcher in ((1, (sys.executable,)), (2, torchrun(2))):
            state = train(Path(temporary) / str(processes), text, launcher)
            assert state["tokens_seen"] == BUDGET
            parts = {
                "weights": [state["model"], state["heads"]],
                "moments": state["optimizer"],
                "tokens": [state["stream_position"]["text_digest"], state["stream_position"]["weight_changes"]],
            }
            print(processes, *(f"{name} {digest_of(part)[:16]}" for name, part in parts.items()), flush=True)


if __name__ == "__main__":
    main()
