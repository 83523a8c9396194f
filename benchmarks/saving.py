"""What saving costs a run: how long training stands still, and how much slower it is while a checkpoint is written.

    python -m benchmarks.saving [PRESET] [SAVES]

The model and training step of a preset, on random tokens; checkpoints into a temporary folder on this disk.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.step import learner_of
from configs.schema import load_preset


def main(path: str, num_saves: int) -> None:
    from lm.checkpoint.file import CONTENTS
    from lm.checkpoint.saver import Saver
    from lm.checkpoint.store import CURRENT

    preset = load_preset(path)
    learner, tokens, plan_at = learner_of(preset)
    plan = plan_at(3)
    others = {key: kind() for key, kind in CONTENTS.items()} | {"preset": preset.to_json()}

    def step() -> float:
        began = time.perf_counter()
        learner.train_step(tokens, plan)
        return time.perf_counter() - began

    step()
    still, writing, alone, beside = [], [], [], []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        saver = Saver(Path(folder))
        for _ in range(num_saves):
            alone += [step() for _ in range(4)]
            began = time.perf_counter()
            saver.save({**others, **learner.state()})
            still.append(time.perf_counter() - began)
            while saver.writing:
                beside.append(step())
            writing.append(time.perf_counter() - began)
        size = (Path(folder) / CURRENT).stat().st_size
    normal, slowed = statistics.median(alone), statistics.median(beside)
    lost = statistics.median(still) + statistics.median(writing) * max(0.0, 1 - normal / slowed)
    between = preset.train.save_every_tokens / (plan.num_tokens / normal)
    print(f"{path}, {num_saves} saves of {size / 1e6:.0f} MB, medians; a step alone takes {normal:.2f} s")
    print(f"training stands still for {1000 * statistics.median(still):.0f} ms ({1000 * max(still):.0f} at most)")
    print(f"written within {statistics.median(writing):.2f} s, in which a step takes {slowed:.2f} s")
    print(f"lost: {lost:.2f} s of the {between:.0f} s between two saves, {lost / between:.2%}")


if __name__ == "__main__":
    arguments = sys.argv[1:] or ["configs/03_small_general.json"]
    main(arguments[0], int((arguments[1:] or [5])[0]))
