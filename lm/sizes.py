"""Sizes of the trunk's computation that decide what it costs: without torch, since
lm/runtime/estimate.py needs them before the menu is on the screen."""

CPU_ATTENTION_BLOCKS = 4  # of a row, each of which sees the keys up to its own end (lm/model.py)
NEWTON_SCHULZ_STEPS = 5  # of Muon, for each matrix and step (lm/optim.py)
# Rows whose logits the loss computes at once (lm/loss.py). A CPU core's cache holds the logits of a
# few hundred; a GPU needs large matmuls, and has the memory.
CHUNK_ROWS = {"cpu": 512, "cuda": 32_768, "mps": 2_048}
# Without gradients there is one product instead of three, and it is not compiled: smaller chunks cost
# nothing, and a GPU that holds the buffers of a captured step has no memory for large ones.
CHUNK_ROWS_NO_GRAD = 1_024  # at most
CHUNK_VOCAB = 32_768  # with a larger vocabulary a chunk has fewer rows: as many logits at most


def chunk_rows(device: str, vocab_size: int, *, need_grad: bool = True) -> int:
    """Return how many rows' logits are computed at once."""
    rows = CHUNK_ROWS[device] if need_grad else min(CHUNK_ROWS[device], CHUNK_ROWS_NO_GRAD)
    return max(1, rows * CHUNK_VOCAB // max(CHUNK_VOCAB, vocab_size))
