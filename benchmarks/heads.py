"""Whether each head knows something: its predictions on held-out text beside baselines made from the same training text.

    python -m benchmarks.heads CORPUS OUT [TOKENS]

The arguments are those of benchmarks/ablation.py, which has to have trained "all, none" (and, for the rank of the
states, "all, annealed" and "all, constant"). Trunk and heads are in fp32 here. One table a head, mean and standard
deviation over the seeds; how well the value is calibrated is drawn as value_calibration_SEED.png in OUT.

Baselines are fitted to states of TRAINING_ROWS rows that the model was trained on; ridge regressions choose their penalty
on a tenth of these. Legend: B rows, T positions, D hidden size, V vocabulary, M the positions that count.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from aux_heads.base import HeadInput
from aux_heads.joint import build_heads
from aux_heads.sizes import UNROLL_STEPS
from aux_heads.span_contrastive import SPAN_LENGTH, SpanContrastive
from aux_heads.value import coming_loss, trailing_loss_of
from benchmarks.ablation import ARMS, BASE, BATCH, MORE, SEEDS, SHAPE
from benchmarks.contenders import EVALUATED_ROWS
from benchmarks.quality import Text, corpus_preset
from configs.schema import Preset
from lm.model import Transformer
from lm.runtime.machine import measure_machine

TRAINING_ROWS, PENALTIES = 1_600, (1e-6, 1e-4, 1e-2, 1.0)
CHUNK = 65_536  # rows of a regression at a time
CANDIDATES, PREFIX, BIGRAM_BACKOFF = 256, 32, 20.0
BINS = 20

Figures = dict[tuple[str, str, str], float]  # (table, row, column)


class States(NamedTuple):
    """What a trunk says of some rows. `x` as the heads see it."""

    x: HeadInput
    entropy_BT: Tensor
    document_BT: Tensor  # the number of the document each input belongs to


@torch.no_grad()
def states_of(trunk: Transformer, rows: np.ndarray, valid: np.ndarray) -> States:
    tokens_BT1 = torch.from_numpy(rows.astype(np.int64))
    parts = []
    for part in tokens_BT1.split(EVALUATED_ROWS):
        hidden = trunk(part[:, :-1])
        log_p = trunk.output(hidden).log_softmax(-1)
        losses = -log_p.gather(-1, part[:, 1:, None]).squeeze(-1)
        parts.append((hidden, losses, -(log_p.exp() * log_p).sum(-1)))
    hidden_BTD, losses_BT, entropy_BT = map(torch.cat, zip(*parts, strict=True))
    embedding_VD, output_VD = trunk.embedding_VD().detach(), trunk.output.weight.detach()
    x = HeadInput(hidden_BTD, tokens_BT1, losses_BT, torch.from_numpy(valid), embedding_VD, output_VD, {}, 0)
    starts_BT = tokens_BT1[:, :-1] == x.end_of_text
    starts_BT[:, 0] = True
    return States(x, entropy_BT, starts_BT.flatten().cumsum(0).view_as(starts_BT))


def ridge(features: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """A linear map with an offset, (M, ...) -> (M, ...), fitted by least squares with the best of PENALTIES."""

    def normal(rows: slice) -> tuple[Tensor, Tensor]:
        gram = product = torch.zeros(())
        for x, y in zip(features[rows].split(CHUNK), targets[rows].split(CHUNK), strict=True):
            x1 = F.pad(x.double(), (0, 1), value=1.0)
            gram, product = gram + x1.T @ x1, product + x1.T @ y.double()
        return gram, product

    def solve(gram: Tensor, product: Tensor, penalty: float) -> Tensor:
        return torch.linalg.solve(gram + penalty * gram.diagonal().mean() * torch.eye(len(gram)), product)

    def predict(weights: Tensor, features: Tensor) -> Tensor:
        return torch.cat([(x.double() @ weights[:-1] + weights[-1]).float() for x in features.split(CHUNK)])

    fitted, kept = slice(0, len(features) * 9 // 10), slice(len(features) * 9 // 10, None)
    gram, product = normal(fitted)
    errors = {
        penalty: (predict(solve(gram, product, penalty), features[kept]) - targets[kept]).square().mean().item()
        for penalty in PENALTIES
    }
    weights = solve(*normal(slice(None)), min(errors, key=errors.get))
    return lambda features: predict(weights, features)


# ---- dynamics and policy -----------------------------------------------------------------------------------------


def reached(states: States, k: int) -> Tensor:
    """(B, T - K): where x_{t+1} .. x_{t+k} are of t's document."""
    inside_BT = states.x.inside_document_BT()
    last = inside_BT.shape[1] - UNROLL_STEPS
    return torch.stack([inside_BT[:, j : j + last] for j in range(k)]).all(0)


def ahead(values_BT: Tensor, k: int) -> Tensor:
    """(B, T - K, ...): of position t + k, for every t from which all K steps stay in the row; T positions or T + 1."""
    return values_BT[:, k : k + SHAPE.length - UNROLL_STEPS]


@torch.no_grad()
def unrolled(heads: nn.ModuleDict, states: States) -> list[Tensor]:
    """u^0 .. u^K, each (B, T - K, D)."""
    latents = [ahead(states.x.hidden_BTD, 0)]
    for k in range(1, UNROLL_STEPS + 1):
        embedding = states.x.embedding_VD[ahead(states.x.tokens_BT1, k)]
        latents.append(heads["dynamics"].step(latents[-1], embedding))
    return latents


def dynamics(heads: nn.ModuleDict, train: States, held: States) -> Figures:
    figures: Figures = {}
    latents = unrolled(heads, held)
    for k in range(1, UNROLL_STEPS + 1):
        here, there = reached(train, k), reached(held, k)
        goal, target = ahead(train.x.hidden_BTD, k)[here], ahead(held.x.hidden_BTD, k)[there]
        tokens, mean_D = ahead(train.x.tokens_BT1, k)[here], goal.mean(0)
        counts_V = torch.bincount(tokens, minlength=SHAPE.vocab)
        sums_VD = torch.zeros(SHAPE.vocab, SHAPE.width).index_add_(0, tokens, goal - mean_D)
        of_token_VD = mean_D + sums_VD / (counts_V + 1)[:, None]
        linear = ridge(features(train, k)[here], goal)
        predictions = {
            "dynamics": latents[k][there],
            "the state again": latents[0][there],
            "mean state of the token": of_token_VD[ahead(held.x.tokens_BT1, k)[there]],
            "ridge on state and tokens": linear(features(held, k)[there]),
        }
        variance = (target - mean_D).square().mean()
        for name, prediction in predictions.items():
            error = (prediction - target).square().mean() / variance
            cosine = F.cosine_similarity(prediction - mean_D, target - mean_D, dim=-1).mean()
            figures["dynamics", name, f"error, {k}"] = error.item()
            figures["dynamics", name, f"cosine, {k}"] = cosine.item()
    return figures


def features(states: States, k: int) -> Tensor:
    """(B, T - K, (1 + k) D): h_t and the embeddings of x_{t+1} .. x_{t+k}."""
    embedded = [states.x.embedding_VD[ahead(states.x.tokens_BT1, j)] for j in range(1, k + 1)]
    return torch.cat([ahead(states.x.hidden_BTD, 0), *embedded], dim=-1)


def policy(heads: nn.ModuleDict, all_tokens: Tensor, held: States) -> Figures:
    """Mean probability that lossless sampling keeps the k-th draft, the one of x_{t+k+1} once x_{t+1} .. x_{t+k} are
    known. That of n-gram lookup, which copies on, is counted where its drafts before it were the text."""
    bigram_VV, looked_up_BTK = bigram(all_tokens), lookup(held.x.tokens_BT1)
    latents = unrolled(heads, held)
    kept: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    there_KBT = [reached(held, k) for k in range(1, UNROLL_STEPS + 1)]
    for row in range(len(looked_up_BTK)):
        copied = torch.ones_like(there_KBT[0][row])
        for k, there in enumerate((there_BT[row] for there_BT in there_KBT), start=1):
            p = (ahead(held.x.hidden_BTD, k)[row] @ held.x.output_VD.T).softmax(-1)
            drafts = {
                "policy": (latents[k][row] @ held.x.output_VD.T).softmax(-1),
                "the state's own prediction": (latents[0][row] @ held.x.output_VD.T).softmax(-1),
                "pairs of tokens, counted": bigram_VV[ahead(held.x.tokens_BT1, k)[row]],
            }
            for name, q in drafts.items():
                kept[name, k].append(torch.minimum(p, q).sum(-1)[there])
            copy = looked_up_BTK[row, :, k - 1]
            of_copy = p.gather(-1, copy.clamp(min=0)[:, None]).squeeze(-1) * (copy >= 0)
            kept["n-gram lookup", k].append(of_copy[there & copied])
            copied = copied & (copy == ahead(held.x.tokens_BT1, k + 1)[row])
    return {("policy", name, f"draft {k}"): torch.cat(values).mean().item() for (name, k), values in kept.items()}


def bigram(tokens_BT1: Tensor) -> Tensor:
    """(V, V) probabilities of a token after another in the training text, backed off to how frequent it is."""
    pairs = tokens_BT1[:, :-1].flatten() * SHAPE.vocab + tokens_BT1[:, 1:].flatten()
    counts_VV = torch.bincount(pairs, minlength=SHAPE.vocab**2).view(SHAPE.vocab, SHAPE.vocab).float()
    backed_off_VV = counts_VV + BIGRAM_BACKOFF * counts_VV.sum(0) / counts_VV.sum()
    return backed_off_VV / backed_off_VV.sum(1, keepdim=True)


def lookup(tokens_BT1: Tensor) -> Tensor:
    """(B, T - K, K): what followed x_t, x_{t+1} where it stood last in the row before; -1 where nothing did."""
    drafts_BTK = torch.full((len(tokens_BT1), SHAPE.length - UNROLL_STEPS, UNROLL_STEPS), -1)
    for row, tokens in enumerate(tokens_BT1.tolist()):
        last_seen: dict[tuple[int, int], int] = {}
        for t in range(drafts_BTK.shape[1]):
            pair = (tokens[t], tokens[t + 1])
            if pair in last_seen:
                known = tokens[last_seen[pair] + 2 : t + 2][:UNROLL_STEPS]
                drafts_BTK[row, t, : len(known)] = torch.tensor(known)
            last_seen[pair] = t
    return drafts_BTK


# ---- value -------------------------------------------------------------------------------------------------------


def value(heads: nn.ModuleDict, train: States, held: States, out: Path, seed: int) -> Figures:
    goal_M, features_M2, _, _ = difficulty(train)
    target_M, known_M2, hidden_MD, document_M = difficulty(held)
    with torch.no_grad():
        predictions = {"value": heads["value"].expectation(heads["value"].logits(hidden_MD, known_M2[:, 1]))}
    names = {"entropy of the next token": [0], "loss of the last 32 tokens": [1], "ridge on both": [0, 1]}
    for name, columns in names.items():
        predictions[name] = ridge(features_M2[:, columns], goal_M[:, None])(known_M2[:, columns]).squeeze(-1)
    draw_calibration(predictions["value"], target_M, out / f"value_calibration_{seed}.png")
    figures: Figures = {}
    for name, prediction in predictions.items():
        error = (prediction - target_M).square().mean() / (target_M - target_M.mean()).square().mean()
        figures["value", name, "Spearman"] = correlation(ranks(prediction), ranks(target_M))
        figures["value", name, "R^2"] = 1 - error.item()
        within = (within_document(prediction, document_M), within_document(target_M, document_M))
        figures["value", name, "Spearman within a document"] = correlation(*map(ranks, within))
        slope = (within[0] * within[1]).sum() / within[0].square().sum()
        error = (slope * within[0] - within[1]).square().sum() / within[1].square().sum()
        figures["value", name, "R^2 within a document"] = 1 - error.item()
    figures["value", "value", "calibration error, nats"] = calibration(predictions["value"], target_M)[2]
    return figures


def difficulty(states: States) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the M positions with 32 tokens to come: their mean loss; entropy and trailing loss (M, 2); states; document."""
    y_BT, counts_BT = coming_loss(states.x)
    features = torch.stack([states.entropy_BT, trailing_loss_of(states.x)], dim=-1)
    return tuple(values[counts_BT] for values in (y_BT, features, states.x.hidden_BTD, states.document_BT))


def within_document(values_M: Tensor, document_M: Tensor) -> Tensor:
    _, number_M, counts = document_M.unique(return_inverse=True, return_counts=True)
    means = torch.zeros(len(counts)).index_add_(0, number_M, values_M) / counts
    return values_M - means[number_M]


def ranks(values: Tensor) -> Tensor:
    return values.argsort().argsort().float()


def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a, b]).double())[0, 1].item()


def calibration(predicted_M: Tensor, target_M: Tensor) -> tuple[list[float], list[float], float]:
    """Means of what was predicted and of what came in BINS equal groups by prediction; the mean distance."""
    order = predicted_M.argsort().tensor_split(BINS)
    predicted = [predicted_M[group].mean().item() for group in order]
    came = [target_M[group].mean().item() for group in order]
    return predicted, came, statistics.mean(abs(p - c) for p, c in zip(predicted, came, strict=True))


def draw_calibration(predicted_M: Tensor, target_M: Tensor, path: Path) -> None:
    predicted, came, _ = calibration(predicted_M, target_M)
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="predicted, nats a token", ylabel="came, nats a token")
    axes.axline((came[0], came[0]), slope=1, color="0.6", linestyle="--", label="calibrated")
    axes.plot(predicted, came, "o-", label=f"value, {BINS} groups of held-out positions")
    axes.legend()
    figure.savefig(path, dpi=100)


# ---- span contrastive --------------------------------------------------------------------------------------------


@torch.no_grad()
def span_contrastive(heads: nn.ModuleDict, held: States, seed: int) -> Figures:
    """How often the right span scores highest: among CANDIDATES of all text, and among those of its own document."""
    anchors_M, rows_M = spans(held)
    hidden_MD = held.x.hidden_BTD[rows_M, anchors_M]
    window = anchors_M[:, None] + torch.arange(1, SPAN_LENGTH + 1)
    mean_MD = held.x.embedding_VD[held.x.tokens_BT1[rows_M[:, None], window]].mean(1)
    before = anchors_M[:, None] - torch.arange(PREFIX)
    prefix_MD = held.x.embedding_VD[held.x.tokens_BT1[rows_M[:, None], before]].mean(1)
    torch.manual_seed(seed)
    untrained = SpanContrastive(SHAPE.width, fraction=0.15, temperature=0.07, l2_normalize=True)
    pairs = {"bag of embeddings": (prefix_MD - mean_MD.mean(0), mean_MD - mean_MD.mean(0))}
    for name, head in {"span contrastive": heads["span_contrastive"], "untrained head": untrained}.items():
        pairs[name] = head.anchor(hidden_MD), head.target(F.rms_norm(mean_MD, mean_MD.shape[-1:]))

    document_M = held.document_BT[rows_M, anchors_M]
    groups = {
        f"among {CANDIDATES}": torch.randperm(len(anchors_M)).split(CANDIDATES)[:-1],
        "within a document": [(document_M == document).nonzero().squeeze(1) for document in document_M.unique()],
    }
    figures: Figures = {}
    for column, members in groups.items():
        members = [group for group in members if len(group) > 1]
        total = sum(map(len, members))
        for name, (a, z) in pairs.items():
            right = sum(
                (
                    (F.normalize(a[group], dim=-1) @ F.normalize(z[group], dim=-1).T).argmax(1)
                    == torch.arange(len(group))
                )
                .sum()
                .item()
                for group in members
            )
            figures["span contrastive", name, column] = right / total
        figures["span contrastive", "chance", column] = len(members) / total
    return figures


def spans(states: States) -> tuple[Tensor, Tensor]:
    """(M,) positions just before spans that do not overlap, with PREFIX tokens before them in the document; their rows."""
    inside_BT = states.x.inside_document_BT()
    starts = torch.arange(PREFIX, SHAPE.length - SPAN_LENGTH, SPAN_LENGTH)
    around = starts[:, None] + torch.arange(-PREFIX + 1, SPAN_LENGTH)
    rows, chosen = inside_BT[:, around].all(-1).nonzero(as_tuple=True)
    return starts[chosen], rows


# ---- all ---------------------------------------------------------------------------------------------------------


def effective_rank(states: States) -> float:
    """exp of the entropy of the covariance's spectrum (Roy & Vetterli, EUSIPCO 2007), of D at most."""
    eigenvalues = torch.linalg.eigvalsh(states.x.hidden_BTD.flatten(0, 1).T.cov().double()).clamp(min=1e-12)
    share = eigenvalues / eigenvalues.sum()
    return math.exp(-(share * share.log()).sum().item())


def load(path: Path, preset: Preset) -> tuple[Transformer, nn.ModuleDict]:
    state = torch.load(path, weights_only=True)
    trunk = Transformer(preset.model, SHAPE.vocab)
    trunk.load_state_dict(state["model"])
    heads = build_heads(preset.auxiliary, SHAPE.width, SHAPE.length)
    heads.load_state_dict(state["heads"])
    return trunk.requires_grad_(False), heads


def prove(text: Text, out: Path, seed: int, tokens: int) -> Figures:
    held_rows = np.concatenate([source.rows for source in text.held_out])
    valid = np.concatenate([source.valid for source in text.held_out])
    num_read = tokens // BATCH * BATCH // SHAPE.length  # by the model: the text has more rows
    every = np.linspace(0, num_read - 1, TRAINING_ROWS).astype(int)
    train_rows = np.concatenate([text.rows(int(row), 1) for row in every])
    trunk, heads = load(BASE.file(out, seed, tokens).with_suffix(".pth"), BASE.preset(seed))
    train, held = (
        states_of(trunk, train_rows, np.ones_like(train_rows[:, 1:], bool)),
        states_of(trunk, held_rows, valid),
    )
    figures = dynamics(heads, train, held)
    figures |= policy(heads, torch.from_numpy(text.rows(0, num_read).astype(np.int64)), held)
    figures |= value(heads, train, held, out, seed)
    figures |= span_contrastive(heads, held, seed)
    for arm in ARMS:
        path = arm.file(out, seed, tokens).with_suffix(".pth")
        if arm.name.startswith("all") and path.exists():
            trunk, _ = load(path, arm.preset(seed))
            figures["states", arm.name, "effective rank"] = effective_rank(states_of(trunk, held_rows, valid))
    return figures


def show(found: list[Figures]) -> None:
    tables: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for table, row, column in found[0]:
        values = [figures[table, row, column] for figures in found if (table, row, column) in figures]
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        tables[table][row][column] = f"{statistics.mean(values):.3f}{spread}"
    for table, rows in tables.items():
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        print(f"\n| {' | '.join([table, *columns])} |\n|{'---|' * (len(columns) + 1)}")
        for row, cells in rows.items():
            print(f"| {' | '.join([row, *(cells.get(column, '') for column in columns)])} |")


def main(corpus: Path, out: Path, tokens: int) -> None:
    text = Text(corpus_preset(corpus, SHAPE), out, math.ceil(tokens * MORE))
    out = out / f"{text.digest}-{tokens}"
    seeds = [seed for seed in SEEDS if BASE.file(out, seed, tokens).exists()]
    print(
        f"{SHAPE}, {tokens:,} tokens, {len(seeds)} seeds; {measure_machine().device_name}, {time.strftime('%Y-%m-%d')}"
    )
    show([prove(text, out, seed, tokens) for seed in seeds])


if __name__ == "__main__":
    folders, budget = sys.argv[1:3], int(sys.argv[3]) if sys.argv[3:] else 5_000_000
    main(*map(Path, folders), budget)
