"""The sources that a preset may name with one word, and the column names with the same meaning.

Plain data: importing this module opens nothing, and nothing is downloaded until a preset asks for
it. Every Hugging Face entry is a repository of Parquet or JSON files (datasets >= 4 runs no
loading scripts). A dataset that is not listed works as well: write the whole source object into
the preset.
"""

from typing import Any, NamedTuple

QUESTION_ANSWER = "Q: {question}\nA: {answer}"
IDENTITY = ("type", "dataset", "config")  # keys of a source object that identify its text

FINEWEB2 = (  # ISO 639 code, configuration, name; the dataset has a thousand more
    ("ar", "arb_Arab", "Arabic"),
    ("cs", "ces_Latn", "Czech"),
    ("de", "deu_Latn", "German"),
    ("el", "ell_Grek", "Greek"),
    ("es", "spa_Latn", "Spanish"),
    ("fa", "fas_Arab", "Persian"),
    ("fr", "fra_Latn", "French"),
    ("hi", "hin_Deva", "Hindi"),
    ("id", "ind_Latn", "Indonesian"),
    ("it", "ita_Latn", "Italian"),
    ("ja", "jpn_Jpan", "Japanese"),
    ("ko", "kor_Hang", "Korean"),
    ("nl", "nld_Latn", "Dutch"),
    ("pl", "pol_Latn", "Polish"),
    ("pt", "por_Latn", "Portuguese"),
    ("ru", "rus_Cyrl", "Russian"),
    ("sv", "swe_Latn", "Swedish"),
    ("tr", "tur_Latn", "Turkish"),
    ("uk", "ukr_Cyrl", "Ukrainian"),
    ("vi", "vie_Latn", "Vietnamese"),
    ("zh", "cmn_Hani", "Chinese"),
)


class NamedSource(NamedTuple):
    spec: dict[str, Any]  # the source object as written in a preset
    licence: str  # of the text, as SPDX identifier or in words; a trained model inherits it
    about: str
    language: str = "en"  # ISO 639 code, or "code"


NAMED_SOURCES: dict[str, NamedSource] = {
    "wikipedia": NamedSource(
        {"type": "hf", "dataset": "wikimedia/wikipedia", "config": "20231101.en", "text_field": "text"},
        "CC-BY-SA-3.0",
        "English Wikipedia, November 2023",
    ),
    "fineweb_edu": NamedSource(
        {"type": "hf", "dataset": "HuggingFaceFW/fineweb-edu", "config": "sample-10BT", "text_field": "text"},
        "ODC-By-1.0",
        "web pages a classifier found educational",
    ),
    "fineweb": NamedSource(
        {"type": "hf", "dataset": "HuggingFaceFW/fineweb", "config": "sample-10BT", "text_field": "text"},
        "ODC-By-1.0",
        "filtered web pages of all kinds",
    ),
    "fineweb_edu_dedup": NamedSource(
        {"type": "hf", "dataset": "HuggingFaceTB/smollm-corpus", "config": "fineweb-edu-dedup", "text_field": "text"},
        "ODC-By-1.0",
        "FineWeb-Edu without near duplicates, 220 billion tokens",
    ),
    "cosmopedia_v2": NamedSource(
        {"type": "hf", "dataset": "HuggingFaceTB/smollm-corpus", "config": "cosmopedia-v2", "text_field": "text"},
        "ODC-By-1.0",
        "textbooks, posts and stories written by Mixtral-8x7B-Instruct",
    ),
    "climbmix": NamedSource(
        {"type": "hf", "dataset": "karpathy/climbmix-400b-shuffle", "text_field": "text"},
        "CC-BY-NC-4.0 (NVIDIA's ClimbMix, of which this is the text: not for commercial use)",
        "web pages, selected and mixed by topic so that small models learn most",
    ),
    "finemath": NamedSource(
        {"type": "hf", "dataset": "HuggingFaceTB/finemath", "config": "finemath-4plus", "text_field": "text"},
        "ODC-By-1.0",
        "web pages that explain mathematics",
    ),
    "gutenberg": NamedSource(
        {"type": "hf", "dataset": "sedthh/gutenberg_english", "text_field": "TEXT"},
        "public domain in the USA; the collection MIT",
        "48k English books of Project Gutenberg",
    ),
    "python_github": NamedSource(
        {"type": "hf", "dataset": "codeparrot/codeparrot-clean", "text_field": "content"},
        "each file's own (column `license`), copyleft among them",
        "5M Python files from GitHub, without copies and generated ones",
        "code",
    ),
    **{
        f"fineweb2_{language}": NamedSource(
            {"type": "hf", "dataset": "HuggingFaceFW/fineweb-2", "config": config, "text_field": "text"},
            "ODC-By-1.0",
            f"filtered web pages in {name}",
            language,
        )
        for language, config, name in FINEWEB2
    },
    "openwebtext": NamedSource(
        {"type": "hf", "dataset": "Skylion007/openwebtext", "text_field": "text"},
        "CC0-1.0",
        "web pages that were linked and voted for on Reddit",
    ),
    "c4": NamedSource(
        {"type": "hf", "dataset": "allenai/c4", "config": "en", "text_field": "text"},
        "ODC-By-1.0",
        "web pages of April 2019, lightly cleaned",
    ),
    "wikitext": NamedSource(
        {
            "type": "hf",
            "dataset": "Salesforce/wikitext",
            "config": "wikitext-103-raw-v1",
            "text_field": "text",
            "rows_until": "heading",
        },
        "CC-BY-SA-3.0",
        "good and featured Wikipedia articles",
    ),
    "tinystories": NamedSource(
        {"type": "hf", "dataset": "roneneldan/TinyStories", "text_field": "text"},
        "CDLA-Sharing-1.0",
        "short synthetic stories in a small child's vocabulary",
    ),
    "babylm_strict": NamedSource(
        {
            "type": "hf",
            "dataset": "BabyLM-community/BabyLM-2026-Strict",
            "text_field": "text",
            "rows_per_document": 100,
        },
        "see the dataset's page; each part has its own terms",
        "the BabyLM challenge's 100M words (2026, strict track), 100 lines a document",
    ),
    "babylm_strict_small": NamedSource(
        {
            "type": "hf",
            "dataset": "BabyLM-community/BabyLM-2026-Strict-Small",
            "text_field": "text",
            "rows_per_document": 100,
        },
        "see the dataset's page; each part has its own terms",
        "the BabyLM challenge's 10M words (2026, strict-small track), 100 lines a document",
    ),
    "natural_questions": NamedSource(
        {
            "type": "hf",
            "dataset": "sentence-transformers/natural-questions",
            "config": "pair",
            "fields": ["query", "answer"],
            "format": "Q: {query}\nA: {answer}",
        },
        "CC-BY-SA-3.0",
        "100k questions people asked a search engine, answered by a Wikipedia passage",
    ),
    "squad": NamedSource(
        {
            "type": "hf",
            "dataset": "sentence-transformers/squad",
            "fields": ["question", "answer"],
            "format": QUESTION_ANSWER,
        },
        "CC-BY-SA-4.0",
        "88k questions written about Wikipedia, answered by the paragraph they came from",
    ),
    "gooaq": NamedSource(
        {
            "type": "hf",
            "dataset": "sentence-transformers/gooaq",
            "fields": ["question", "answer"],
            "format": QUESTION_ANSWER,
        },
        "Apache-2.0",
        "3M everyday questions with short answers",
    ),
    "eli5": NamedSource(
        {
            "type": "hf",
            "dataset": "sentence-transformers/eli5",
            "fields": ["question", "answer"],
            "format": QUESTION_ANSWER,
        },
        "no licence stated (Reddit posts)",
        "325k questions with explanations in plain language",
    ),
    "smoltalk": NamedSource(
        {"type": "hf", "dataset": "HuggingFaceTB/smoltalk", "config": "all", "messages": "messages"},
        "Apache-2.0; the public datasets in it have their own",
        "1M conversations, most of them written by large models: questions, tasks, code, mathematics",
    ),
    "smol_smoltalk": NamedSource(
        {"type": "hf", "dataset": "HuggingFaceTB/smol-smoltalk", "messages": "messages"},
        "Apache-2.0; the public datasets in it have their own",
        "460k conversations of SmolTalk that suit models of a few hundred million parameters",
    ),
    "everyday_conversations": NamedSource(
        {
            "type": "hf",
            "dataset": "HuggingFaceTB/everyday-conversations-llama3.1-2k",
            "split": "train_sft",
            "messages": "messages",
        },
        "Apache-2.0 (written by Llama 3.1)",
        "2k short conversations about everyday subjects and simple science",
    ),
    "ultrachat": NamedSource(
        {"type": "hf", "dataset": "HuggingFaceH4/ultrachat_200k", "split": "train_sft", "messages": "messages"},
        "MIT (written by ChatGPT)",
        "208k conversations of several turns about the world, texts and tasks",
    ),
    "oasst2": NamedSource(
        {"type": "hf", "dataset": "sablo/oasst2_curated", "messages": "messages"},
        "Apache-2.0",
        "4.7k conversations of OpenAssistant, written and ranked by volunteers",
    ),
    "dolly": NamedSource(
        {
            "type": "hf",
            "dataset": "databricks/databricks-dolly-15k",
            "messages": ["instruction", "context", "response"],
        },
        "CC-BY-SA-3.0",
        "15k questions and tasks with answers, written by employees of Databricks",
    ),
    "python_source": NamedSource(
        {"type": "python"},
        "PSF-2.0, and each installed package's own licence",
        "the running interpreter's standard library and installed packages",
        "code",
    ),
}


def catalogued(source: Any) -> NamedSource | None:
    """Return the entry for the text that a source object reads, whatever its label or columns."""
    wanted = tuple(getattr(source, key, None) for key in IDENTITY)
    known = (named for named in NAMED_SOURCES.values() if wanted == tuple(map(named.spec.get, IDENTITY)))
    return next(known, None)


# Datasets name the two halves of a question and its answer differently. Where a preset's column is
# missing, the first of its aliases that exists is used and reported (data/sources/hub.py).
FIELD_ALIASES: dict[str, tuple[str, ...]] = {
    "question": ("query", "prompt"),
    "query": ("question", "prompt"),
    "prompt": ("question", "query"),
    "answer": ("response", "completion"),
    "response": ("answer", "completion"),
    "completion": ("answer", "response"),
}
