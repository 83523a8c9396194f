"""Sizes of the heads that decide what they cost: without torch, since lm/runtime/estimate.py needs
them before the menu is on the screen."""

UNROLL_STEPS = 3  # how far dynamics and policy look ahead
POSITION_STRIDE = 8  # dynamics and value sample one position in eight
LATENT_STRIDE = 2  # policy reads one in two of the unrolled positions
MAX_POLICY_POSITIONS = 2048  # per micro-batch: bounds the memory of the logits
NUM_VALUE_BINS, VALUE_INNER_SIZE = 64, 256
SPAN_EMBEDDING_SIZE = 128


def transition_shapes(hidden_size: int) -> list[tuple[int, int]]:
    """Return the shapes (rows, columns) of dynamics' matrices: linear, gate and up, down."""
    return [(rows * hidden_size, 2 * hidden_size) for rows in (1, 4, 1)]
