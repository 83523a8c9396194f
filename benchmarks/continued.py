"""What further training does to a model that is trained already, by the share of the default learning rates it gets.

    python -m benchmarks.continued MODEL WATCHED OUT TOKENS SHARE...

MODEL: a folder in Hugging Face form. Trained on is Python source, what is installed; WATCHED is a folder of .txt files that
is only evaluated: what the model forgets. SHARE: of the rates of a new model (CONTINUED_SHARE in lm/optim.py), or `new`
for 02_offline_python's model, which begins with random weights. Whole runs of main.py, kept in OUT and not run again; of
each one line, with bits per byte before and after.
"""

import json
import sys
from pathlib import Path
from unittest.mock import patch

import lm.optim
import main
from configs.schema import parse_preset
from lm.report.metrics import read_metrics

NEW_MODEL = {"hidden_size": 256, "num_layers": 2, "num_heads": 4, "vocab_size": 4096}
STEP = {"per_gpu_batch_size": 4, "accumulation_steps": 4}  # of 512 tokens a row


def preset_json(model: Path, watched: Path, tokens: int, share: str) -> str:
    shape = NEW_MODEL if share == "new" else {"init_from": str(model)}
    intervals = dict.fromkeys(("eval_every_tokens", "save_every_tokens", "sample_every_tokens"), tokens)
    return json.dumps(
        {
            "name": f"continued_{share}",
            "model": {**shape, "seq_length": 512},
            "train": {**STEP, **intervals, "eval_tokens": 20_000},
            "data": {
                "sources": [{"type": "python", "label": "python"}],
                "watch": [{"type": "text", "path": str(watched), "glob": "**/*.txt", "label": "watched"}],
            },
        }
    )


def run(model: Path, watched: Path, out: Path, tokens: int, share: str) -> list[dict]:
    """The held-out losses by source at the first evaluation, which is before a step only if the model was there, and
    at the last."""
    preset = parse_preset(preset_json(model, watched, tokens, share), "the benchmark's preset")
    with patch.object(lm.optim, "CONTINUED_SHARE", lm.optim.CONTINUED_SHARE if share == "new" else float(share)):
        main.train(preset, token_budget=tokens, checkpoint_dir=out / share)
    evaluations = [line["eval"]["per_source"] for line in read_metrics(out / share / "metrics.jsonl") if "eval" in line]
    return [evaluations[0], evaluations[-1]]


if __name__ == "__main__":
    model, watched, out, tokens, *shares = sys.argv[1:]
    found = {share: run(Path(model), Path(watched), Path(out), int(tokens), share) for share in shares}
    print(f"{int(tokens):,} tokens of Python, bits per byte")
    for share, evaluations in found.items():
        for when, sources in zip(("before", "after"), evaluations, strict=True):
            if share != "new" or when == "after":
                bits = ", ".join(f"{label} {source['bits_per_byte']:.4f}" for label, source in sources.items())
                print(f"{share:>8} {when:>6}  {bits}")
