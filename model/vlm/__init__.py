"""Image-text-to-text models of transformers (VLMs): loading with LoRA, chat template, scores of answers, answers."""
