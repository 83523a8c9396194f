"""Benchmarks through lm_eval, on tiny tasks of our own from a stand-in for the Hub."""

import re
import shutil
import sys
from functools import partial

import pytest
import torch

import main
from benchmarks.blimp import blimp
from configs.errors import UserError
from lm.checkpoint import store
from lm.cli import use
from lm.evaluation import benchmarks
from lm.evaluation.answers import Answers
from lm.evaluation.results import latest, score_rows
from lm.evaluation.scorer import Scorer
from lm.report.metrics import read_metrics
from lm.report.report import benchmark_tables
from tests.hub import parquet
from tests.program import tiny_preset

pytestmark = pytest.mark.usefixtures("eager")

pytest.importorskip("lm_eval", reason="the extra benchmarks is not installed")
NOUNS = ["cat", "dog", "bird", "fish", "child", "woman", "man", "tree"]
SENTENCES = [
    f"The {one} that saw the {other} was here, and {n} more." for n, one in enumerate(NOUNS) for other in NOUNS
]

TASK = """
task: {name}
dataset_path: {data}
output_type: {kind}
validation_split: train
doc_to_text: "{context}"
doc_to_target: {target}
doc_to_choice: {choices}
metric_list:
  - metric: acc
metadata: {{version: 1.0}}
"""


@pytest.fixture
def tasks(hub, tmp_path, monkeypatch):
    """A group of two tasks, and others, from the data set `name` of this test."""
    name = f"tiny/{tmp_path.name}"
    bad = [sentence.replace("was", "were") for sentence in SENTENCES]
    hub.add(name, {"train.parquet": parquet(good=SENTENCES, bad=bad, long=["long " * 99] * len(SENTENCES))})
    pairs = {"kind": "multiple_choice", "target": 0, "choices": '"{{[good, bad]}}"'}
    written = {
        "pairs_alone": {"context": "", **pairs},
        "pairs_after": {"context": "{{good}} ", **pairs},
        "last_word": {
            "kind": "loglikelihood",
            "context": "{{good[:-6]}}",
            "target": '"{{good[-6:]}}"',
            "choices": "null",
        },
        "too_long": {"kind": "loglikelihood", "context": "a", "target": '" {{long}}"', "choices": "null"},
        "own_words": {"kind": "generate_until", "context": "a", "target": "good", "choices": "null"},
        "broken": {**pairs, "context": "", "choices": '"{{[good, long[999:]]}}"'},  # a choice without a text
        "no_birds": {
            **pairs,
            "context": "",
            "choices": "\"{{[good, bad] if not good.startswith('The bird') else no.such}}\"",
        },
        "packaged": {**pairs, "context": "", "target": "!function packaged.choice"},
    }
    folder = tmp_path / "tasks"
    folder.mkdir()
    for task, keys in written.items():
        (folder / f"{task}.yaml").write_text(TASK.format(name=task, data=name, **keys))
    (folder / "packaged.py").write_text("import no_such_package\n")
    (folder / "nowhere.yaml").write_text(TASK.format(name="nowhere", data="tiny/nowhere", **written["pairs_alone"]))
    (folder / "pairs.yaml").write_text(
        "group: pairs\ntask: [pairs_alone, pairs_after]\naggregate_metric_list:\n"
        "  - {metric: acc, aggregation: mean, weight_by_size: false}\nmetadata: {version: 2.0}\n"
    )
    from lm_eval.tasks import TaskManager

    manager = partial(TaskManager, include_path=str(folder), include_defaults=False)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", manager)
    return name


@pytest.fixture(scope="module")
def run(tmp_path_factory, text):
    """A run of 64 tokens of context."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_COMPILE_DISABLE", "1")
        preset = tiny_preset(text, model={"seq_length": 64})
        main.train(preset, token_budget=2_000, checkpoint_dir=folder)
    return folder


@pytest.mark.slow
def test_scores_are_those_of_the_class_for_hugging_face_models(run, tasks):
    pytest.importorskip("accelerate", reason="lm_eval's own class needs it")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from lm.evaluation.harness import HarnessModel
    from lm.inference.load import load_model

    theirs = HFLM(pretrained=str(run / "hf"), device="cpu", batch_size=4, dtype="float32")
    ours = HarnessModel(*_scorer(load_model(store.load(run)[0], run)), Answers(), lambda done, total: None)
    long = " ".join(SENTENCES)
    pairs = [
        ("", SENTENCES[0]),
        (SENTENCES[0], " " + SENTENCES[1]),
        ("Two spaces  ", "end"),
        (long, " cat"),
        (long, " dog"),
    ]
    pairs += [(sentence[:20], sentence[20:]) for sentence in SENTENCES[30:50]] * 2  # cut in two places, theirs fails
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    for (expected, best), (found, greedy) in zip(
        theirs.loglikelihood(requests), ours.loglikelihood(requests), strict=True
    ):
        assert found == pytest.approx(expected, abs=1e-3)
        assert greedy == best
    assert ours.num_cut == 3
    rolling = [Instance("loglikelihood_rolling", {}, (string,), 0) for string in (SENTENCES[0], long)]
    assert ours.loglikelihood_rolling(rolling) == pytest.approx(theirs.loglikelihood_rolling(rolling), rel=1e-5)


def _scorer(loaded):
    model, tokenizer, end_of_text = loaded
    return Scorer(model), tokenizer, end_of_text


class Killed(BaseException):
    """As SIGKILL: nobody catches it."""


@pytest.mark.slow
def test_benchmarks_from_the_menu_are_resumed_need_no_network_and_stand_in_report_and_card(
    run, tasks, hub, monkeypatch, capsys
):
    state, _ = store.load(run)
    monkeypatch.setattr("lm.cli.use.read_line", lambda _: "pairs, last_word too_long own_words no_birds")
    monkeypatch.setattr("lm.evaluation.scorer.NODES_IN_BATCH", {"cpu": 256})
    answer, add, written = Scorer.answer, Answers.add, []

    def answer_or_die(scorer, questions, rows):
        if dies and any((run / "benchmarks").glob("*")):
            raise Killed
        return answer(scorer, questions, rows)

    def count(answers, found):
        found = list(found)
        written.append(len(found) if answers._path else 0)
        add(answers, found)

    monkeypatch.setattr(Scorer, "answer", answer_or_die)
    monkeypatch.setattr(Answers, "add", count)
    dies = True
    with pytest.raises(Killed):
        use.measure(state, run)
    assert not any("benchmarks" in line for line in read_metrics(run / "metrics.jsonl"))
    [kept] = (run / "benchmarks").iterdir()
    kept.write_text(kept.read_text()[:-9])  # torn
    num_kept = kept.read_text().count("\n")
    assert num_kept > 1

    hub.repos.clear()  # no network any more
    dies, totals = False, []
    for _ in range(2):
        capsys.readouterr()
        written.clear()
        use.measure(state, run)
        totals.append(sum(written))
    out = capsys.readouterr().out
    assert totals[0] == totals[1] - num_kept  # the second time nothing was left of the first
    assert not list((run / "benchmarks").iterdir())
    assert re.search(r"benchmarks: at most about \d+ s \(pairs \d+ s, last_word \d+ s\)", out)
    assert "too_long is skipped: a text of" in out
    assert "no_birds is skipped, it fails: UndefinedError: 'no' is undefined" in out
    assert "own_words is skipped: it needs answers in the model's own words" in out

    recorded = latest(read_metrics(run / "metrics.jsonl"))
    assert {name: tokens for name, (tokens, _) in recorded.items()} == {"pairs": 2_000, "last_word": 2_000}
    results = {name: result for name, (_, result) in recorded.items()}
    assert results["pairs"]["chance"] == 0.5
    assert results["pairs"]["items"] == 2 * len(SENTENCES)
    value, stderr = results["pairs"]["measures"]["acc"]
    assert value == pytest.approx(sum(results["pairs"]["parts"].values()) / 2)
    assert 0 <= stderr < 0.1
    row = next(line for line in (run / "report.md").read_text().splitlines() if line.startswith("| pairs |"))
    assert row == f"| pairs | acc | {value:.2%} | {stderr:.2%} | 50.0% | 128 | 2,000 |"
    card = (run / "hf" / "README.md").read_text()
    assert row in card
    assert "no benchmark" not in card
    assert re.search(r"name: pairs\s+type: pairs\s+metrics:\s+- type: acc\s+value: " + str(round(value, 4)), card)


@pytest.mark.slow
def test_a_stop_keeps_the_results_so_far_and_a_smaller_choice_the_answers_of_the_rest(
    run, tasks, tmp_path, monkeypatch
):
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "metrics.jsonl").write_text("")
    state, add = store.load(folder)[0], Answers.add

    def add_and_die(answers, found):
        add(answers, found)
        if answers._path and "last_word" in answers._path.name:
            raise Killed

    def answered() -> list[str]:
        return sorted(path.stem.partition("-")[2] for path in (folder / "benchmarks").iterdir())

    def measure(*names):
        return benchmarks.run_benchmarks(state, folder, benchmarks.load_benchmarks(names), print)

    monkeypatch.setattr(Answers, "add", add_and_die)
    with pytest.raises(Killed):
        measure("pairs_alone", "last_word")
    assert latest(read_metrics(folder / "metrics.jsonl")).keys() == {"pairs_alone"}
    assert answered() == ["last_word", "pairs_alone"]

    def add_and_fail(answers, found):
        add(answers, found)
        if answers._path:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(Answers, "add", add_and_fail)
    assert measure("pairs_after") == {}
    assert answered() == ["last_word", "pairs_after"]  # the third is recorded
    monkeypatch.setattr(Answers, "add", add)
    measure("pairs_after")
    assert answered() == ["last_word"]
    measure("last_word")
    assert answered() == []


@pytest.mark.slow
def test_where_no_benchmark_fits_no_time_is_said(run, tasks):
    said, loaded = [], benchmarks.load_benchmarks(["own_words"])
    assert benchmarks.run_benchmarks(store.load(run)[0], run, loaded, said.append) == {}
    [line] = said
    assert line.startswith("own_words is skipped: ")


def test_published_scores_stand_beside_with_their_sources():
    result = {"measures": {"acc": [0.6381, 0.0018]}, "items": 67_000, "chance": 0.5, "version": "2.0"}
    text = "\n".join(benchmark_tables([{"tokens": 36, "benchmarks": {"blimp": result}}]))
    assert "| blimp | acc | 63.81% | 0.18% | 50.0% | 67,000 | 36 |" in text
    assert re.search(
        r"\| blimp \| GPT-2, 98M parameters \| 1,000M words.* \| acc \| 73.43% \| \[BabyLM 2026.*\]\(https://", text
    )
    assert re.search(r"\| 75.07% \| \[BabyLM 2025\]\(https://[^ ]*/README.md\?plain=1\)", text)  # there in a comment
    assert "Pythia" not in text  # has no score here
    assert benchmark_tables([{"tokens": 36}]) == []


def test_what_is_no_share_has_the_digits_that_tell_models_apart():
    measures = {"bits_per_byte": [1.52871, None], "word_perplexity": [1120.1234, 3.1], "acc": [0.25, 0.01]}
    measures["perplexity"] = [None, None]  # it was not finite
    result = {"measures": measures, "items": 62, "chance": None}
    shown = [row[1:4] for row in score_rows([{"tokens": 36, "benchmarks": {"wikitext": result}}])]
    assert shown == [
        ("bits_per_byte", "1.5287", ""),
        ("word_perplexity", "1,120.12", "3.10"),
        ("acc", "25.00%", "1.00%"),
        ("perplexity", "", ""),
    ]


def test_all_names_that_do_not_exist_are_one_message(tasks):
    with pytest.raises(UserError) as error:
        benchmarks.load_benchmarks(["pairs", "pears", "LAST_WORD", "pears", "xyz"])
    pears, upper, nothing = str(error.value).splitlines()
    assert pears.startswith("lm_eval has no benchmark 'pears'; the nearest are pairs")
    assert upper.startswith("lm_eval has no benchmark 'LAST_WORD'; the nearest are last_word")
    assert nothing.startswith("lm_eval has no benchmark 'xyz'; the standard ones are blimp, ")


def test_what_cannot_be_loaded_is_one_message_with_the_reasons(tasks):
    with pytest.raises(UserError) as error:
        benchmarks.load_benchmarks(["pairs", "nowhere", "packaged", "broken"])
    lines = [
        r"The data of these benchmarks are not here and cannot be fetched:",
        r"  nowhere: DatasetNotFoundError: .*tiny/nowhere.*",
        r"Run them once with a network, .*",
        r"These benchmarks need a Python package that is missing or of another version:",
        r"  packaged: .*no_such_package.*",
        r"Install it with .*",
        r"These benchmarks cannot be loaded, with or without a network:",
        r"  broken: IndexError: string index out of range",
        r"They or their data have a mistake, .*",
    ]
    assert re.fullmatch("\n".join(lines), str(error.value))


def test_without_lm_eval_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(benchmarks, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'lm_eval, which is not installed.*pip install -e "\.\[benchmarks\]"'):
        benchmarks.load_benchmarks(["blimp"])


def test_an_lm_eval_that_does_not_work_is_a_message(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)  # so that importing it fails
    with pytest.raises(UserError, match=r"lm_eval cannot be used: .*lm_eval.tasks.*\n.*pip install"):
        benchmarks.load_benchmarks(["blimp"])


@pytest.mark.slow
def test_a_preset_names_the_benchmarks_of_the_end(text, tasks, hub, tmp_path, capsys):
    def preset(*names):
        return tiny_preset(text, train={"benchmarks": names})

    folder = tmp_path / "run"
    with pytest.raises(UserError, match="no benchmark 'pears'"):
        main.train(preset("pears"), token_budget=2_000, checkpoint_dir=folder)
    assert not (folder / "lm_current.pth").exists()  # before anything is written
    main.train(preset("last_word", "too_long"), token_budget=2_000, checkpoint_dir=folder)
    assert "| last_word | acc |" in (folder / "report.md").read_text()
    assert "| last_word | acc |" in (folder / "hf" / "README.md").read_text()
    assert "too_long is skipped" in capsys.readouterr().out
    (folder / "report.md").unlink()  # killed before it: benchmarks are not run twice
    main.train(preset("last_word"), token_budget=2_000, checkpoint_dir=folder)
    assert sum("benchmarks" in line for line in read_metrics(folder / "metrics.jsonl")) == 1


@pytest.mark.slow
def test_they_are_in_fp32_whatever_the_training_before_them_uses(run, tasks, monkeypatch):
    states, used = Scorer._states, set()

    def observed(scorer, rows):
        used.add(torch.get_float32_matmul_precision())
        return states(scorer, rows)

    monkeypatch.setattr(Scorer, "_states", observed)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # as lm/learner.py does
    try:
        benchmarks.run_benchmarks(store.load(run)[0], run, benchmarks.load_benchmarks(["pairs_alone"]), print)
        assert used == {"highest"}
        assert torch.get_float32_matmul_precision() == "high"  # training goes on as before
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.slow
def test_any_model_that_gives_logits_has_the_same_share_of_pairs(run, tasks, capsys):
    """As benchmarks/quality.py judges other people's models."""
    from lm.inference.load import load_model

    state, _ = store.load(run)
    loaded = benchmarks.load_benchmarks(["pairs_alone"])
    expected = benchmarks.run_benchmarks(state, run, loaded, print)["pairs_alone"]["measures"]["acc"][0]
    model, _, _ = load_model(state, run)
    found = blimp(loaded, lambda tokens: model.output(model(tokens)), run / "tokenizer.json", 64)
    assert found == expected  # of a model so small that is 0: log-probabilities are compared in test_scorer.py
