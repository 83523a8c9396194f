"""What a preset may say: defaults, every refusal with its place in the JSON, and all of them at once."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import PresetError
from configs.schema import Preset, UserError, load_preset, parse_preset, saved_preset

pytestmark = pytest.mark.core

MODEL = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "seq_length": 64}
QA = {"type": "hf", "dataset": "owner/qa", "fields": ["question", "answer"], "format": "{question} {answer}"}


TEXT = {"type": "hf", "dataset": "owner/text"}
NAMED_C4 = {"type": "hf", "dataset": "allenai/c4", "config": "en", "text_field": "text", "label": "mine"}


def preset_of(**sections) -> dict:
    return {"name": "small", "model": MODEL, "data": {"sources": ["wikipedia"]}, **sections}


def parse(**sections) -> Preset:
    return parse_preset(json.dumps(preset_of(**sections)), "p.json")


def refusal(text: str | None = None, **sections) -> str:
    with pytest.raises(PresetError) as caught:
        parse_preset(text if text is not None else json.dumps(preset_of(**sections)), "p.json")
    return str(caught.value)


def test_defaults_are_resolved_and_stored():
    preset = parse()
    assert (preset.model.vocab_size, preset.model.mlp_size, preset.model.head_dim) == (8192, 192, 16)
    assert preset.train.per_gpu_batch_size * preset.model.seq_length == 16_384
    assert not preset.auxiliary.any_head
    stored = json.loads(preset.to_json())
    assert stored["model"]["mlp_size"] == 192
    assert stored["train"]["per_gpu_batch_size"] == 256
    assert stored["auxiliary"]["adaptive_min_weight"] == 0.5


@pytest.mark.parametrize(("hidden_size", "vocab_size"), [(256, 8192), (384, 8192), (386, 16384), (768, 16384)])
def test_vocabulary_grows_with_the_model(hidden_size, vocab_size):
    assert parse(model={**MODEL, "hidden_size": hidden_size, "num_heads": 1}).model.vocab_size == vocab_size


def test_grouped_queries_and_heads_of_any_width():
    model = parse(model={**MODEL, "num_heads": 3, "num_kv_heads": 1, "head_dim": 10}).model
    assert (model.heads_qkv, model.head_dim) == ((3, 1, 1), 10)
    assert parse().model.heads_qkv == (4, 4, 4)


def test_an_embedding_of_its_own_is_normed_but_not_that_of_a_checkpoint_from_before():
    assert parse().model.embedding_norm
    assert not parse(model={**MODEL, "tie_embeddings": True}).model.embedding_norm
    assert not parse(model={"init_from": "owner/name", "seq_length": 64}).model.embedding_norm
    stored = json.loads(parse().to_json())
    assert saved_preset(json.dumps(stored)) == parse()
    del stored["model"]["embedding_norm"]
    assert saved_preset(json.dumps(stored)) == parse(model={**MODEL, "embedding_norm": False})


def test_a_model_to_start_from_stands_for_the_shape():
    preset = parse(model={"init_from": "owner/name", "revision": "v1", "seq_length": 64, "head_dim": 8})
    assert preset.model.unknown >= {"hidden_size", "num_layers", "num_heads", "vocab_size", "qk_norm"}
    stored = json.loads(preset.to_json())["model"]
    assert stored == {
        "init_from": "owner/name",
        "revision": "v1",
        "seq_length": 64,
        "head_dim": 8,
        "embedding_norm": False,
    }
    assert parse_preset(preset.to_json(), "again") == preset
    known = preset.model.completed(parse().model)
    assert (known.hidden_size, known.num_layers, known.head_dim, known.unknown) == (64, 2, 8, set())


@settings(max_examples=60)
@given(
    heads=st.integers(1, 16),
    half_head=st.integers(8, 64),
    seq_length=st.integers(8, 8192),
    weights=st.lists(st.floats(1e-6, 1e6) | st.integers(1, 100), min_size=1, max_size=5),
    rates=st.dictionaries(st.sampled_from(["weight_decay", "matrix_learning_rate"]), st.floats(1e-6, 1)),
    smoothing=st.floats(0, 1, exclude_max=True),
)
def test_to_json_gives_the_same_preset_back(heads, half_head, seq_length, weights, rates, smoothing):
    preset = parse(
        model={"hidden_size": 2 * heads * half_head, "num_layers": 1, "num_heads": heads, "seq_length": seq_length},
        train=rates,
        data={"sources": [QA] * len(weights), "mix_strategy": "weighted", "source_weights": weights},
        auxiliary={"adaptive_smoothing": smoothing},
    )
    again = parse_preset(preset.to_json(), "stored")
    assert again == preset
    assert again.to_json() == preset.to_json()
    assert len({source.label for source in again.data.all_sources}) == len(weights)


@pytest.mark.parametrize("given", ["baby", 10**6, [0], [5, "7"], [10**13], list(range(1, 1002)), None])
def test_a_mistake_in_the_points_to_keep_is_one_problem(given):
    message = refusal(train={"keep_at_tokens": given})
    assert message.count("p.json: ") == 1
    assert "p.json: train.keep_at_tokens = " in message
    assert '    allowed: "babylm", or a list of at most 1,000 whole numbers from 1 to 1,000,000,000,000' in message


def test_every_problem_is_listed_at_once_with_its_place():
    message = refusal(
        model={**MODEL, "num_heads": 5, "hiden_size": 3},
        train={"eval_tokens": 2.5, "seed": True},
        data={"sources": ["wikipeda", {"type": "hf", "dataset": "a/b", "text_field": 5}], "mix_strategy": "roundrobin"},
        auxiliary={"adaptive_max_weight": 0.1},
        extra=1,
    )
    for place in (
        "p.json: model.num_heads = 5\n",
        'p.json: model.hiden_size = 3: unknown key\n    did you mean "hidden_size"?',
        "p.json: train.eval_tokens = 2.5\n    allowed: a whole number from 1 to",
        "p.json: train.seed = true\n    allowed: a whole number from 0 to",
        'p.json: data.sources[0] = "wikipeda": there is no such choice\n    did you mean "wikipedia"?',
        "p.json: data.sources[1].text_field = 5\n    allowed: text",
        'p.json: data.mix_strategy = "roundrobin": there is no such choice\n    did you mean "round_robin"?',
        "p.json: auxiliary.adaptive_max_weight = 0.1\n    at least adaptive_min_weight, 0.5",
        "p.json: extra = 1: unknown key",
    ):
        assert place in message
    assert message.count("p.json: ") == 9


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"model": {**MODEL, "hidden_size": 8}}, "model.hidden_size = 8\n    allowed: a whole number from 16 to 8192"),
        ({"model": {**MODEL, "hidden_size": "64"}}, 'model.hidden_size = "64"'),
        ({"model": {**MODEL, "hidden_size": 65}}, "allowed: a whole number from 16 to 8192, a multiple of 2."),
        (
            {"model": {**MODEL, "tie_embeddings": True, "embedding_norm": True}},
            "model.embedding_norm = true\n    only without tie_embeddings, whose matrix",
        ),
        (
            {"model": {"init_from": "owner/name", "seq_length": 64, "embedding_norm": True}},
            "model.embedding_norm = true\n    only without tie_embeddings, whose matrix",
        ),
        ({"train": {"multi_token_weights": 0.5}}, "multi_token_weights = 0.5\n    allowed: a list of numbers."),
        ({"train": {"multi_token_weights": ["x"]}}, 'multi_token_weights[0] = "x"\n    allowed: a number.'),
        (
            {"train": {"benchmarks": ["blimp", "a b"]}},
            'benchmarks[1] = "a b"\n    allowed: text. Benchmarks at the end of the run, by their names in lm_eval (letters',
        ),
        (
            {"model": {"hiden_size": 64, "num_layers": 1, "num_heads": 1}},
            "p.json: model.hiden_size = 64: unknown key\n",
        ),
        ({"model": {**MODEL, "hidden_size": 64.0}}, "model.hidden_size = 64.0"),
        ({"model": {**MODEL, "num_heads": 64}}, "a whole even number; allowed: [1, 2, 4, 8, 16, 32]"),
        ({"model": {"seq_length": 64}}, "model.num_layers is missing"),
        (
            {"model": {**MODEL, "num_kv_heads": 3}},
            "num_heads / num_kv_heads must be a whole number; allowed: [1, 2, 4]",
        ),
        ({"model": {**MODEL, "head_dim": 7}}, "an even number"),
        ({"model": {**MODEL, "num_heads": 3, "head_dim": 10, "qk_norm": False}}, f"{MODEL['hidden_size']} / 3 is not"),
        ({"model": {**MODEL, "revision": "v1"}}, "only with init_from, and with a name on the Hub there"),
        ({"model": {"init_from": "./here", "revision": "v1", "seq_length": 8}}, "only with init_from"),
        ({"model": {"init_from": "here", "seq_length": 8}}, "owner/name on the Hub, or a folder"),
        ({"model": {"init_from": "https://huggingface.co/a/b", "seq_length": 8}}, 'write "a/b", the name of the model'),
        (
            {"model": {"init_from": "a/b", "seq_length": 8}, "data": {"sources": ["wikipedia"], "tokenizer": "t.json"}},
            "the tokenizer is that of model.init_from",
        ),
        ({"model": {**MODEL, "vocab_size": 257}}, "model.vocab_size = 257"),
        ({"model": {**MODEL, "seq_length": 8193}}, "model.seq_length = 8193"),
        ({"model": {"hidden_size": 64}}, "model.num_layers is missing"),
        ({"model": []}, "model = []\n    allowed: an object"),
        ({"train": {"gradient_clip": 0}}, "train.gradient_clip = 0\n    allowed: a number above 0"),
        ({"train": {"weight_decay": True}}, "train.weight_decay = true"),
        ({"train": {"warmup_fraction": 0.6}}, "train.decay_fraction = 0.5\n    warmup_fraction 0.6 + decay_fraction"),
        ({"data": {"sources": []}}, "1 to 200 of them"),
        ({"data": {"sources": ["wikipedia"] * 201}}, "at most 200 items"),
        ({"data": {"sources": ["wikipedia", QA], "source_weights": [1]}}, "1 given; needed: one for each of 2"),
        ({"data": {"sources": ["wikipedia"], "source_weights": [0]}}, "data.source_weights[0] = 0"),
        (
            {"data": {"sources": [{"path": "x"}]}},
            'data.sources[0] = {"path": "x"}\n    allowed: a named source',
        ),
        ({"data": {"sources": [{"type": "pdg", "path": "x"}]}}, 'data.sources[0].type = "pdg": unknown kind'),
        ({"data": {"sources": [{"type": "text", "path": "x", "glob": "../*"}]}}, "data.sources[0].glob"),
        ({"data": {"sources": [], "custom_sources": [{"type": "pdf"}]}}, "data.custom_sources[0].path is missing"),
        (
            {
                "data": {"sources": ["wikipedia"], "mix_strategy": "sequential"},
                "auxiliary": {"enable_adaptive_sources": True},
            },
            "enable_adaptive_sources needs mix_strategy",
        ),
        ({"name": "../up"}, 'name = "../up"'),
        (
            {"data": {"sources": ["c4"], "finish": {"shar": 0.1, "share": 1, "sources": ["c"]}}},
            'p.json: data.finish.shar = 0.1: unknown key\n    did you mean "share"?',
        ),
        (
            {"data": {"sources": ["c4"], "finish": {"share": 1, "sources": ["c4"]}}},
            "data.finish.share = 1\n    allowed: a number",
        ),
        (
            {"data": {"sources": ["c4"], "finish": {"share": 0.1, "sources": ["c"]}}},
            'data.finish.sources[0] = "c": there is no',
        ),
        ({"data": {"sources": ["c4"], "finish": {"share": 0.1}}}, "data.finish.sources is missing"),
        (
            {"data": {"sources": ["c4"], "finish": {"share": 0.1, "sources": ["c4"], "source_weights": [1, 2]}}},
            "data.finish.source_weights = [1, 2]\n    2 given; needed: one for each of 1 source",
        ),
        (
            {"data": {"sources": ["c4"], "finish": {"share": 0.1, "sources": ["c4"], "source_weights": [1]}}},
            'its source_weights need mix_strategy "weighted"',
        ),
        (
            {"data": {"sources": ["c4"], "mix_strategy": "sequential", "finish": {"share": 0.1, "sources": ["c4"]}}},
            'needs mix_strategy "round_robin" or "weighted"',
        ),
        ({"data": {"sources": ["c4"], "watch": [NAMED_C4]}}, "data.watch = [{"),
        ({"data": {"sources": ["c4"], "watch": [NAMED_C4]}}, "\n    mine is trained on as well: take it out"),
        (
            {"data": {"sources": ["c4"], "watch": [{**NAMED_C4, "repeat": 1, "max_documents": 9}]}},
            "mine is trained on as well",
        ),
        ({"data": {"sources": ["c4"] * 200, "watch": ["squad"]}}, "together: at most 200 sources"),
        (
            {"data": {"sources": [{**TEXT, "field": "body"}]}},
            'field = "body": unknown key\n    did you mean "text_field"?',
        ),
        ({"train": {"learning_rate": 0.01}}, 'unknown key\n    did you mean "matrix_learning_rate"?'),
        ({"data": {"sources": [{**TEXT, "field": ["a", "b"]}]}}, 'unknown key\n    did you mean "fields"?'),
    ],
)
def test_refusals_say_where_what_and_what_is_allowed(sections, expected):
    assert expected in refusal(**sections)


@pytest.mark.parametrize(
    "model",
    [
        {**MODEL, "num_heads": 3},
        {**MODEL, "num_layers": "two"},
        {**MODEL, "hidden_size": 8},
        {"hiden_size": 64, **{key: value for key, value in MODEL.items() if key != "hidden_size"}},
        {key: value for key, value in MODEL.items() if key != "num_layers"},
    ],
)
def test_one_mistake_is_one_problem_whatever_follows_from_it(model):
    message = refusal(model=model)
    assert message.count("p.json: ") == 1
    assert "more" not in message


def test_a_misspelt_key_hides_one_missing_key_only():
    message = refusal(model={"hidden_size": 64, "num_lheads": 2, "seq_length": 8})
    assert 'num_lheads = 2: unknown key\n    did you mean "num_heads"?' in message
    assert "model.num_layers is missing" in message
    assert message.count("p.json: ") == 2


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("{question.__class__}", "not a bare name"),
        ("{question[0]}", "not a bare name"),
        ("{question!r}", "not a bare name"),
        ("{question:>1000000000}", "not a bare name"),
        ("{question:{answer}}", "not a bare name"),
        ("{}", "not a bare name"),
        ("{0}", "not a bare name"),
        ("{title}", "not a bare name"),
        ("{question", "write {{ and }}"),
        ("question }", "write {{ and }}"),
        ("no field", "every document would be the same"),
        ("{#answer}{answer}", "the section {#answer} does not end"),
        ("{answer}{/answer}", "{/answer} ends no section"),
        ("{#answer}{#question}{answer}{/answer}{/question}", "{/answer} ends no section"),
        ("{#other}{answer}{/other}", "{#other} is not a bare name"),
        ("{#answer}same{/answer}", "uses none of its fields"),
        (None, "need a format"),
    ],
)
def test_a_format_holds_bare_field_names_only(form, reason):
    message = refusal(data={"sources": [{**QA, "format": form}]})
    assert "p.json: data.sources[0].format = " in message
    assert reason in message


def test_a_format_may_hold_braces_and_repeat_fields():
    source = {**QA, "format": '{{"q": "{question}"}} {answer} {answer}'}
    assert parse(data={"sources": [source]}).data.sources[0].format == source["format"]


def test_text_comes_from_one_column_or_from_a_format():
    assert "not both" in refusal(data={"sources": [{**QA, "text_field": "text"}]})
    assert "format needs fields" in refusal(data={"sources": [{"type": "hf", "dataset": "a/b", "format": "{q}"}]})
    assert parse(data={"sources": [{"type": "hf", "dataset": "a/b"}]}).data.sources[0].text_field == "text"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "a", "name": "b"}', "p.json: name is given more than once"),
        (
            '{"data": {"sources": [{"type": "pdf", "type": "pdf"}]}}',
            "data.sources[0].type is given more than once",
        ),
        ('{"train": {"weight_decay": NaN}}', "train.weight_decay = NaN\n    numbers must be finite"),
        ('{"train": {"weight_decay": 1e999}}', "train.weight_decay = Infinity\n    numbers must be finite"),
        ('{"train": {"seed": ' + "9" * 5000 + "}}", "not JSON"),
        ('{"name": "a\\u0000b"}', "without NUL"),
        ('{"name": "\\ud800"}', "lone surrogates"),
        ("[1]", "[1] is not an object"),
        ("", "line 1, column 1: not JSON"),
        ('{"name": "a",}', "not JSON"),
        ('{"name": "a" , }', "remove the comma before it"),
        ('{"name": ["a",]}', "remove the comma before it"),
        ('{"name": "a"', "not JSON"),
        ('{"a":' * 50_000, "nested too deeply"),
        (" " * 1_000_001, "larger than"),
    ],
)
def test_json_is_read_strictly(text, expected):
    assert expected in refusal(text)


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"\xff\xfe{}", "not UTF-8"), (b" " * 1_000_001, "larger than"), (b'{"name": "\0"}', "not JSON")],
)
def test_unusable_files_are_named(tmp_path, content, expected):
    path = tmp_path / "p.json"
    path.write_bytes(content)
    with pytest.raises(PresetError, match=expected) as caught:
        load_preset(path)
    assert str(path) in str(caught.value)


def test_paths_that_are_no_file(tmp_path):
    for path, expected in (
        (tmp_path / "none.json", "no such file"),
        (tmp_path, "this is a folder"),
        ("a\0b", "cannot be read"),
    ):
        with pytest.raises(UserError, match=expected):
            load_preset(path)


def test_a_byte_order_mark_and_an_editor_schema_are_accepted(tmp_path):
    path = tmp_path / "p.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"$schema": "./preset.schema.json", **preset_of()}).encode())
    assert load_preset(path).name == "small"


def test_labels_are_short_and_unique():
    sources = [
        "wikipedia",
        "wikipedia",
        {"type": "hf", "dataset": "a/b", "config": "x"},
        {"type": "hf", "dataset": "a/b", "config": "y"},
        {"type": "hf", "dataset": "a/c", "config": "z"},
        {"type": "pdf", "path": "~/books/"},
        {"type": "text", "path": "notes.txt", "label": "wikipedia#2"},
        {"type": "python"},
    ]
    labels = [source.label for source in parse(data={"sources": sources}).data.all_sources]
    assert labels[:2] == ["wikipedia", "wikipedia#2"]
    assert labels[2:6] == ["a/b/x", "a/b/y", "a/c", "pdf:books"]
    assert labels[6:] == ["wikipedia#2#2", "python"]
    long = [{"type": "text", "path": f"~/{number}/{'folder' * 15}"} for number in range(2)]
    first, second = (source.label for source in parse(data={"sources": long}).data.all_sources)
    assert first != second
    assert max(map(len, (first, second))) <= 80
    parse(data={"sources": [{**source, "label": label} for source, label in zip(long, (first, second), strict=True)]})


def test_one_column_without_a_format_is_the_text():
    [source] = parse(data={"sources": [{**TEXT, "fields": ["body"]}]}).data.all_sources
    assert (source.text_field, source.fields, source.format) == ("body", None, None)
    assert "fields[0]" in refusal(data={"sources": [{**TEXT, "fields": [""]}]})


def test_a_source_of_both_parts_is_one_source_and_watched_ones_come_last():
    finish = {"share": 0.1, "sources": [NAMED_C4, "squad", "squad"], "source_weights": [3, 1, 1]}
    data = {"sources": ["wikipedia", "c4"], "mix_strategy": "weighted", "source_weights": [2, 1], "watch": ["gooaq"]}
    preset = parse(data={**data, "finish": finish})
    assert [source.label for source in preset.data.all_sources] == ["wikipedia", "c4", "squad", "gooaq"]
    assert len(preset.data.trained_sources) == 3
    assert preset.data.weights == [2, 1, 0, 0, 0, 3, 2, 0]
    assert parse(data=data).data.weights == [2, 1, 0]
    assert parse_preset(preset.to_json(), "stored") == preset


def test_presets_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        parse().model.hidden_size = 128


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        ("https://huggingface.co/datasets/owner/name", 'write "owner/name", the name of the dataset alone'),
        ("https://huggingface.co/datasets/owner/name/tree/main/data", 'write "owner/name"'),
        ("huggingface.co/datasets/owner/name?row=1", 'write "owner/name"'),
        ("hf://datasets/owner/name@main/a.parquet", 'write "owner/name"'),
        ("datasets/name", 'write "name"'),
        ("https://hf-mirror.com/datasets/owner/name", 'write "owner/name"'),
        ("https://mirror.example/hub/datasets/owner/name", 'write "owner/name"'),
        ("https://example.com/rows.jsonl", "its path in data_files"),
        ("https://www.kaggle.com/datasets/owner/name", "an address: write"),
        ("owner/na me", "allowed: text. Dataset on the Hub, owner/name; a folder"),
    ],
)
def test_what_people_paste_as_a_dataset(dataset, says, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/hub/")
    message = refusal(data={"sources": [{"type": "hf", "dataset": dataset}]})
    assert says in message
    assert "pattern" not in message


@pytest.mark.parametrize(
    "given", ["owner/name", "https://huggingface.co/datasets/owner/name/viewer", "datasets/owner/name"]
)
def test_a_dataset_in_place_of_a_named_source(given):
    assert refusal(data={"sources": ["wikipedia", given]}).endswith(
        'write {"type": "hf", "dataset": "owner/name"} for a dataset on the Hub'
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["~/texts"], 'write {"type": "text", "path": "~/texts"} for text files'),
        (["texts.txt"], 'write {"type": "text", "path": "texts.txt"} for text files'),
        (["C:\\a.md"], 'write {"type": "text", "path": "C:\\\\a.md"} for text files'),
        (["book.PDF"], 'write {"type": "pdf", "path": "book.PDF"} for a PDF'),
        (
            ["data/rows.jsonl"],
            'write {"type": "hf", "dataset": "json", "data_files": "data/rows.jsonl"} for a file of rows',
        ),
        (
            ["https://example.com/a.txt"],
            'an address: download what is there, and write {"type": "text", "path": "..."}',
        ),
        ("wikipedia", 'write ["wikipedia"], a list'),
    ],
)
def test_a_path_in_place_of_a_source_is_answered_with_what_to_write(given, says):
    assert says in refusal(data={"sources": given})


def test_the_address_of_a_model_in_place_of_its_name():
    model = {"init_from": "https://huggingface.co/owner/name/tree/main", "seq_length": 64}
    assert 'write "owner/name", the name of the model alone' in refusal(model=model)
    assert 'write "name"' in refusal(model=model | {"init_from": "huggingface.co/name"})
    for name in ("owner/name", "/a/b/c", "./a.b/c/d", "../c.d/e", "~/model.x/y"):
        assert parse(model=model | {"init_from": name}).model.init_from == name


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (
            r'"C:\Users\me"',
            r"a \ is not written so" + "\n    " + r"write \\ for each \ of text; in a path, / does as well",
        ),
        (r'"D:\data\unit"', r"write \\ for each \ of text"),
        (r'"C:\temp\notes"', r"write / or \\ for each \ of a path"),
        ("“/texts”", "straight double quotes"),
        ("'/texts'", "straight double quotes"),
        ("None", "write true, false and null in lower case"),
        ('"/texts" // mine', "JSON has no comments"),
        ('"/texts" # mine', "JSON has no comments"),
    ],
)
def test_what_is_written_in_place_of_json(path, says):
    text = json.dumps(preset_of(data={"sources": [{"type": "text", "path": "HERE"}]}))
    assert says in refusal(text.replace('"HERE"', path))


def test_conversations_stand_alone_in_their_source_and_what_people_write_for_them_is_corrected():
    chat = {"type": "hf", "dataset": "owner/chat"}

    def columns(**keys):
        [spec] = parse(data={"sources": [{**chat, **keys}]}).data.all_sources
        return spec.columns, spec.text_field

    assert columns(messages="messages") == columns(messages=["messages"]) == (["messages"], None)
    assert columns(messages=["prompt", "completion"]) == (["prompt", "completion"], None)
    assert parse(data={"sources": [{**chat, "messages": "messages"}]}).data.has_conversations
    watched = parse(data={"sources": ["wikipedia"], "watch": [{**chat, "messages": "m"}]}).data
    assert watched.has_conversations
    assert not watched.conversations  # of what is watched nothing is learnt
    assert not parse(data={"sources": [chat]}).data.has_conversations
    assert '"messages"' not in parse(data={"sources": [chat]}).to_json()
    for keys, words in {
        "text: not both": {"messages": "m", "text_field": "text"},
        "remove rows_per_document": {"messages": "m", "rows_per_document": 2},
        "remove rows_until": {"messages": "m", "rows_until": "empty"},
        "rows_per_document, not both": {"rows_until": "empty", "rows_per_document": 2},
        "needs text_field": {"rows_until": "heading", "fields": ["a", "b"], "format": "{a} {b}"},
        "every column once": {"messages": ["m", "m"]},
        "the column with the list of turns": {"messages": []},
        'write "messages": "conversations", the column': {"conversations": "conversations"},
        'write "messages": ["prompt", "completion"]': {"prompt": "prompt", "completion": "completion"},
        "no key 'path': write \"dataset\"": {"path": "a/b"},
        "no key 'subset': write \"config\"": {"subset": "en"},
        "is for CSV files, and dataset is 'json'": {"dataset": "json", "data_files": "a.jsonl", "delimiter": ";"},
    }.items():
        assert keys in refusal(data={"sources": [{**chat, **words}]})


def test_a_vocabulary_has_room_for_the_markers_of_turns():
    chat = {"sources": [{"type": "hf", "dataset": "owner/chat", "messages": "messages"}]}
    assert "at least 261" in refusal(data=chat, model={**MODEL, "vocab_size": 260})
    assert parse(data=chat, model={**MODEL, "vocab_size": 261})
    assert parse(model={**MODEL, "vocab_size": 258})


def test_so_many_changes_of_weights_as_no_checkpoint_holds_are_refused_with_the_least_interval():
    sources = {"sources": [{**TEXT, "label": f"text {n}"} for n in range(200)]}
    adaptive = {"enable_adaptive_sources": True, "adaptive_interval_tokens": 100_000}
    assert "at least 133,334 with so many sources" in refusal(data=sources, auxiliary=adaptive)
    assert parse(data=sources, auxiliary=adaptive | {"adaptive_interval_tokens": 133_334})
