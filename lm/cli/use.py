"""The uses of a trained model: talking to it, exporting it, pushing the export to the Hub and
measuring it by benchmarks."""

import re
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from configs.errors import UserError
from configs.text import clip, counted, human_bytes, human_count
from lm.checkpoint import store
from lm.checkpoint.archive import archived_runs
from lm.evaluation.benchmarks import STANDARD, load_benchmarks, run_benchmarks
from lm.export.gguf import gguf_obstacle
from lm.export.huggingface import export, is_export_of
from lm.export.upload import account, check_name, upload
from lm.inference.canonical import Neighbours
from lm.inference.chat import talk
from lm.inference.conversation import Conversation
from lm.inference.decoder import Decoder
from lm.inference.load import load_chat_template, load_drafter, load_model, load_recall, load_state, load_tokenizer
from lm.report.report import benchmark_tables, write_report
from lm.runtime.files import FolderLock
from lm.runtime.machine import thread_choice
from lm.runtime.signals import interruptible
from lm.runtime.terminal import questions_are_seen, read_line, tell

# Layers: with fewer, drafts may cost more than the passes that they save (benchmarks/LOG.md).
DRAFTING_PAYS_FROM = 3

REFUSALS = ("n", "no", "q", "quit", "exit")
UNREADABLE = "\ufffd"  # in place of an answer that is not UTF-8; no run has this name


def use(action: str, folder: Path) -> None:
    """Talk to the model of a run in `folder` or its archive, export it, push its export, or run
    benchmarks on it."""
    run = pick(folder)
    user = account() if action == "push" else ""  # first: it may not be logged in
    with FolderLock(folder):
        state, notice = load_state(run)
        if notice:
            tell(notice)
        if action == "benchmarks":
            measure(state, run)
            return
        if action == "export":
            load_tokenizer(state, run)  # checks that all fits
            obstacle = gguf_obstacle(run / "tokenizer.json")
            tell(f"exported to {export(state, run, gguf=not obstacle)}")
            tell(
                obstacle
                or "the .gguf files are for llama.cpp, Modelfile is for Ollama, the other files are for transformers"
            )
            return
        if action == "push":
            push(state, run, user)
            return
    model, tokenizer, end_of_text = load_model(state, run)
    seen, budget = state["tokens_seen"], state["token_budget"]
    tell(f"{clip(store.name_of(state['preset']), 40)}: {human_count(seen)} of {human_count(budget)} tokens seen.")
    template = load_chat_template(state, tokenizer)
    drafter = load_drafter(state, run, model, tokenizer) if len(model.layers) >= DRAFTING_PAYS_FROM else None
    # The tensors of the state take three times the model's memory.
    state = {name: state[name] for name in ("preset", "stream_position")}
    torch.set_num_threads(thread_choice()[0])
    with interruptible():
        talk(
            Decoder(model),
            encode=lambda text: [end_of_text, *tokenizer.encode(text, add_special_tokens=False).ids],
            decode=tokenizer.decode,
            conversation=Conversation(template, end_of_text, model.config.seq_length) if template else None,
            stop_tokens=[end_of_text, *(template.end_tokens if template else ())],
            drafter=drafter,
            neighbours=Neighbours(tokenizer),
            load_recall=partial(load_recall, state, run, model, tokenizer),
            ask=read_line,
        )


def push(state: dict[str, Any], run: Path, user: str) -> None:
    """Push the export of a run, made anew if the run went on since, to a repository that `user` names, and if
    wanted its milestones to branches there. Raises UserError."""
    exported = run / "hf"
    if not is_export_of(exported, state):
        load_tokenizer(state, run)
        tell(f"exported to {export(state, run, gguf=not gguf_obstacle(run / 'tokenizer.json'))}")
    default = f"{user}/{repository_name(store.name_of(state['preset']))}"
    while True:
        answer = answer_to(f"push {exported} to which repository? Enter: {default}, q: none > ", at_end="q")
        if answer.lower() in REFUSALS:
            tell("nothing was pushed")
            return
        repository = answer if "/" in answer else f"{user}/{answer}" if answer else default
        try:
            check_name(repository)
            break
        except UserError as error:
            if not sys.stdin.isatty():
                raise
            tell(str(error))
    milestones = wanted_milestones(run)
    address = upload(exported, repository, milestones)
    branches = f", and {counted(len(milestones), 'milestone')} to branches there" if milestones else ""
    tell(f"pushed to {address}{branches}\nA new repository is private; its settings there can change that.")


def wanted_milestones(run: Path) -> dict[str, Path]:
    """Return the folders of the milestones of a run by their names, earliest first; {} if the user does
    not want to push them."""
    paths = run.glob("milestones/*")
    folders = [path for path in paths if re.fullmatch(r"(chck|tokens)_\d+M?", path.name) and path.is_dir()]
    if not folders:
        return {}
    num_bytes = sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
    first, *_ = ordered = sorted(folders, key=lambda path: (len(path.name), path.name))
    question = (
        f"push its {counted(len(folders), 'milestone')} too, {human_bytes(num_bytes)}, each to a branch such as "
        f"{first.name}? Enter: yes, n: no > "
    )
    is_refused = answer_to(question, at_end="n").lower() in (*REFUSALS, UNREADABLE)
    return {} if is_refused else {path.name: path for path in ordered}


def repository_name(preset: str) -> str:
    """Return the name of a preset in the characters that the Hub allows."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", preset).strip("-")[:80].strip("-") or "small-language-model"


def measure(state: dict[str, Any], run: Path) -> None:
    """Run the benchmarks that the user names; with the results, export the model again and, if the run
    is finished, write its report."""
    question = f"which benchmarks, by their names in lm_eval? Enter: {' '.join(STANDARD)}, q: none > "
    answer = answer_to(question, at_end="q")
    if answer.lower() in REFUSALS:
        return
    tell("loading lm_eval, the benchmarks and their data")
    loaded = load_benchmarks(answer.replace(",", " ").split() or STANDARD)
    results = run_benchmarks(state, run, loaded, tell)
    if not results:
        raise UserError("None of these benchmarks could be run on this model.")
    print("\n".join(benchmark_tables([{"tokens": state["tokens_seen"], "benchmarks": results}])))
    with_gguf = any((run / "hf").glob("*.gguf")) and not gguf_obstacle(run / "tokenizer.json")
    places = [export(state, run, gguf=with_gguf)]
    if (run / "report.md").exists():  # which marks a run as finished
        facts = store.load(run)[0]["facts"]  # of the whole run, also if the best checkpoint was measured
        places.append(write_report(run, state["preset"], facts))
    tell(f"recorded in {' and '.join(map(str, places))}")


def answer_to(question: str, *, at_end: str = "") -> str:
    """Return what the user answers, without the spaces around it; "" for Enter and for the end of the input, which
    in a terminal (Ctrl-D) is `at_end`."""
    try:
        with questions_are_seen():
            return read_line(question).strip()
    except EOFError:
        return at_end if sys.stdin.isatty() else ""
    except UnicodeDecodeError:
        return UNREADABLE


def pick(folder: Path) -> Path:
    """Return the folder of the only run, or of the user's choice; Enter takes the one in `folder`,
    or else the newest. Raises UserError for a run that does not exist."""
    current = store.inspect(folder)
    runs = ([current] if current else []) + archived_runs(folder)
    if len(runs) < 2:
        return runs[0].folder if runs else folder
    folders = {str(number): run.folder for number, run in enumerate(runs)}
    while True:
        with questions_are_seen():
            for number, run in enumerate(runs):
                when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.saved_at))
                print(f"{number:2}  {clip(run.name, 40)}, {human_count(run.tokens_seen)} tokens seen, {when}")
        answer = answer_to("which run? Enter: 0 > ") or "0"
        if answer in folders:
            return folders[answer]
        problem = f"there is no run {clip(answer, 40)!r}: answer with 0 to {len(runs) - 1}"
        if not sys.stdin.isatty():
            raise UserError(problem)
        tell(problem)
