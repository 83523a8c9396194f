"""The Modelfile of an export: what Ollama has to know about its GGUF file."""

from collections.abc import Sequence

from data.chat_template import OWN
from lm.export.gguf import ENCODINGS
from lm.inference.sampling import TEMPERATURE, TOP_P

TEXT = "{{ .Prompt }}"  # as it comes
TURNS = (
    "{{ range .Messages }}<|{{ .Role }}|>{{ .Content }}<|end|>{{ end }}<|assistant|>"  # OWN in Go's template language
)


def modelfile(seq_length: int, ends: Sequence[str], template: str) -> str:
    """Return Ollama's description of the model: the form of its input, the tokens `ends` that end its
    output, and the sampling of `generation_config`.

    `template` is the export's chat template, or "". For another than this program's own there is no TEMPLATE
    line: Ollama recognises many by itself.
    """
    form = TEXT if not template else TURNS if template.endswith(OWN) else None
    return "\n".join(
        [
            f"FROM ./{ENCODINGS['F16']}",
            *([f'TEMPLATE "{form}"'] if form else []),
            f"PARAMETER num_ctx {seq_length}",
            f"PARAMETER num_predict {seq_length}",
            f"PARAMETER temperature {TEMPERATURE}",
            f"PARAMETER top_p {TOP_P}",
            "PARAMETER top_k 0",
            "PARAMETER repeat_penalty 1.0",
            *(f'PARAMETER stop "{end}"' for end in ends),
            "",
        ]
    )
