"""Do the span-contrastive head's vectors find the passage that follows a given one? Held-out text of a run, nothing else.

    python -m benchmarks.embeddings RUN_FOLDER [PAIRS]

For each source: PAIRS (512) neighbouring passages of up to 64 tokens, spread evenly over its held-out documents, those of
short documents their halves. Each first passage is to find its second among all of them. Printed for each way to compare:
how often it comes first, the mean reciprocal rank, and how often what comes first is at least of the same document.

The head is trained to tell what the next 8 tokens are. Beside it: final states and token embeddings of the same model,
averaged and centred; words in common, weighted by how rare they are (cosine of tf-idf over tokens, no model); chance.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aux_heads.span_contrastive import SpanContrastive
from configs.errors import UserError
from data.heldout import HeldOut, SourceRows
from data.stream_files import HELD_OUT
from lm.inference.load import load_heads, load_model, load_state
from lm.learner import preset_of

LENGTH = 64  # tokens of a passage
SHORTEST = 8


class PassageEmbedder:
    """An embedder of texts: unit vectors (N, 128) from the span-contrastive head of the run in
    `folder`, to be compared by their dot products.

    `of` embeds what texts say, from their words alone; `coming` embeds what is expected to follow
    them, from the model's state at their end. So `embedder.coming([text]) @ embedder.of(others).T`
    is largest for the best continuation of `text`.
    """

    def __init__(self, folder: Path | str):
        """Raises UserError for a run without that head."""
        folder = Path(folder)
        state, _ = load_state(folder)
        preset = preset_of(state)
        if not preset.auxiliary.enable_span_contrastive:
            raise UserError(f"the run in {folder} has no span_contrastive head: auxiliary.enable_span_contrastive")
        self.model, self.tokenizer, self.end_of_text = load_model(state, folder)
        self.embedding_VD = self.model.embedding_VD().detach()
        head = load_heads(state)["span_contrastive"]
        assert isinstance(head, SpanContrastive)
        self.head = head

    def tokens(self, text: str) -> Tensor:
        return torch.tensor(self.tokenizer.encode(text, add_special_tokens=False).ids, dtype=torch.long)

    @torch.no_grad()
    def of(self, texts: list[str]) -> Tensor:
        nothing = torch.tensor([self.end_of_text])
        read = [tokens if len(tokens := self.tokens(text)) else nothing for text in texts]
        return F.normalize(torch.stack([self.head.of_text(self.embedding_VD[tokens]) for tokens in read]), dim=-1)

    @torch.no_grad()
    def coming(self, texts: list[str]) -> Tensor:
        """Embed what follows each text, read from as many of its last tokens as the model can take."""
        room = self.model.config.seq_length - 1
        read = [torch.cat((torch.tensor([self.end_of_text]), self.tokens(text)[-room:])) for text in texts]
        states = [self.model(tokens[None])[0, -1] for tokens in read]
        return F.normalize(self.head.coming(torch.stack(states)), dim=-1)


class Pairs(NamedTuple):
    first: list[str]
    second: list[str]
    document: Tensor  # (N,) number of the document of each


def pairs(source: SourceRows, decode, count: int) -> Pairs:
    tokens = source.rows[:, :-1].ravel()
    starts = [row * source.valid.shape[1] + column for row, column in source.starts.tolist()]
    found = []
    for number, (start, stop) in enumerate(zip(starts, [*starts[1:], source.num_tokens], strict=True)):
        length = min(LENGTH, (stop - start - 1) // 2)
        if length >= SHORTEST:
            places = range(start + 1, stop - 2 * length + 1, 2 * length)
            found += [(number, decode(tokens[i : i + length]), decode(tokens[i + length :][:length])) for i in places]
    kept = np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)
    number, first, second = zip(*(found[i] for i in kept), strict=True)
    return Pairs(list(first), list(second), torch.tensor(number))


def scores(embedder: PassageEmbedder, pairs: Pairs) -> dict[str, Tensor]:
    """(N, N) by way of comparing: first passages against second ones."""
    model = embedder.model

    def centred(vectors: list[Tensor], others: list[Tensor]) -> Tensor:
        both = torch.stack([*vectors, *others])
        both = F.normalize(both - both.mean(0), dim=-1)
        return both[: len(vectors)] @ both[len(vectors) :].T

    def states(texts: list[str]) -> list[Tensor]:
        return [model(embedder.tokens(text)[None])[0].mean(0) for text in texts]

    def embeddings(texts: list[str]) -> list[Tensor]:
        return [embedder.embedding_VD[embedder.tokens(text)].mean(0) for text in texts]

    def counts(texts: list[str]) -> Tensor:
        size = len(embedder.embedding_VD)
        return torch.stack([torch.bincount(embedder.tokens(text), minlength=size).float() for text in texts])

    first_NV, second_NV = counts(pairs.first), counts(pairs.second)
    idf_V = torch.log((1 + len(second_NV)) / (1 + (second_NV > 0).sum(0)))
    of = embedder.of(pairs.second)
    return {
        "head: what is coming, against the text": embedder.coming(pairs.first) @ of.T,
        "head: the text, against the text": embedder.of(pairs.first) @ of.T,
        "mean of final states": centred(states(pairs.first), states(pairs.second)),
        "mean of token embeddings": centred(embeddings(pairs.first), embeddings(pairs.second)),
        "tf-idf": F.normalize(first_NV * idf_V, dim=-1) @ F.normalize(second_NV * idf_V, dim=-1).T,
    }


def found(scores_NN: Tensor, document_N: Tensor) -> tuple[float, float, float]:
    """Share of first places, mean reciprocal rank, share of first places for the own document; ties count as lost."""
    own_N1 = scores_NN.diagonal()[:, None]
    rank_N = (scores_NN >= own_N1).sum(1).float()
    same = document_N[scores_NN.argmax(1)] == document_N
    return float((rank_N == 1).float().mean()), float((1 / rank_N).mean()), float(same.float().mean())


@torch.no_grad()
def main(folder: Path, count: int) -> None:
    embedder = PassageEmbedder(folder)
    print("| source | passages, documents | compared by | first | reciprocal rank | document |")
    print("|---|---|---|---:|---:|---:|")
    for source in HeldOut.load(folder / "stream" / HELD_OUT).sources:
        chosen = pairs(source, lambda tokens: embedder.tokenizer.decode(tokens.tolist()), count)
        number, documents = len(chosen.first), chosen.document
        name = f"{source.label} | {number}, {len(documents.unique())}"
        for way, scores_NN in scores(embedder, chosen).items():
            first, reciprocal, document = found(scores_NN, documents)
            print(f"| {name} | {way} | {first:.1%} | {reciprocal:.3f} | {document:.1%} |")
            name = " | "
        same = float((documents[:, None] == documents).float().mean())
        print(
            f"| {name} | chance | {1 / number:.1%} | {sum(1 / n for n in range(1, number + 1)) / number:.3f} | {same:.1%} |"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 512)
