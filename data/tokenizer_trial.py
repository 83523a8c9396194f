"""Tries a tokenizer.json, which is untrusted, in a process of its own with limits.

    python -m data.tokenizer_trial PATH CPU_SECONDS        prints what is wrong with it, or nothing

A file can make `tokenizers` read or encode for ever, take any memory, or abort. Its pattern for
words and its rules for characters meet here what they are most likely to fail on.
"""

import sys
from pathlib import Path

from data.limited_process import Crashed, TakesTooLong, run_limited, set_limits

CPU_SECONDS = 20
MEMORY_BYTES = 4 << 30  # of address space
TOKENS_PER_BYTE = 16  # of text; one is usual
LENGTH = 4_000  # characters of a trial text
TEXTS = [
    *(
        part * (LENGTH // len(part))
        for part in ("a", "A", "1", " ", "\n", "\t", ".", "'", "_", "é", "漢", "😀", "\u0301")
    ),
    *(part * (LENGTH // len(part)) for part in ("aA", "a1", "a ", " \n", "a.", "'s", "a'", "漢a", "aé", "\r\n")),
    "".join(chr(code) for code in range(0xD800)),
]


def trial(path: Path) -> str:
    """Return what is wrong with a tokenizer.json, as a part of a sentence; "" if nothing is."""
    environment = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    try:
        said = run_limited(__name__, str(path.absolute()), str(CPU_SECONDS), environment=environment)
    except TakesTooLong:
        return "it takes too long to encode a short text"
    except Crashed:
        return "it crashes, or needs too much memory, when it encodes a short text"
    return said.decode(errors="replace").strip()


def main(path: str, cpu_seconds: int) -> None:
    set_limits(cpu_seconds, MEMORY_BYTES)
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(path)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        known = set(tokenizer.get_vocab(with_added_tokens=True).values())
        for text in TEXTS:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            if not set(ids) <= known:
                print("it gives ids that its vocabulary does not have")
                return
            if len(ids) > TOKENS_PER_BYTE * len(text.encode()):
                print(f"it makes {len(ids):,} tokens of {len(text):,} characters")
                return
            tokenizer.decode(ids)
    except BaseException as error:  # a panic of `tokenizers` is no Exception
        print(f"cannot be read ({str(error).splitlines()[0][:200] if str(error) else type(error).__name__})")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
