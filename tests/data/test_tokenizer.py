import inspect
import json
import math
import os
import re

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from configs.errors import UserError
from data import tokenizer as bpe
from tests.cpu_clock import slowness

pytestmark = pytest.mark.core

TEXTS = [inspect.getsource(module) for module in (inspect, json)]
HARD = f"naïve café 🧪 日本語\r\n\t\x00 {bpe.END_OF_TEXT} e\u0301"


@pytest.fixture(scope="module")
def trained():
    return bpe.train(TEXTS, 600)


def test_any_text_comes_back_exactly(trained):
    for text in [HARD, *TEXTS]:
        (ids,) = bpe.encode(trained, [text])
        assert trained.decode(ids.tolist(), skip_special_tokens=False) == text


def test_a_document_cannot_write_the_end_of_text_token(trained, tmp_path):
    path = tmp_path / "tokenizer.json"
    trained.save(str(path))
    for tokenizer in (trained, bpe.load(path)):
        assert bpe.end_of_text(tokenizer) == 0
        for ids in bpe.encode(tokenizer, [bpe.END_OF_TEXT, f"a{bpe.END_OF_TEXT}b", HARD]):
            assert 0 not in ids


def test_training_is_reproducible_and_the_fingerprint_tells_tokenizers_apart(trained, tmp_path):
    again = bpe.train(TEXTS, 600)
    assert bpe.fingerprint(again) == bpe.fingerprint(trained)
    assert bpe.fingerprint(bpe.train(TEXTS, 599)) != bpe.fingerprint(trained)
    trained.save(str(tmp_path / "a.json"), pretty=False)
    assert bpe.fingerprint(bpe.load(tmp_path / "a.json")) == bpe.fingerprint(trained)


def test_markers_of_turns_are_the_first_tokens_and_no_text_becomes_one():
    tokenizer = bpe.train(TEXTS, 600, bpe.MARKERS)
    assert bpe.special_tokens(tokenizer) == {name: i for i, name in enumerate((bpe.END_OF_TEXT, *bpe.MARKERS))}
    (ids,) = bpe.encode(tokenizer, ["".join(bpe.MARKERS)])
    assert ids.min() > 4
    assert bpe.vocab_size(tokenizer) == 600


def test_vocabulary_is_as_large_as_asked_and_holds_every_byte(trained):
    assert bpe.vocab_size(trained) == 600
    assert bpe.vocab_size(bpe.train([], 600)) == 257


def test_token_bytes_add_up_to_the_text(trained):
    lengths = bpe.token_bytes(trained)
    assert lengths.shape == (600,)
    assert lengths[0] == 0
    for text in [HARD, *TEXTS]:
        (ids,) = bpe.encode(trained, [text])
        assert lengths[ids].sum() == len(text.encode())


def test_a_file_made_for_short_inputs_still_encodes_whole_documents(trained, tmp_path):
    trained.enable_truncation(8)
    trained.enable_padding(length=8)
    trained.save(str(tmp_path / "short.json"))
    trained.no_truncation()
    trained.no_padding()
    tokenizer = bpe.load(tmp_path / "short.json")
    long, short = bpe.encode(tokenizer, ["word " * 100, "a"])
    assert len(long) > 50
    assert len(short) == 1


def sentencepiece_like(tmp_path, end):
    vocab = {"<unk>": 0, end: 1, "<0x41>": 2, "▁": 3, "a": 4, "é": 5, "▁a": 6}
    tokenizer = Tokenizer(models.BPE(vocab, [("▁", "a")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([end, "<unk>"])
    tokenizer.save(str(tmp_path / "foreign.json"))
    return tmp_path / "foreign.json"


@pytest.mark.parametrize("end", ["</s>", "<\uff5cend\u2581of\u2581sentence\uff5c>"], ids=["Llama", "DeepSeek"])
def test_a_foreign_tokenizer_is_used_with_its_own_end_token(tmp_path, end):
    tokenizer = bpe.load(sentencepiece_like(tmp_path, end))
    assert bpe.end_of_text(tokenizer) == 1
    assert bpe.token_bytes(tokenizer).tolist() == [0, 0, 1, 1, 1, 2, 2]


def test_unusable_tokenizers_are_refused_with_the_reason(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json.*cannot be read"):
        bpe.load(tmp_path / "nowhere.json")
    with pytest.raises(UserError, match=r"xxx\.json.*cannot be read"):
        bpe.load("x" * 300 + ".json")
    (tmp_path / "torn.json").write_text('{"version": "1.0", ')
    with pytest.raises(UserError, match="cannot be read"):
        bpe.load(tmp_path / "torn.json")
    with pytest.raises(UserError, match=r"no special token ends a document.*<mask>"):
        bpe.load(sentencepiece_like(tmp_path, "<mask>"))
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), ("a", -1.0)], unk_id=0))
    unigram.add_special_tokens(["</s>"])
    unigram.save(str(tmp_path / "unigram.json"))
    with pytest.raises(UserError, match="would end there"):
        bpe.load(tmp_path / "unigram.json")


EXPONENTIAL = {"type": "Split", "pattern": {"Regex": "(a|a|aa)+$|(1+1+)+x"}, "behavior": "Isolated", "invert": False}
EXPANDING = {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 1_000_000}
FOREVER = {"type": "Sequence", "normalizers": [EXPANDING, {**EXPANDING, "pattern": {"String": "b"}}]}
HOSTILE = {
    "a pattern that takes for ever": ({"pre_tokenizer": EXPONENTIAL}, "takes too long|retry-limit"),
    "text that grows": ({"normalizer": {**EXPANDING, "content": "b" * 100}}, "makes .* tokens of .* characters"),
    "text that fills the memory": ({"normalizer": FOREVER}, "takes too long|needs too much memory"),
    "rules that are none": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "cannot be read|crashes"),
    "an id of 2^32 in the model": ({"model": {"vocab": {bpe.END_OF_TEXT: 0, "a": 2**32 - 1}, "merges": []}}, "go up to"),
    "no vocabulary": ({"model": {"vocab": {}, "merges": []}}, "makes no token of text"),
    "a number": (7, "cannot be read"),
    "a merge of nothing": ({"model": {"vocab": {"a": 1}, "merges": [["x", "y"]]}}, "cannot be read"),
    "deep nesting": ("[" * 200_000, "cannot be read|crashes"),
}  # fmt: skip


def test_hostile_tokenizers_are_refused_in_time_and_memory(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("data.tokenizer_trial.CPU_SECONDS", 2 * math.ceil(slowness()))
    good = json.loads(trained.to_str())
    for name, (changes, reason) in HOSTILE.items():
        path = tmp_path / f"{name}.json"
        if isinstance(changes, dict):
            model = good["model"] | changes.get("model", {})
            changes = json.dumps(good | changes | {"model": model})
        path.write_text(str(changes))
        with pytest.raises(UserError, match=rf"tokenizer .*{re.escape(path.name)}: .*({reason})"):
            bpe.load(path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device", "."):
        with pytest.raises(UserError, match="not a file"):
            bpe.load(tmp_path / name)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="larger than"):
        bpe.load(tmp_path / "large")


def test_a_tokenizer_of_this_program_is_loaded_without_a_trial_and_any_other_is_tried(trained, tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr("data.tokenizer.trial", lambda path: tried.append(path.name) or "")
    trained.save(str(tmp_path / "own.json"))
    bpe.train(TEXTS, 600, bpe.MARKERS).save(str(tmp_path / "chat.json"))
    foreign = json.loads(trained.to_str()) | {"normalizer": {"type": "NFC"}}
    (tmp_path / "foreign.json").write_text(json.dumps(foreign))
    for name in ("own.json", "chat.json", "foreign.json"):
        bpe.load(tmp_path / name)
    assert tried == ["foreign.json"]


def test_what_a_tokenizer_cannot_encode_is_said_in_one_message(trained, monkeypatch):
    class Panic(BaseException):
        pass

    class Failing:
        def encode_batch_fast(self, texts, add_special_tokens):
            raise Panic("index out of range")

    with pytest.raises(UserError, match=r"the tokenizer cannot encode a document \(index out of range\)"):
        list(bpe.encode(Failing(), ["text"]))
