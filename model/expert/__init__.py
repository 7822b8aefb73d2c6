"""An emotion classifier next to the language model, after EmoVLM-KD (arXiv 2505.07164).

picture → teacher (teacher.py), a fully fine-tuned classifier, needed for training only
tokens of the captioner's frozen vision encoder (features.py) → head (student.py), distilled from the teacher
probabilities of language model and head → gate (gate.py, fusion.py) → emotion, for which an explanation is generated
"""
