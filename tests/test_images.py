"""Images in this process: a small Idefics3 with random weights in vLLM, against transformers."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workbench.engines.vllm import VLLMEngine, unavailable
from workbench.errors import EngineError, InputError
from workbench.store import Store
from workbench.tiny import MODEL
from workbench.types import Sampling

if reason := unavailable():
    pytest.skip(f"needs vLLM: {reason}", allow_module_level=True)

SIZE, PATCH = 28, 14  # an image is 4 patches, which become 1 token
SPECIAL = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
GREEDY = Sampling(max_tokens=8, ignore_eos=True)
# A part that is an image becomes the image's token.
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}<image>{% endif %}{% endfor %}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def picture(colour: tuple[int, int, int]) -> Any:
    from PIL import Image

    image = Image.new("RGB", (SIZE, SIZE), colour)
    image.putpixel((3, 5), (255, 255, 255))
    return image


RED, BLUE = (200, 10, 20), (10, 30, 220)


def chat(image: Any, text: str = "What is it?") -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model folder: weights, configuration, tokenizer, processor of images."""
    import torch
    from transformers import (
        AutoTokenizer,
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3Processor,
        LlamaConfig,
    )
    from transformers.models.idefics3.image_processing_pil_idefics3 import (
        Idefics3ImageProcessorPil,
    )

    target = tmp_path_factory.mktemp("idefics3") / "tiny-idefics3"
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.add_special_tokens({"additional_special_tokens": [*SPECIAL]})
    tokenizer.chat_template = TEMPLATE
    image = tokenizer.convert_tokens_to_ids("<image>")
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, head_dim=32,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id, initializer_range=0.3,
    )  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": SIZE, "patch_size": PATCH,
        "initializer_range": 0.3,
    }  # fmt: skip
    config = Idefics3Config(
        vision_config=vision, text_config=text, image_token_id=image, scale_factor=2,
        pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Idefics3ForConditionalGeneration(config).eval()
    model.save_pretrained(target)
    longest = {"longest_edge": SIZE}
    pixels = Idefics3ImageProcessorPil(
        size=longest, max_image_size=longest, do_image_splitting=False
    )
    processor = Idefics3Processor(pixels, tokenizer, image_seq_len=1, chat_template=TEMPLATE)
    processor.save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[VLLMEngine]:
    with VLLMEngine(str(folder), None, "test", {"dtype": "float32", "max_model_len": 256}) as one:
        yield one


def expected(folder: Path, colours: list[tuple[int, int, int]], text: str) -> list[list[int]]:
    """What transformers answers, greedily."""
    import torch
    from transformers import Idefics3ForConditionalGeneration, Idefics3Processor

    processor = Idefics3Processor.from_pretrained(folder)
    model = Idefics3ForConditionalGeneration.from_pretrained(folder).eval()
    found = []
    for colour in colours:
        inputs = processor(
            images=picture(colour), text=f"user: <image>{text}assistant:", return_tensors="pt"
        )
        with torch.inference_mode():
            ids = model.generate(
                **inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False, eos_token_id=None
            )
        found.append(ids[0, inputs["input_ids"].shape[1] :].tolist())
    return found


def test_answers_are_those_of_transformers(engine: VLLMEngine, folder: Path) -> None:
    truth = expected(folder, [RED, BLUE], "What is it?")
    assert truth[0] != truth[1]  # the images matter
    rows = engine.generate([chat(picture(RED)), chat(picture(BLUE))], GREEDY)
    assert [[*(row.token_ids or ())] for row in rows] == truth
    assert rows[0].prompt_tokens > 4


def test_a_file_and_a_data_url_are_the_same_image(engine: VLLMEngine, tmp_path: Path) -> None:
    picture(RED).save(tmp_path / "red.png")
    data = io.BytesIO()
    picture(RED).save(data, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    rows = engine.generate([chat(picture(RED)), chat(tmp_path / "red.png"), chat(url)], GREEDY)
    assert len({row.token_ids for row in rows}) == 1


def test_texts_and_images_in_one_call(engine: VLLMEngine) -> None:
    plain = [{"role": "user", "content": "What is it?"}]
    mixed = engine.generate([plain, chat(picture(RED)), plain], GREEDY)
    alone = engine.generate([plain], GREEDY)[0]
    assert mixed[0].token_ids == mixed[2].token_ids == alone.token_ids
    assert mixed[1].token_ids != alone.token_ids


def test_a_broken_image_fails_its_row_only(engine: VLLMEngine) -> None:
    broken = chat("data:image/png;base64,AAAA")
    rows = engine.generate([broken, chat(picture(RED))], GREEDY, errors="return")
    assert rows[0].error is not None
    assert rows[1].error is None
    with pytest.raises(EngineError, match="1 of 2"):
        engine.generate([broken, chat(picture(RED))], GREEDY)


def test_a_chat_that_is_too_long_fails_its_row_only(engine: VLLMEngine) -> None:
    long = chat(picture(RED), "word " * 400)
    rows = engine.generate([long, chat(picture(RED))], GREEDY, errors="return")
    assert rows[0].error is not None
    assert rows[1].error is None


def test_images_are_part_of_the_key(engine: VLLMEngine, folder: Path, tmp_path: Path) -> None:
    options = {"dtype": "float32", "max_model_len": 256}
    kept = VLLMEngine(str(folder), Store(tmp_path / "x.sqlite"), "test", options)
    first = kept.generate([chat(picture(RED)), chat(picture(BLUE))], GREEDY)
    again = kept.generate([chat(picture(RED)), chat(picture(BLUE))], GREEDY)
    assert [row.from_store for row in again] == [True, True]
    assert [row.token_ids for row in again] == [row.token_ids for row in first]


def test_tokens_of_images_are_estimated(engine: VLLMEngine) -> None:
    counts, counted = engine.count_tokens([chat(picture(RED))])
    assert not counted
    assert counts[0] > 0


def test_labels_need_texts(engine: VLLMEngine) -> None:
    with pytest.raises(InputError, match="image"):
        engine.label_logprobs([chat(picture(RED))], [" a", " b"])


def test_a_text_model_refuses_images(plain: VLLMEngine) -> None:
    with pytest.raises(InputError, match="reads texts only"):
        plain.generate([chat(picture(RED))], GREEDY)
