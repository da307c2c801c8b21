"""Documents as lm_eval/tasks/hellaswag/utils.py makes them."""

from __future__ import annotations

import re
from typing import Any


def preprocess(text: str) -> str:
    return re.sub("\\[.*?\\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def process_docs(dataset: Any) -> Any:
    def process(doc: dict[str, Any]) -> dict[str, Any]:
        context = f"{doc['ctx_a']} {doc['ctx_b'].capitalize()}"
        return {
            "query": preprocess(f"{doc['activity_label']}: {context}"),
            "choices": [preprocess(ending) for ending in doc["endings"]],
        }

    return dataset.map(process)


def doc_to_text(doc: dict[str, Any]) -> int:
    """The right choice, as in lm_eval/tasks/winogrande/preprocess_winogrande.py."""
    return {"1": 0, "2": 1}[doc["answer"]]


def doc_to_target(doc: dict[str, Any]) -> str:
    text: str = doc["sentence"]
    return text.partition("_")[2].strip()


def doc_to_choice(doc: dict[str, Any]) -> list[str]:
    before = doc["sentence"].partition("_")[0]
    return [before + doc["option1"], before + doc["option2"]]
