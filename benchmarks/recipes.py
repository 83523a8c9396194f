"""Held-out bits per byte of our own trainer under variations of its recipe, all on the same rows.

    python -m benchmarks.recipes CORPUS OUT TOKENS VARIATION ...

CORPUS: what benchmarks/corpus.py lays out, or a preset (.json) whose sources, context and vocabulary are taken, such as
benchmarks/english.json.
VARIATION: "width=128,layers=3,heads=2,vocab=4096,batch=4096" and so on: the shape (left out: 256x3, vocabulary 8192),
tokens a step, and any key of a preset's `model` or `train` section, or constant of lm/optim.py or lm/model.py in capitals;
"default" varies nothing. `seed` changes the initialisation and what heads sample; the order of rows is the corpus
preset's. One line for each, with the digest of its rows, printed when it is done; what OUT has already is
not run again. What came of it is written down in benchmarks/LOG.md.
"""

import json
import re
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import lm.model
import lm.optim
from benchmarks.contenders import Options, Shape, preset_json, recipe_digest, train_preset
from benchmarks.quality import SHAPE, Text, corpus_preset
from configs.schema import ModelConfig, Preset, parse_preset

SHAPE_KEYS = ("width", "layers", "heads", "vocab")


def preset_and_options(shape: Shape, changed: dict, tokens: int) -> tuple[Preset, Options]:
    """What the variation trains with; constants stay in `changed`."""
    batch, seed = int(changed.pop("batch", 16_384)), int(changed.pop("seed", 1))
    options = Options(tokens // batch, seed=seed, tokens_per_step=batch)
    preset = json.loads(preset_json(shape, options))
    for key in [key for key in changed if not key.isupper()]:
        preset["model" if key in ModelConfig.model_fields else "train"][key] = changed.pop(key)
    return parse_preset(json.dumps(preset), "the benchmark's preset"), options


def train(text: Text, shape: Shape, preset: Preset, options: Options) -> dict:
    """Held-out bits per byte of each source and their mean, and the seconds of training."""
    num_rows = options.tokens_per_step // shape.length
    steps = (text.rows(step * num_rows, num_rows) for step in range(options.num_steps))
    began = time.perf_counter()
    train_preset(preset, shape, steps, options)
    seconds = time.perf_counter() - began
    return text.bits_per_byte(options.logits) | {"seconds": seconds}


def main(corpus: Path, out: Path, tokens: int, variations: list[str]) -> None:
    texts: dict[int, Text] = {}  # by size of vocabulary
    for variation in variations:
        pairs = [pair.split("=") for pair in re.split(r",(?![^\[]*\])", variation) if pair != "default"]
        changed = {key: json.loads(value) for key, value in pairs}
        shape = SHAPE._replace(**{key: changed.pop(key) for key in SHAPE_KEYS if key in changed})
        text = texts.get(shape.vocab) or Text(corpus_preset(corpus, shape), out / str(shape.vocab), tokens)
        texts[shape.vocab] = text
        shape = shape._replace(length=text.seq_length, vocab=text.vocab_size)
        preset, options = preset_and_options(shape, changed, tokens)
        with ExitStack() as constants:
            for key, value in changed.items():
                [module] = [module for module in (lm.optim, lm.model) if hasattr(module, key)]
                constants.enter_context(patch.object(module, key, value))
            path = out / f"{tokens}-{variation}-{recipe_digest(preset, options, text.digest, changed)}.json"
            if not path.exists():
                path.write_text(json.dumps(train(text, shape, preset, options)))
        result = json.loads(path.read_text())
        found = f"{result['mean']:.4f} bits per byte, {result['seconds']:5.0f} s"
        print(f"{found}, rows {text.digest}  {variation}", flush=True)


if __name__ == "__main__":
    corpus, out, budget, *variations = sys.argv[1:]
    main(Path(corpus), Path(out), int(budget), variations)
