"""Prompts of real models: templates, prefill, system messages, thinking, BOS; one rule for all.

The model is the embedded one with two tokens renamed: what it writes before `####` is its thinking.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from workbench import Sampling, open_engine
from workbench.engines.chat import ChatOptions, Thinking, chat_text, thinking_of
from workbench.engines.tokens import SegmentedPrompt
from workbench.errors import InputError
from workbench.serving import Server, serve
from workbench.tasks import open_task
from workbench.tiny import MODEL
from workbench.types import Completion, Engine

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}"
    "{% elif m['role'] == 'assistant' %}<|assistant|>{{ m['content'] }}<|end|>"
    "{% else %}<|user|>{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>"
    "{% elif enable_thinking is defined %}<think>{% endif %}{% endif %}"
)
SILENT = TEMPLATE.replace("{{ raise_exception('System role not supported') }}", "")
SHORT = Sampling(max_tokens=64)
KINDS = ("vllm", "transformers", "remote")


def thinker(folder: Path, *, special: bool = False) -> Path:
    """The embedded model as one that thinks, and whose texts begin with a BOS."""
    shutil.copytree(MODEL, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    for old, new in (("####", "</think>"), (")*", "<think>")):
        vocabulary[new] = number = vocabulary.pop(old)
        merges = tokenizer["model"]["merges"]
        tokenizer["model"]["merges"] = [one for one in merges if "".join(one) != old]
        tokenizer["added_tokens"].append(
            {"id": number, "content": new, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False, "special": special}
        )  # fmt: skip
    bos = {"SpecialToken": {"id": "<|user|>", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<|user|>": {"id": "<|user|>", "ids": [1], "tokens": ["<|user|>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"chat_template": TEMPLATE, "bos_token": "<|user|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return thinker(tmp_path_factory.mktemp("thinker") / "model")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    more: dict[str, Any] = {"reasoning_parser": "deepseek_r1", "trust_request_chat_template": True}
    with serve(str(folder), **more) as started:
        yield started


@pytest.fixture(scope="module")
def _loaded_once(folder: Path) -> Iterator[Engine]:
    with open_engine(str(folder), engine="vllm", store=None) as engine:
        yield engine


@pytest.fixture(params=KINDS)
def opened(
    request: pytest.FixtureRequest, folder: Path, server: Server, _loaded_once: Engine
) -> Any:
    """Opens the model behind an engine, with options."""
    made: list[Engine] = []

    def make(**options: Any) -> Engine:
        where: dict[str, Any] = {"model": str(folder)}
        if request.param == "remote":
            where = {"base_url": server.url}
        made.append(open_engine(engine=request.param, store=None, **where, **options))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def chats(count: int = 6) -> list[Any]:
    task = open_task("word_problems")
    return [task.prompt(item, style="chat") for item in task.items(count)]


def test_thinking_is_apart_from_the_answer_whoever_answers(opened: Any) -> None:
    rows = opened().generate(chats(), SHORT)
    assert all(row.reasoning and "=" in row.reasoning for row in rows)
    assert all(row.text.strip().isdigit() for row in rows)
    assert all("think" not in row.text + row.reasoning for row in rows)
    assert all(row.completion_tokens > len(row.text) for row in rows)  # tokens are of both
    assert rows[0].reasoning == "55-8=47\n"
    assert rows[0].text == " 47"


def test_an_answer_cut_within_the_thinking_is_no_answer(opened: Any) -> None:
    engine = opened(chat_template_kwargs={"enable_thinking": True})  # the prompt begins it
    (row,) = engine.generate(chats(1), Sampling(max_tokens=4))
    assert (row.text, row.finish_reason) == ("", "length")
    assert row.reasoning


def thought(row: Completion, end: int) -> int:
    """The tokens of an answer before the end of thinking."""
    ids = [*(row.token_ids or ())]
    return ids.index(end) if end in ids else len(ids)


def test_thinking_is_counted_and_limited(opened: Any, folder: Path) -> None:
    engine = opened(chat_template_kwargs={"enable_thinking": True})  # the prompt begins it
    end = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]["</think>"]
    free = engine.generate(chats(4), SHORT)
    counts = [thought(row, end) for row in free]
    assert all(count > 4 for count in counts)
    if engine.info.engine == "remote":  # vLLM 0.32 does not count what the prompt began
        assert {row.reasoning_tokens for row in free} == {None}
        assert engine.usage.reasoning_tokens == 0
    else:
        assert [row.reasoning_tokens for row in free] == counts
        assert engine.usage.reasoning_tokens == sum(counts)
    for most in (0, 3):
        rows = engine.generate(chats(4), replace(SHORT, max_reasoning_tokens=most))
        assert [thought(row, end) for row in rows] == [most] * 4
        assert all(row.text.strip() and "think" not in row.text for row in rows)
    wide = engine.generate(chats(4), replace(SHORT, max_reasoning_tokens=60))
    assert [(row.text, row.reasoning) for row in wide] == [
        (one.text, one.reasoning) for one in free
    ]
    hot = Sampling(max_tokens=64, temperature=1.0, seed=1, n=3, max_reasoning_tokens=2)
    drawn = [one for row in engine.generate(chats(2), hot) for one in row.samples]
    assert {thought(one, end) for one in drawn} <= {0, 1, 2}
    with pytest.raises(InputError, match="answers to chats only"):
        engine.generate(["Jack has 5"], replace(SHORT, max_reasoning_tokens=3))
    (cut,) = engine.generate(chats(1), Sampling(max_tokens=4))
    assert cut.cut_thinking


@pytest.mark.usefixtures("_loaded_once")
def test_structured_output_is_the_answer_though_the_prompt_began_to_think(folder: Path) -> None:
    more: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": True}}
    with open_engine(str(folder), engine="vllm", store=None, **more) as engine:
        (row,) = engine.generate(chats(1), Sampling(max_tokens=8, choices=("12", "34")))
    assert row.text in ("12", "34")
    assert row.reasoning is None


def test_a_mark_in_the_users_text_is_no_thinking(folder: Path) -> None:
    with open_engine(str(folder), engine="transformers", store=None) as engine:
        chat = [{"role": "user", "content": "Jack writes <think>1+1"}]
        (row,) = engine.generate([chat], Sampling(max_tokens=4))
        begun = [*chats(1)[0], {"role": "assistant", "content": "<think>55-8"}]
        (inside,) = engine.generate([begun], Sampling(max_tokens=1))
    assert row.text
    assert row.reasoning is None
    assert inside.reasoning
    assert not inside.text


def test_arguments_that_change_later_change_nothing(folder: Path) -> None:
    given = {"enable_thinking": False}
    with open_engine(
        str(folder), engine="transformers", store=None, chat_template_kwargs=given
    ) as engine:
        (before,) = engine.generate(chats(1), SHORT)
        given["enable_thinking"] = True
        assert engine.generate(chats(1), SHORT) == [before]


def test_texts_are_left_whole(opened: Any) -> None:
    (row,) = opened().generate(["<|user|>Jack has 55 stamps.<|assistant|>"], SHORT)
    assert row.reasoning is None


def test_a_last_message_of_the_assistant_is_continued(opened: Any) -> None:
    engine = opened()
    (chat,) = chats(1)
    begun = [*chat, {"role": "assistant", "content": "55-8"}]
    mixed = engine.generate([chat, begun, *chats(3)[1:]], SHORT)
    assert mixed[1].reasoning == "=47\n"
    assert mixed[1].text == " 47"
    assert mixed[0].reasoning == "55-8=47\n"
    closed = [*begun, {"role": "user", "content": "Ben has 3 apples."}]
    assert engine.generate([closed], SHORT)[0].prompt_tokens > mixed[1].prompt_tokens


def test_texts_in_parts_are_one_text_and_images_are_refused(opened: Any) -> None:
    engine, words = opened(), ["Jack has 55 stamps. He gives away 8.", "How many are left?"]
    parts = [{"type": "text", "text": one} for one in words]
    whole, split = (
        engine.generate([[{"role": "user", "content": content}]], SHORT)[0]
        for content in ("\n".join(words), parts)
    )
    assert (split.text, split.reasoning) == (whole.text, whole.reasoning)
    assert split.prompt_tokens == whole.prompt_tokens
    url = "data:image/png;base64,AAAA"
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    if engine.info.engine == "remote":
        (row,) = engine.generate([[picture]], SHORT, errors="return")
        assert "multimodal" in str(row.error)
        assert "base64" not in repr(row)
    else:
        with pytest.raises(InputError, match=r"reads texts only.*serve it"):
            engine.generate([[picture]], SHORT)
    with pytest.raises(InputError, match='engine="remote"'):
        engine.label_logprobs([[picture]], ["a", "b"])


def test_labels_continue_a_begun_answer(opened: Any, folder: Path) -> None:
    (chat,) = chats(1)
    begun = [*chat, {"role": "assistant", "content": "55-8=47\n</think> "}]
    scores = opened().label_logprobs([begun, chat], ["4", "5"])
    assert scores.logprobs[0, 0] > scores.logprobs[0, 1]
    assert scores.logprobs[1, 0] < scores.logprobs[1, 1]


def test_a_template_without_system_messages(opened: Any) -> None:
    (chat,) = chats(1)
    system = {"role": "system", "content": "Answer."}
    engine = opened()
    rows = engine.generate([[system, *chat], chat], SHORT, errors="return")
    assert "System role not supported" in str(rows[0].error)
    assert "fold_system=True" in str(rows[0].error)
    assert rows[1].text == " 47"
    folded = opened(fold_system=True)
    (row,) = folded.generate([[system, *chat]], SHORT)
    (same,) = engine.generate(
        [[{"role": "user", "content": f"Answer.\n\n{chat[0]['content']}"}]], SHORT
    )
    assert (row.text, row.reasoning) == (same.text, same.reasoning)
    assert row.prompt_tokens == same.prompt_tokens


def test_arguments_of_the_template(opened: Any) -> None:
    with_ = opened().generate(chats(2), SHORT)
    without = opened(chat_template_kwargs={"enable_thinking": False}).generate(chats(2), SHORT)
    assert without[0].prompt_tokens == with_[0].prompt_tokens + 2
    assert not without[0].reasoning or "think" not in without[0].reasoning


def test_a_template_of_the_callers(opened: Any, tmp_path: Path) -> None:
    longer = TEMPLATE.replace("<|user|>", "<|user|>Please: ")
    (tmp_path / "mine.jinja").write_text(longer)
    texts = [
        opened(chat_template=given).generate(chats(1), SHORT)[0]
        for given in (longer, str(tmp_path / "mine.jinja"))
    ]
    assert texts[0] == texts[1]
    assert texts[0].prompt_tokens > opened().generate(chats(1), SHORT)[0].prompt_tokens


def test_a_bos_that_is_there_is_not_doubled(opened: Any) -> None:
    engine = opened()
    texts = ["Jack has 5 stamps.", "<|user|>Jack has 5 stamps.", "<b>Jack has 5 stamps.</b>"]
    plain, with_bos, other = engine.generate(texts, Sampling(max_tokens=8))
    assert plain.prompt_tokens == with_bos.prompt_tokens
    assert plain.text == with_bos.text
    assert other.prompt_tokens > plain.prompt_tokens
    scores = engine.label_logprobs(texts, [" a", " b"])
    assert scores.logprobs[0] == pytest.approx(scores.logprobs[1], abs=1e-5)


def test_pieces_have_one_bos(folder: Path) -> None:
    with open_engine(str(folder), engine="transformers", store=None) as engine:
        texts = [
            SegmentedPrompt(["<|user|>", "Jack"]),
            SegmentedPrompt(["<|user|>Jack", " has"]),
            SegmentedPrompt(["Jack"]),
        ]
        ids = cast("Any", engine)._tokens(texts)
    assert [row.count(1) for row in ids] == [1, 1, 1]


def test_a_template_that_drops_the_system_message(folder: Path) -> None:
    options = {"engine": "transformers", "store": None, "chat_template": SILENT}
    with open_engine(str(folder), **cast("Any", options)) as engine:
        chat = [{"role": "system", "content": "Be brief."}, *chats(1)[0]]
        (row,) = engine.generate([chat], SHORT, errors="return")
    assert "leaves the system message out; fold_system=True" in str(row.error)


def test_special_marks_are_parted_too(tmp_path: Path) -> None:
    model = str(thinker(tmp_path / "model", special=True))
    with open_engine(model, engine="transformers", store=None) as engine:
        (row,) = engine.generate(chats(1), SHORT)
        (late,) = engine.generate(chats(1), Sampling(max_tokens=64, stop=(" 4",)))
    assert (row.reasoning, row.text) == ("55-8=47\n", " 47")
    assert (late.reasoning, late.text) == ("55-8=47\n", "")


def test_thinking_that_the_prompt_began(folder: Path) -> None:
    with open_engine(str(folder), engine="transformers", store=None) as engine:
        tokenizer = cast("Any", engine).tokenizer
    marks = thinking_of(tokenizer)
    assert isinstance(marks, Thinking)

    def parted(prompt: str, answer: str, *stop: str) -> tuple[str | None, str]:
        ids, made = (
            tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, answer)
        )
        row = Completion(text=answer, finish_reason="stop", token_ids=tuple(made))
        done = marks.split(row, ids, tokenizer, stop, is_open=marks.leaves_open(prompt))
        return done.reasoning, done.text

    assert parted("a<think>", "b</think>c") == ("b", "c")
    assert parted("a<think>", "bc") == ("bc", "")
    assert parted("a<think></think>", "bc") == (None, "bc")
    assert parted("a", "bc") == (None, "bc")
    assert parted("a", "<think>b</think>c") == ("b", "c")
    assert parted("a", "x<think>b</think>c") == ("b", "xc")
    assert parted("a", "b</think>c") == ("b", "c")
    assert parted("a", "<think></think>c") == (None, "c")
    assert parted("a", "b</think>cde", "d") == ("b", "c")


def test_answers_in_channels_and_gemmas_label() -> None:
    from transformers import AutoTokenizer

    def parted(marks: list[str], answer: str, *stop: str) -> tuple[str | None, str]:
        tokenizer = AutoTokenizer.from_pretrained(MODEL)
        tokenizer.add_tokens(marks, special_tokens=True)
        kind = thinking_of(tokenizer)
        assert kind is not None
        made = tokenizer(answer, add_special_tokens=False).input_ids
        row = Completion(text=answer, finish_reason="stop", token_ids=tuple(made))
        done = kind.split(row, [1], tokenizer, stop)
        return done.reasoning, done.text

    harmony = ["<|channel|>", "<|message|>", "<|start|>", "<|return|>"]
    thought = "<|channel|>analysis<|message|>Hm, 4.<|end|>"
    said = "<|start|>assistant<|channel|>final<|message|>It is 4.<|return|>"
    assert parted(harmony, thought + said) == ("Hm, 4.", "It is 4.")
    assert parted(harmony, thought + said, " 4") == ("Hm, 4.", "It is")
    assert parted(harmony, thought) == ("Hm, 4.", "")
    assert parted(harmony, "<|channel|>analysis<|message|>Hm") == ("Hm", "")
    assert parted(harmony, "plain") == (None, "plain")
    gemma = ["<|channel>", "<channel|>"]
    assert parted(gemma, "<|channel>thought\nHm.<channel|>It is 4.") == ("Hm.", "It is 4.")
    assert parted(gemma, "It is 4.") == (None, "It is 4.")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"chat_template": 5}, "chat_template"),
        ({"chat_template": "no/such/file"}, "no/such/file"),
        ({"chat_template_kwargs": "x"}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": {1}}}, "chat_template_kwargs"),
        ({"fold_system": "yes"}, "fold_system"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], named: str) -> None:
    for kind in ("vllm", "transformers", "diffusion"):
        with pytest.raises(InputError, match=named):
            open_engine(engine=kind, store=None, **options)


def test_system_messages_are_folded_where_they_stand() -> None:
    fold = ChatOptions(fold_system=True)

    def say(role: str, text: str) -> dict[str, str]:
        return {"role": role, "content": text}

    assert fold.messages([say("system", "a"), say("user", "b")]) == [say("user", "a\n\nb")]
    assert fold.messages([say("system", "a")]) == [say("user", "a")]
    talk = [say("user", "q"), say("assistant", "r"), say("developer", "s"), say("user", "t")]
    assert fold.messages(talk) == [*talk[:2], say("user", "s\n\nt")]
    assert ChatOptions().messages(talk) == talk


def test_what_is_decided_about_chats_is_part_of_the_key(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    file = tmp_path / "mine.jinja"

    def ask(**options: Any) -> Completion:
        with open_engine(str(folder), engine="transformers", store=store, **options) as engine:
            return engine.generate(chats(1), SHORT)[0]

    assert not ask().from_store
    assert ask().from_store
    assert not ask(chat_template_kwargs={"enable_thinking": False}).from_store
    file.write_text(TEMPLATE + " ")
    assert not ask(chat_template=str(file)).from_store
    assert ask(chat_template=TEMPLATE + " ").from_store
    file.write_text(TEMPLATE + "  ")
    assert not ask(chat_template=str(file)).from_store
    kept = ask()
    assert kept.from_store
    assert kept.reasoning == "55-8=47\n"


def test_a_chat_as_text(folder: Path) -> None:
    with open_engine(str(folder), engine="transformers", store=None) as engine:
        tokenizer = cast("Any", engine).tokenizer
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert chat_text(tokenizer, chat, ChatOptions()) == "<|user|>a<|assistant|>b"
    assert chat_text(tokenizer, chat[:1], ChatOptions()) == "<|user|>a<|assistant|>"
