"""Which edits of a preset an unfinished run survives; the others are named with both their values."""

import json

import pytest

from configs.diff import changes, check_continuable, describe, fixed_changes, with_labels_of
from configs.errors import PresetError, UserError
from configs.schema import Preset, parse_preset

pytestmark = pytest.mark.core

PRESET = {
    "name": "small",
    "model": {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "seq_length": 64},
    "data": {"sources": ["wikipedia"]},
}


def preset(**edits) -> Preset:
    """`train__seed=1` edits train.seed."""
    value = json.loads(json.dumps(PRESET))
    for path, new in edits.items():
        section, _, key = path.rpartition("__")
        (value.setdefault(section, {}) if section else value)[key] = new
    return parse_preset(json.dumps(value), "p.json")


def test_equal_presets_have_no_changes():
    assert changes(preset(), preset()) == {}


def test_names_and_sentences_do_not_count():
    assert changes(preset(), preset(name="other", description="A sentence.", **{"$schema": "s.json"})) == {}


def test_a_default_written_out_is_no_change():
    assert changes(preset(), preset(model__mlp_size=192, train__seed=1337, model__tie_embeddings=False)) == {}


def test_what_follows_from_an_edit_is_no_edit():
    assert changes(preset(), preset(model__hidden_size=512)) == {"model.hidden_size": (64, 512)}
    both = changes(preset(), preset(model__hidden_size=512, model__mlp_size=640))
    assert both == {"model.hidden_size": (64, 512), "model.mlp_size": (192, 640)}
    assert changes(preset(), preset(model__tie_embeddings=True)) == {"model.tie_embeddings": (False, True)}
    norm = changes(preset(), preset(model__embedding_norm=False))
    assert norm == {"model.embedding_norm": (True, False)} == fixed_changes(norm)
    older = preset(model__embedding_norm=False)
    assert changes(older, preset()) == {}
    assert changes(older, preset(model__embedding_norm=True)) == {"model.embedding_norm": (False, True)}


def test_what_is_read_from_a_model_is_no_edit_of_a_preset_that_leaves_it_to_the_model():
    def starting(**model) -> Preset:
        return parse_preset(json.dumps(PRESET | {"model": {"init_from": "a/b", "seq_length": 64, **model}}), "p.json")

    left = starting()
    run = left.model_copy(update={"model": left.model.completed(preset(model__head_dim=16).model)})
    run = parse_preset(run.to_json(), "the checkpoint")
    assert changes(run, left) == changes(left, run) == changes(run, starting(hidden_size=64)) == {}
    assert changes(run, starting(hidden_size=128)) == {"model.hidden_size": (64, 128)}
    assert changes(run, starting(init_from="c/d")) == {"model.init_from": ("a/b", "c/d")}
    assert changes(run, starting(revision="v1")) == {"model.revision": (None, "v1")}


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ({"train__matrix_learning_rate": 0.01}, {"train.matrix_learning_rate": (None, 0.01)}),
        ({"train__output_learning_rate": 0.002}, {"train.output_learning_rate": (None, 0.002)}),
        ({"train__weight_decay": 0.0}, {"train.weight_decay": (0.1, 0.0)}),
        ({"train__per_gpu_batch_size": 8}, {"train.per_gpu_batch_size": (256, 8)}),
        ({"train__accumulation_steps": 4}, {"train.accumulation_steps": (1, 4)}),
        ({"train__save_every_tokens": 1000}, {"train.save_every_tokens": (2_000_000, 1000)}),
        ({"train__eval_every_tokens": 1000}, {"train.eval_every_tokens": (5_000_000, 1000)}),
        ({"auxiliary__value_weight": 0.5}, {"auxiliary.value_weight": (0.05, 0.5)}),
        ({"auxiliary__enable_adaptive_sources": True}, {"auxiliary.enable_adaptive_sources": (False, True)}),
    ],
)
def test_a_run_survives_edits_of_how_it_is_trained(edits, expected):
    old = preset()
    changed = changes(old, preset(**edits))
    assert changed == expected
    check_continuable(old, changed)


@pytest.mark.parametrize(
    ("edits", "line"),
    [
        ({"model__num_layers": 3}, "model.num_layers: 2 -> 3"),
        ({"model__hidden_size": 128}, "model.hidden_size: 64 -> 128"),
        ({"model__tie_embeddings": True}, "model.tie_embeddings: False -> True"),
        ({"data__sources": ["fineweb_edu"]}, "data.sources: ['wikipedia'] -> ['fineweb_edu']"),
        ({"data__min_text_length": 9}, "data.min_text_length: 1 -> 9"),
        ({"data__mix_strategy": "weighted"}, "data.mix_strategy: 'round_robin' -> 'weighted'"),
        ({"train__seed": 7}, "train.seed: 1337 -> 7"),
        ({"train__eval_tokens": 7000}, "train.eval_tokens: 1000000 -> 7000"),
        ({"auxiliary__enable_value": True}, "auxiliary.enable_value: False -> True"),
        ({"auxiliary__enable_policy": True}, "auxiliary.enable_policy: False -> True"),
        ({"auxiliary__enable_dynamics": True}, "auxiliary.enable_dynamics: False -> True"),
        ({"auxiliary__enable_span_contrastive": True}, "auxiliary.enable_span_contrastive: False -> True"),
    ],
)
def test_a_run_does_not_survive_edits_of_what_it_is_made_for(edits, line):
    old = preset()
    with pytest.raises(PresetError) as caught:
        check_continuable(old, changes(old, preset(**edits)))
    assert line in str(caught.value)
    assert "'small'" in str(caught.value)
    assert isinstance(caught.value, UserError)


def texts_at(*names, finish, watch) -> Preset:
    """Two texts, without labels; `finish` and `watch`: the numbers of the texts in them."""
    sources = [{"type": "text", "path": f"/data/{name}"} for name in names]
    data = {
        "sources": sources[:2],
        "finish": {"share": 0.1, "sources": [sources[number] for number in finish]},
        "watch": [sources[number] for number in watch],
    }
    return preset(data=data)


def test_text_may_be_moved_wherever_the_preset_names_it_and_keeps_its_label():
    old = texts_at("a", "b", "c", "d", finish=[1, 2], watch=[3])
    new = texts_at("v", "w", "x", "y", finish=[1, 2], watch=[3])
    changed = changes(old, new)
    assert sorted(changed) == [
        *(f"data.finish.sources.{number}.path" for number in range(2)),
        *(f"data.sources.{number}.path" for number in range(2)),
        "data.watch.0.path",
    ]
    check_continuable(old, changed)
    assert [spec.label for spec in with_labels_of(old, new).data.all_sources] == [
        "text:a",
        "text:b",
        "text:c",
        "text:d",
    ]


def test_a_path_that_makes_another_mixture_is_no_moved_text():
    old = texts_at("a", "b", "c", "d", finish=[1, 2], watch=[3])
    for other in (
        texts_at("a", "b", "c", "d", finish=[0, 2], watch=[3]),
        texts_at("a", "b", "c", "d", finish=[2, 1], watch=[3]),
    ):
        with pytest.raises(PresetError, match=r"data\.finish\.sources\.0\.label"):
            check_continuable(old, changes(old, other))


def test_refusal_lists_everything_that_must_go_back_and_nothing_else():
    old = preset()
    new = preset(model__num_layers=3, train__seed=7, train__weight_decay=0.5)
    with pytest.raises(PresetError) as caught:
        check_continuable(old, changes(old, new))
    message = str(caught.value)
    assert "model.num_layers: 2 -> 3" in message
    assert "train.seed: 1337 -> 7" in message
    assert "weight_decay" not in message


def test_description_has_one_line_a_change():
    changed = changes(preset(), preset(train__weight_decay=0.5, train__matrix_learning_rate=0.01))
    assert describe(changed) == "  train.matrix_learning_rate: None -> 0.01\n  train.weight_decay: 0.1 -> 0.5"
