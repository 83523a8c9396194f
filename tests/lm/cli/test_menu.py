"""The menu: what Enter takes and why, what an answer means, and that everything fits the smallest terminal."""

import dataclasses
import io
import json
import re
import shutil
import unicodedata
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import UserError
from configs.schema import DataConfig, TextSource, load_preset, parse_preset
from configs.text import clip, counted, human_bytes, human_count, human_time, wrapped
from data.producer_client import SourceInfo
from data.sources.probe import Probe
from lm.checkpoint.store import SavedRun
from lm.cli import choose
from lm.cli.choose import unlisted_presets
from lm.cli.menu import (
    Choice,
    Menu,
    MenuEntry,
    ask,
    default_choice,
    preset_paths,
    render_menu,
)
from lm.runtime.machine import Machine
from lm.train.start_card import StartCard, how_much, render_card
from tests.lm.checkpoint.small_checkpoint import make_state, save

pytestmark = pytest.mark.core

HOUR = 3600.0


def entry(
    stem: str, *, hours: float = 1, silent: tuple[str, ...] = (), answering: tuple[str, ...] = ("wikipedia",)
) -> MenuEntry:
    text = {
        "name": stem.partition("_")[2],
        "description": "One sentence about it.",
        "model": {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "seq_length": 64},
        "data": {"sources": ["wikipedia"]},
    }
    statuses = [Probe(name, True) for name in answering]
    statuses += [Probe(name, False, "connection refused") for name in silent]
    return MenuEntry(
        path=Path(f"configs/{stem}.json"),
        preset=parse_preset(json.dumps(text), stem),
        num_parameters=15_100_000,
        memory_bytes=1_200_000_000,
        seconds=hours * HOUR,
        sources=statuses,
    )


GENERAL, QA, OFFLINE = entry("00_best_general"), entry("01_best_qa"), entry("02_offline_python")
BROKEN = MenuEntry(path=Path("configs/03_mine.json"), error="configs/03_mine.json: name is missing\n    allowed: text")
UNFINISHED = SavedRun(Path("checkpoints"), "best_general", "{}", 34_000_000, 100_000_000, False, False, 1.7e9)
FINISHED = dataclasses.replace(UNFINISHED, tokens_seen=100_000_000, trained=True, reported=True)
ARCHIVED = SavedRun(Path("checkpoints/archive/best_qa-1"), "best_qa", "{}", 5_000_000, 100_000_000, False, False, 1.6e9)


def answer(menu: Menu, *answers: str | BaseException, terminal: bool = True, later: Menu | None = None):
    """What `ask` makes of these answers, and everything it said. `later`: the menu when it looks again."""
    waiting = list(answers)

    def read(prompt: str) -> str:
        given = waiting.pop(0)
        if isinstance(given, BaseException):
            raise given
        return given

    with redirect_stdout(io.StringIO()) as said:
        choice = ask(menu, read=read, look_again=(lambda: later or menu) if terminal else None)
    assert not waiting, "an answer was not read"
    return choice, said.getvalue()


def starting(stem: str, *statuses: Probe, known: bool) -> MenuEntry:
    given = {
        "name": "further",
        "model": {"init_from": "owner/small", "seq_length": 64},
        "data": {"sources": ["wikipedia"]},
    }
    preset = parse_preset(json.dumps(given), stem)
    if known:
        preset = preset.model_copy(update={"model": preset.model.completed(GENERAL.preset.model)})
    return dataclasses.replace(GENERAL, path=Path(f"configs/{stem}.json"), preset=preset, sources=list(statuses))


def test_a_preset_that_starts_from_a_model_says_so():
    shown = render_menu(Menu([starting("04_further", Probe("wikipedia", True), known=True)]))
    assert "starts from owner/small  ✓ wikipedia" in shown
    assert "15.1M parameters" in shown
    silent = starting("04_further", Probe("owner/small", False, "is gated"), Probe("wikipedia", True), known=False)
    shown = render_menu(Menu([silent]))
    assert "its size is not known yet" in shown
    assert "✗ is gated: owner/small" in shown
    with pytest.raises(UserError, match="owner/small is not available"):
        default_choice([silent], None)


# --- what Enter takes -------------------------------------------------------------------------------------------------


def test_enter_resumes_an_unfinished_run_whatever_the_sources_say():
    choice, reason = default_choice([entry("00_a", silent=("c4",))], UNFINISHED)
    assert choice == Choice("resume", Path("checkpoints"))
    assert "34.0M of 100M" in reason


def test_enter_takes_the_first_preset_that_is_ready():
    assert default_choice([GENERAL, QA, OFFLINE], None)[0] == Choice("preset", GENERAL.path)


def test_a_time_that_was_not_measured_is_marked():
    measured = dataclasses.replace(GENERAL, measured=True)
    assert "memory  ~1 h 0 min here" in render_menu(Menu([GENERAL]))
    assert "memory  1 h 0 min here" in render_menu(Menu([measured]))
    assert default_choice([GENERAL], None)[1] == "start 00_best_general, ~1 h 0 min here"


def test_the_reason_names_why_earlier_presets_were_passed_over():
    entries = [
        BROKEN,
        entry("04_a", silent=("c4", "squad")),
        entry("05_b", hours=12),
        entry("06_c", hours=11.9),
        OFFLINE,
    ]
    choice, reason = default_choice(entries, None)
    assert choice == Choice("preset", Path("configs/06_c.json"))
    assert "03_mine: the file has errors" in reason
    assert "04_a: c4 and squad are not available" in reason
    assert "05_b: would take ~12 h 0 min here" in reason
    assert "02_offline" not in reason


def test_enter_is_an_error_when_nothing_is_ready():
    with pytest.raises(UserError, match="00_a: c4 is not available"):
        answer(Menu([entry("00_a", silent=("c4",))]), "", terminal=False)
    with pytest.raises(UserError, match=r"no NN_name\.json"):
        answer(Menu([]), EOFError())


# --- what an answer means ---------------------------------------------------------------------------------------------

MENU = Menu([GENERAL, QA, OFFLINE, BROKEN], UNFINISHED, [ARCHIVED], has_model=True)


@pytest.mark.parametrize("lost", [EOFError(), RuntimeError("lost sys.stdin"), OSError(), ValueError("closed file")])
def test_no_input_is_enter_and_says_so(lost):
    choice, said = answer(Menu([GENERAL]), lost, terminal=False)
    assert choice == Choice("preset", GENERAL.path)
    assert "no input" in said


def test_ctrl_c_passes_through():
    with pytest.raises(KeyboardInterrupt):
        answer(MENU, KeyboardInterrupt())


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("", Choice("resume", Path("checkpoints"))),
        ("r", Choice("resume", Path("checkpoints"))),
        ("0", Choice("preset", GENERAL.path)),
        ("02", Choice("preset", OFFLINE.path)),
        (" 2 ", Choice("preset", OFFLINE.path)),
        ("Best_QA", Choice("preset", QA.path)),
        ("01_best_qa", Choice("preset", QA.path)),
        ("01_BEST_QA.json", Choice("preset", QA.path)),
        ("T", Choice("talk")),
        ("e", Choice("export")),
        ("push", Choice("push")),
        ("b", Choice("benchmarks")),
        ("quit", Choice("quit")),
        ("a1", Choice("restore", ARCHIVED.folder)),
    ],
)
def test_numbers_names_and_letters(typed, expected):
    assert answer(MENU, typed)[0] == expected


def test_a_wrong_name_is_asked_again_with_the_nearest():
    choice, said = answer(MENU, "best_genral", "7", "n", "1")
    assert choice == Choice("preset", QA.path)
    assert "there is no 'best_genral'; the nearest is 'best_general'" in said
    choices = "00_best_general, 01_best_qa, 02_offline_python, 03_mine, q, r, t, e, p, b, a1"
    assert f"there is no '7'; there is {choices}; ? shows the menu" in said


def test_a_wrong_name_without_a_terminal_is_an_error():
    with pytest.raises(UserError, match="00_best_general, n, q, t, e, p, b"):
        answer(Menu([GENERAL], FINISHED, has_model=True), "xyz", terminal=False)
    with pytest.raises(UserError, match="the nearest is 'best_general'"):
        answer(MENU, "best_genral", terminal=False)


def test_bytes_that_are_no_text_are_a_wrong_name_and_never_enter():
    with pytest.raises(UserError, match="there is no"):
        answer(MENU, UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid"), terminal=False)


def test_exit_leaves_as_quit_does():
    assert answer(MENU, "exit")[0] == Choice("quit")


def test_letters_that_do_not_apply_are_wrong_names():
    for letter in ("n", "a1"):
        with pytest.raises(UserError, match=f"there is no '{letter}'"):
            answer(Menu([GENERAL]), letter, terminal=False)


@pytest.mark.parametrize(
    ("letter", "says"),
    [
        ("r", "there is no unfinished run to resume"),
        ("t", "there is no trained model to talk to yet"),
        ("talk", "there is no trained model to talk to yet"),
        ("e", "there is no trained model to export yet"),
        ("p", "there is no trained model to push yet"),
        ("b", "there is no trained model to measure yet"),
    ],
)
def test_without_a_run_its_letters_say_so(letter, says):
    with pytest.raises(UserError, match=says):
        answer(Menu([GENERAL]), letter, terminal=False)
    choice, said = answer(Menu([GENERAL]), letter, "q")
    assert choice == Choice("quit")
    assert says in said


def test_a_person_may_see_the_menu_again_as_it_is_by_now():
    choice, said = answer(Menu([OFFLINE]), "?", "?", "q", later=MENU)
    assert choice == Choice("quit")
    assert said.count(render_menu(MENU)) == 2
    with pytest.raises(UserError, match=r"there is no '\?'"):
        answer(MENU, "?", terminal=False)


@pytest.mark.parametrize("name", ["t", "e", "q", "n", "a1", "r"])
def test_a_preset_that_is_called_like_a_letter_is_chosen_by_its_number_or_file(name):
    menu = dataclasses.replace(MENU, entries=[*MENU.entries, entry(f"10_{name}")])
    assert f"\n10  {name} " in render_menu(menu)
    assert answer(menu, "10")[0] == answer(menu, f"10_{name}")[0] == Choice("preset", Path(f"configs/10_{name}.json"))
    assert answer(Menu(menu.entries), "10")[0].action == "preset"
    if name != "n":  # which means something beside a finished run alone
        assert answer(menu, name)[0].action != "preset"


def test_two_presets_of_one_number_must_be_named():
    twins = Menu([entry("01_a"), entry("01_b")])
    choice, said = answer(twins, "1", "01_b")
    assert choice == Choice("preset", Path("configs/01_b.json"))
    assert "01_a or 01_b" in said


def test_a_chosen_preset_is_never_swapped():
    menu = Menu([entry("00_a", silent=("c4",)), BROKEN, OFFLINE])
    for asked, problem in (
        ("a", "00_a cannot start: c4 is not available\n  c4: connection refused"),
        ("3", "name is missing"),
    ):
        choice, said = answer(menu, asked, "q")  # a person is asked again
        assert choice == Choice("quit")
        assert problem in said
        with pytest.raises(UserError, match=re.escape(problem)):
            answer(menu, asked, terminal=False)


@pytest.mark.parametrize("asked", ["0", "new", "3", "t"])
def test_a_choice_that_fails_is_tried_on_what_is_there_by_now(asked):
    """The network is back, a preset was added or corrected, a run elsewhere has saved its first checkpoint."""
    before = Menu([entry("00_a", silent=("c4",)), BROKEN])
    later = Menu([entry("00_a"), entry("03_mine"), entry("04_new")], has_model=True)
    choice, said = answer(before, asked, later=later)
    assert choice.path.stem in ("00_a", "04_new", "03_mine", "")
    assert "cannot start" not in said


def test_enter_with_nothing_ready_looks_again_and_says_what_enter_would_take():
    choice, said = answer(Menu([entry("00_a", silent=("c4",))]), "", "", later=Menu([entry("00_a")]))
    assert choice == Choice("preset", Path("configs/00_a.json"))
    assert said.splitlines()[-1] == "Enter: start 00_a, ~1 h 0 min here"
    with pytest.raises(UserError, match="no preset is ready"):
        answer(Menu([entry("00_a", silent=("c4",))]), "", EOFError())


def test_a_new_run_beside_a_finished_one_is_still_meant_after_looking_again():
    menu = dataclasses.replace(MENU, current=FINISHED)
    assert answer(menu, "n", "wrong", "")[0] == Choice("preset", GENERAL.path)


def test_a_long_run_may_be_chosen_but_is_not_the_default():
    menu = Menu([entry("00_a", hours=30), OFFLINE])
    assert answer(menu, "0")[0] == Choice("preset", Path("configs/00_a.json"))
    assert answer(menu, "")[0] == Choice("preset", OFFLINE.path)


def test_a_finished_run_offers_leaving_talking_and_a_new_run():
    menu = dataclasses.replace(MENU, current=FINISHED)
    choice, said = answer(menu, EOFError(), terminal=False)
    assert choice == Choice("quit")
    assert "finished" in said
    assert answer(menu, "t")[0] == Choice("talk")
    choice, said = answer(menu, "n", "")
    assert choice == Choice("preset", GENERAL.path)
    assert "start 00_best_general" in said


# --- what is shown ----------------------------------------------------------------------------------------------------


def columns(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in line)


def test_the_menu_shows_what_a_choice_costs_and_needs():
    shown = render_menu(dataclasses.replace(MENU, entries=[entry("00_a", silent=("c4",)), BROKEN]))
    for part in ("00  a", "15.1M", "1.2 GB", "1 h 0 min", "✓ wikipedia", "✗ connection refused: c4", "One sentence"):
        assert part in shown
    for part in ("03_mine", "✗ name is missing; allowed: text", "r  resume", "34.0M of 100M", "a1  restore", "t  talk"):
        assert part in shown
    assert "e  export" in shown


def test_without_a_model_there_is_nothing_to_talk_to():
    assert "talk" not in render_menu(Menu([GENERAL]))


@pytest.mark.parametrize("num_presets", [1, 3, 6, 14])
def test_the_menu_fits_a_small_terminal(num_presets):
    entries = [entry(f"{n:02d}_{'long' * 10}", answering=("数" * 60, "b" * 50)) for n in range(num_presets)]
    lines = render_menu(Menu(entries, UNFINISHED, [ARCHIVED] * 9, has_model=True)).splitlines()
    assert len(lines) <= 24
    assert all(columns(line) <= 80 for line in lines)
    assert sum("long" in line for line in lines) >= num_presets


@pytest.mark.parametrize("silent", [(), ("c4", "squad", "wikipedia")])
@pytest.mark.parametrize("current", [None, UNFINISHED, FINISHED])
@pytest.mark.parametrize("num_archived", [0, 1, 9])
def test_eight_presets_runs_and_the_question_fit_a_small_terminal(silent, current, num_archived):
    entries = [entry(f"{n:02d}_{'long_name' * 3}_{n}", silent=silent) for n in range(8)]
    menu = Menu(entries, current, [ARCHIVED] * num_archived, has_model=True)
    shown = render_menu(menu)
    _, said = answer(menu, EOFError(), terminal=False) if current or not silent else (None, nothing_ready(menu))
    below = wrapped(said.replace("\nno input: using the default, as with Enter", ""), 80)
    assert len(shown.splitlines()) + len(below.splitlines()) + 1 <= 24  # the prompt
    assert all(columns(line) <= 80 for line in shown.splitlines())
    assert ("a9" in shown) == (num_archived == 9)


def test_with_more_presets_older_archived_runs_share_a_line():
    shown = render_menu(Menu([entry(f"{n:02d}_{n}") for n in range(13)], UNFINISHED, [ARCHIVED] * 9, has_model=True))
    assert len(shown.splitlines()) + 2 <= 24  # what Enter takes, and the prompt
    assert "a1  restore     best_qa" in shown
    assert "a2  restore     an older run; there are 9, up to a9" in shown


def nothing_ready(menu: Menu) -> str:
    with pytest.raises(UserError) as raised:
        default_choice(menu.entries, menu.current)
    return str(raised.value)


def test_presets_of_one_name_are_told_apart_by_their_files():
    copy = dataclasses.replace(GENERAL, path=Path("configs/07_copy.json"))
    shown = render_menu(Menu([GENERAL, copy, QA]))
    assert "00  00_best_general " in shown
    assert "07  07_copy " in shown
    assert "01  best_qa " in shown


def test_the_menu_leaves_room_for_what_enter_says():
    entries = [entry(f"{n:02d}_{n}", silent=("c4",)) for n in range(5)]
    shown = render_menu(Menu([*entries, OFFLINE]))
    _, reason = default_choice([*entries, OFFLINE], None)
    assert "  not 2 more presets" in reason
    assert len(shown.splitlines()) + len(reason.splitlines()) + 1 <= 24
    assert shown.count("One sentence") < 6
    assert render_menu(Menu([*entries, OFFLINE]), (80, 50)).count("One sentence") == 6


def test_where_there_is_room_for_two_lines_these_are_what_a_preset_is_or_what_it_lacks():
    entries = [entry(f"{n:02d}_{n}") for n in range(6)] + [entry("06_a", silent=("c4",))]
    shown = render_menu(Menu(entries)).splitlines()
    assert shown.count("    One sentence about it.") == 6
    assert shown.count("    ✓ wikipedia  ✗ connection refused: c4") == 1
    assert "    ✓ wikipedia" not in shown


def test_a_wider_terminal_shows_more_of_the_sources():
    menu = Menu([entry("00_a", answering=("c" * 100,))])
    assert "c" * 100 in render_menu(menu, (120, 24))
    assert max(columns(line) for line in render_menu(menu, (40, 10)).splitlines()) == 80


def card(**changes) -> StartCard:
    values = {
        "preset": GENERAL.preset,
        "sources": [
            SourceInfo("wikipedia", "41 shards", "Anarchism is\x1b[31m a political\nphilosophy" + "数" * 80, [])
        ],
        "shares": [1.0],
        "tokenizer": "byte-level BPE, 8192 tokens",
        "num_parameters": 15_100_000,
        "rows_per_step": 512,
        "world_size": 2,
        "token_budget": 100_000_000,
        "tokens_seen": 0,
        "decisions": [("bf16", "this CPU has AVX512-BF16"), ("no torch.compile", "no C++ compiler found")],
        "peak_memory_bytes": 1_230_000_000,
        "disk_needed_bytes": 700_000_000,
        "disk_free_bytes": 90_000_000_000,
        "tokens_per_second": 20_000.0,
        "export_bytes": 60_000_000,
    }
    return StartCard(**{**values, **changes})


def test_the_start_card_says_everything_decided():
    shown = render_card(card())
    # 512 rows x 64 tokens = 32,768 tokens a step; 100,000,000 / 32,768 = 3051.8
    for part in (
        "41 shards",
        "Anarchism is",
        "15.1M parameters",
        "32,768 tokens a step, 3,052 steps",
        "1.2 GB",
        "700 MB",
    ):
        assert part in shown
    for part in ("bf16: this CPU has AVX512-BF16", "no C++ compiler", "20.0k tokens/s, 1 h 23 min to go"):
        assert part in shown
    assert "\x1b" not in shown
    assert all(columns(line) <= 80 for line in shown.splitlines())


@pytest.mark.parametrize("strategy", ["round_robin", "sequential", "weighted"])
def test_the_card_says_that_weights_have_no_effect(strategy):
    data = DataConfig(sources=["wikipedia"], source_weights=[2.0], mix_strategy=strategy)
    shown = render_card(card(preset=GENERAL.preset.model_copy(update={"data": data})))
    said = 'mixed      source_weights has no effect without mix_strategy "weighted"'
    assert (said in shown.splitlines()) == (strategy != "weighted")


def test_blank_and_wide_facts_have_lines_too():
    shown = render_card(card(tokenizer=" ", sources=[SourceInfo("数" * 20, "数 " * 60, "数 " * 60, [])]))
    assert all(columns(line) <= 80 for line in shown.splitlines())
    assert shown.count("数") == 9 + 60 + 20  # a clipped label, all facts, a clipped first line


def test_a_long_fact_goes_on_in_the_next_line():
    facts = "16,354 files, 281 MB; left out: 503 empty, 116 duplicates, 12 too short, 3 not UTF-8"
    shown = render_card(card(sources=[SourceInfo("python_source", facts, "import os", [])]))
    assert "not UTF-8" in shown
    assert "…" not in shown
    assert all(columns(line) <= 80 for line in shown.splitlines())


def test_a_resumed_run_counts_what_is_left():
    assert "1,526 steps" in render_card(card(tokens_seen=50_000_000))


@given(text=st.text(max_size=60), width=st.integers(2, 40))
def test_clipped_text_is_printable_and_fits(text, width):
    clipped = clip(text, width)
    assert clipped.isprintable()
    assert columns(clipped) <= width
    if text.isprintable() and columns(text) <= width:
        assert clipped == text


@given(text=st.text(st.sampled_from("ab数-/ \n"), max_size=60), width=st.integers(2, 20))
def test_wrapped_text_has_every_word_in_lines_that_fit(text, width):
    lines = wrapped(text, width).splitlines()
    assert " ".join(lines).split() == text.split()
    assert all(columns(line) <= width or " " not in line.strip() for line in lines)


def test_a_continued_line_is_indented_like_its_beginning():
    assert wrapped("what\n    a long hint", 12) == "what\n    a long\n    hint"


def test_sources_that_cannot_even_be_asked_for_are_not_ready(monkeypatch, tmp_path):
    def broken(sources):
        raise RuntimeError("a defect")

    (tmp_path / "07_mine.json").write_text(entry("07_mine").preset.model_dump_json(by_alias=True))
    monkeypatch.setattr(choose, "probe", broken)
    monkeypatch.setattr(choose, "load_machine", lambda folder: Machine("here", "cpu", "CPU", True, True, 7e11))
    (mine,) = choose.gather_menu(tmp_path / "checkpoints", tmp_path).entries
    assert mine.sources == [Probe("07_mine", False, "its sources cannot be checked (RuntimeError)")]


def test_a_gpu_that_cannot_be_measured_does_not_end_the_menu(monkeypatch, tmp_path, capsys):
    def measure(device: str = "") -> Machine:
        if not device:
            raise RuntimeError("CUDA error: an illegal instruction\nCompile with TORCH_USE_CUDA_DSA")
        return Machine("here", device, "CPU", True, True, 7e11)

    (tmp_path / "07_mine.json").write_text(entry("07_mine").preset.model_dump_json(by_alias=True))
    monkeypatch.setattr(choose, "probe", lambda sources: [])
    monkeypatch.setattr(choose, "choose_wait_policy", lambda: None)
    monkeypatch.setattr(choose, "measure_machine", measure)
    (mine,) = choose.gather_menu(tmp_path / "checkpoints", tmp_path).entries
    assert 0 < mine.seconds < 1e9
    assert "measuring the GPU fails (CUDA error: an illegal instruction)" in "".join(capsys.readouterr())
    assert not (tmp_path / "checkpoints").exists()


def test_files_that_the_menu_does_not_show_are_named(tmp_path):
    misnamed = ["05 spaced.json", "11_b.JSON", "12_b.json.txt", "notes.json"]
    for name in ("10_b.json", "preset.schema.json", "a.txt", "._10_b.json", *misnamed):
        (tmp_path / name).touch()
    assert unlisted_presets(tmp_path) == misnamed
    entries = [entry(f"{n:02d}_{n}") for n in range(8)]
    for names in (misnamed, [f"{n} {'long' * 9}.json" for n in range(9)]):
        menu = Menu(entries, UNFINISHED, [ARCHIVED] * 9, has_model=True, unlisted=names)
        lines = render_menu(menu).splitlines()
        assert len(lines) + 2 <= 24  # what Enter takes, and the prompt
        (said,) = [line for line in lines if f"Not in the menu: {names[0][:12]}" in line]
        assert said.endswith("; name presets as 10_mine.json is")
        assert columns(said) <= 80


@pytest.mark.parametrize(
    ("detail", "shown"),
    [
        ("the Hub cannot be reached (host: timed out)", "the Hub cannot be reached"),
        (
            "the Hub cannot be reached (host: timed out, through the proxy in http_proxy)",
            "(through the proxy in http_proxy)",
        ),
        (
            "the Hub cannot be reached (host: it says (404), at the address in HF_ENDPOINT)",
            "(at the address in HF_ENDPOINT)",
        ),
        ("is private: use another token (not that in HF_TOKEN)", "use another token (not that in HF_TOKEN)"),
    ],
)
def test_the_variable_at_fault_is_in_the_menu(detail, shown):
    asked = dataclasses.replace(GENERAL, sources=[Probe("data", False, detail)])
    assert f"{shown}: data" in render_menu(Menu([asked]))


def test_a_run_resumes_with_the_file_of_its_name_that_fits_its_weights(monkeypatch, tmp_path):
    configs, folder = tmp_path / "configs", tmp_path / "checkpoints"
    save(folder, make_state(10) | {"preset": GENERAL.preset.to_json()})

    def resumed(**widths: int) -> tuple[int, int]:
        """The width of the preset that is taken, and the budget. `widths`: of the files of the run's name."""
        configs.mkdir(exist_ok=True)
        for name, width in widths.items():
            model = {"hidden_size": width, "num_layers": 2, "num_heads": 4, "seq_length": 64}
            given = {"name": "best_general", "model": model, "data": {"sources": ["wikipedia"]}}
            (configs / f"{name[1:]}_mine.json").write_text(json.dumps(given))
        preset, budget = choose.preset_and_budget(Choice("resume", folder), folder, configs)
        return preset.model.hidden_size, budget

    assert resumed() == (64, 1000)  # the checkpoint's own
    with monkeypatch.context() as patch:  # the one file is compared with the run when that is loaded, not here too
        patch.setattr(choose, "saved_preset", None)
        assert resumed(_00=128) == (128, 1000)
    assert resumed(_00=128, _01=64) == (64, 1000)
    shutil.rmtree(folder)  # by another program, while the menu was open
    with pytest.raises(UserError, match="no longer in"):
        resumed()


def test_preset_files_are_numbered_and_in_order(tmp_path):
    for name in ("10_b.json", "02_a.json", "preset.schema.json", "notes.json", "03_c.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in preset_paths(tmp_path)] == ["02_a.json", "10_b.json"]


def test_text_that_will_be_read_again_and_again_is_said():
    small, large, unknown = (
        SourceInfo("notes", "3 files", "", [], text_bytes) for text_bytes in (700_000, 700_000_000, None)
    )

    def shown(source: SourceInfo, **settings) -> str:
        return how_much(source, 0.5, 100_000_000, TextSource(type="text", path="notes", **settings))

    assert shown(small) == "3 files, to be read about 250 times"
    assert shown(large) == shown(unknown) == "3 files"
    assert shown(small, repeat=4) == "3 files, to be read 4 times (repeat)"
    assert shown(small, repeat=300) == "3 files, to be read about 250 times"
    assert shown(large, max_documents=10) == "3 files, to be read about 1,068 times"


def test_the_card_says_what_it_means_that_a_small_text_is_read_again_and_again():
    def shown(num_bytes: int, **source) -> str:
        spec = {"type": "text", "label": "notes", "path": "/notes", **source}
        given = json.loads(GENERAL.preset.to_json()) | {"data": {"sources": [spec]}}
        preset = parse_preset(json.dumps(given), "test")
        rendered = render_card(card(preset=preset, sources=[SourceInfo("notes", "a file", "Dear", [], num_bytes)]))
        assert all(columns(line) <= 80 for line in rendered.splitlines())
        return " ".join(rendered.split())

    small = shown(1_000_000)
    assert "notes is read about 350 times in 100,000,000 tokens: a few are fine" in small
    assert "some tens and the model knows it by heart" in small
    assert '"repeat": 4 in that source ends it after 4, and the run when all have ended' in small
    assert "The best checkpoint on held-out text is kept, and exported if it beats the last" in small
    assert "about 10 times in 100,000,000 tokens: a few are fine, each later one teaches less" in shown(35_000_000)
    for num_bytes, source in ((350_000_000, {}), (1_000_000, {"repeat": 4})):
        assert "heart" not in shown(num_bytes, **source)
        assert '"repeat"' not in shown(num_bytes, **source)
    ends = shown(1_000_000, repeat=4)  # of 3.5 bytes a token
    assert "a file, to be read 4 times (repeat) “Dear” ends after about 1.1M tokens, with the last reading" in ends

    def with_finish(repeat: int) -> str:
        notes = {"type": "text", "label": "notes", "path": "/notes", "repeat": repeat}
        letters = {"type": "text", "label": "letters", "path": "/letters"}
        data = {"sources": [notes], "finish": {"share": 0.3, "sources": [letters]}}
        preset = parse_preset(json.dumps(json.loads(GENERAL.preset.to_json()) | {"data": data}), "test")
        sources = [SourceInfo(name, "a file", "Dear", [], 35_000_000) for name in ("notes", "letters")]
        return " ".join(render_card(card(preset=preset, sources=sources, shares=[0.7, 0.3])).split())

    never = "it will not begin: the sources before it are used up then, by their `repeat`"
    assert never in with_finish(6)
    assert "ends after about 60.0M tokens" in with_finish(6)
    assert "finish" in with_finish(8)
    assert never not in with_finish(8), "it begins after 70M of 80M"
    assert "ends after" not in with_finish(8)
    assert "35 steps" in ends  # of 32,768 tokens
    assert "20.0k tokens/s, 57 s to go" in ends
    assert "ends after" not in shown(100_000_000, repeat=4) + shown(1_000_000)
    assert "A few readings teach nearly as much as new text." in shown(120_000_000)


def test_numbers_for_people():
    assert [human_time(s) for s in (5, 59.4, 61, 3599, 4800, 200_000)] == [
        "5 s",
        "59 s",
        "1 min",
        "1 h 0 min",
        "1 h 20 min",
        "2.3 days",
    ]
    assert [counted(n, "layer") for n in (0, 1, 2, 6104)] == ["0 layers", "1 layer", "2 layers", "6,104 layers"]
    assert [human_count(n) for n in (0, 950, 17_500, 999_600, 100_000_000)] == ["0", "950", "17.5k", "1.0M", "100M"]
    assert [human_bytes(n) for n in (512, 1_230_000_000, 24e9)] == ["512 B", "1.2 GB", "24.0 GB"]


def test_the_card_says_what_to_expect_of_a_chat_model_and_of_a_continued_one():
    def expected(name: str) -> str:
        preset = load_preset(Path(__file__).parents[3] / "configs" / f"{name}.json")
        preset = preset.model_copy(update={"model": preset.model.completed(GENERAL.preset.model)})
        sources = [SourceInfo(source.label, "", "", []) for source in preset.data.all_sources]
        shown = render_card(card(preset=preset, sources=sources, shares=[1 / len(sources)] * len(sources)))
        assert all(columns(line) <= 80 for line in shown.splitlines())
        return " ".join(shown.partition("expect")[2].split())

    assert expected("05_chat").startswith(
        "a model to talk to. It learns what an answer looks like, much less what is true"
    )
    assert expected("06_my_texts").startswith("what that model knows, in the style of your text.")
    assert "continues text, also if that one answers: there are no conversations" in expected("06_my_texts")
    assert expected("00_best_general") == ""
