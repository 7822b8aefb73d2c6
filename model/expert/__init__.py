"""An emotion classifier beside the language model, after EmoVLM-KD (arXiv 2505.07164).

picture → teacher (teacher.py), an ordinary classifier, fine-tuned whole; needed for training alone
tokens of the captioner's frozen vision encoder (features.py) → head (student.py), distilled from the teacher
language model's probabilities and the head's → gate (gate.py, fusion.py) → the emotion that a reason is written for
"""
