"""A small vision-language model for the demo: its pretrained image tower, with a projector and a random Llama."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from common.files import write_folder
from common.reading import BACKBONES, expand_user
from model.vle.towers import clip_tower

IMAGE, END = "<image>", "<end>"
TEMPLATE = (
    "{% for turn in messages %}{{ turn['role'] }}: {% for part in turn['content'] %}"
    "{{ '" + IMAGE + "' if part['type'] == 'image' else part['text'] }}{% endfor %}" + END + "{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SIZES = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4}


def write_demo_vlm(folder: Path, *, seed: int = 2021) -> None:
    """Write model and processor as transformers saves them, unless the folder exists."""
    if folder.exists():
        return
    backbones = expand_user(BACKBONES)
    vision, state = clip_tower(str(backbones / "clip"))
    tokenizer = AutoTokenizer.from_pretrained(backbones / "gpt2")
    tokenizer.add_special_tokens({"pad_token": END, "eos_token": END, "additional_special_tokens": [IMAGE]})
    token = tokenizer.convert_tokens_to_ids
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 1024, **SIZES}
    config = LlavaConfig(
        vision_config=vision.to_dict(),
        text_config={"model_type": "llama", **text, "eos_token_id": token(END), "pad_token_id": token(END)},
        image_token_index=token(IMAGE),
        vision_feature_layer=-1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    tower = model.model.vision_tower
    getattr(tower, "vision_model", tower).load_state_dict(state, strict=False)
    side = vision.image_size
    pictures = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    processor = LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )

    def fill(written: Path) -> None:
        model.save_pretrained(written)
        processor.save_pretrained(written)

    write_folder(folder, fill)
