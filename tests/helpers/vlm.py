"""Vision-language models of three families with small random weights, saved as transformers saves them."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
)
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from data.prepare.instructions.conversations import KINDS, PROMPTS, SYSTEM

IMAGE = "<image>"
SPECIAL = ["<pad>", "<s>", "</s>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>", "<fake_token_around_image>"]
SPECIAL += ["<global-img>", "<end_of_utterance>", IMAGE, *(f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2))]
TEMPLATE = (
    "{% for turn in messages %}{{ turn['role'] }}: {% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TEXT = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 2048, "pad_token_id": 0, "bos_token_id": 1},
    "eos_token_id": 3,
}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION |= {"image_size": 32, "patch_size": 8}


def tokenizer() -> PreTrainedTokenizerFast:
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=SPECIAL, initial_alphabet=alphabet)
    texts = [SYSTEM, *(prompt for kind in KINDS for prompt in PROMPTS[kind]), "because it is dark and the sea is wild"]
    tokens.train_from_iterator(texts, trainer)
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "<|im_end|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokens, **names)


def llava() -> tuple[PreTrainedModel, ProcessorMixin]:
    """A fixed number of tokens per picture; the projector is a module of its own."""
    words = tokenizer()
    text = {"model_type": "llama", "vocab_size": len(words), **TEXT}
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **VISION},
        text_config=text,
        image_token_index=words.convert_tokens_to_ids(IMAGE),
    )
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = LlavaProcessor(
        CLIPImageProcessor(**sizes),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE.replace("IMAGE", IMAGE),
        num_additional_image_tokens=1,
    )
    return LlavaForConditionalGeneration(config), processor


def qwen2_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """As many tokens as the picture is large; positions in three dimensions."""
    words = tokenizer()
    of = words.convert_tokens_to_ids
    rope = {"rope_type": "default", "type": "mrope", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = Qwen2VLConfig(
        vision_config={
            **{"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 4},
            **{"spatial_merge_size": 2, "temporal_patch_size": 2},
        },
        text_config={"vocab_size": len(words), **TEXT, "rope_parameters": rope},
        image_token_id=of("<|image_pad|>"),
        video_token_id=of("<|video_pad|>"),
        vision_start_token_id=of("<s>"),
        vision_end_token_id=of("</s>"),
    )
    pictures = Qwen2VLImageProcessor(
        patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=16 * 16, max_pixels=40 * 40
    )
    template = TEMPLATE.replace("IMAGE", "<s><|image_pad|></s>")
    processor = Qwen2VLProcessor(pictures, words, Qwen2VLVideoProcessor(), chat_template=template)
    return Qwen2VLForConditionalGeneration(config), processor


def idefics3() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Pictures split into tiles, as SmolVLM does."""
    words = tokenizer()
    config = Idefics3Config(
        vision_config=VISION,
        text_config={"model_type": "llama", "vocab_size": len(words), **TEXT},
        image_token_id=words.convert_tokens_to_ids(IMAGE),
        scale_factor=2,
    )
    pictures = Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    template = TEMPLATE.replace("IMAGE", IMAGE).replace("<|im_end|>", "<end_of_utterance>")
    processor = Idefics3Processor(pictures, words, image_seq_len=4, chat_template=template)
    return Idefics3ForConditionalGeneration(config), processor


FAMILIES = {"llava": llava, "qwen2_vl": qwen2_vl, "idefics3": idefics3}


def write_vlm(folder: Path, family: str, *, seed: int = 0, scale: float = 8.0) -> Path:
    """Write model and processor; weights are scaled so that a picture changes what the random network answers."""
    torch.manual_seed(seed)
    model, processor = FAMILIES[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
