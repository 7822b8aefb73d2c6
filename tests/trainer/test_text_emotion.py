"""The text→emotion classifier: networks, vocabulary, training, files and command."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from data.emotions import EMOTIONS, INDEX
from model.text_emotion import build_text_emotion
from trainer.text_emotion.__main__ import main
from trainer.text_emotion.fit import Recipe, accuracies, evaluate, learning_rate, read_explanations, train
from trainer.text_emotion.text_classifier import MAX_WORDS, Encoded, Vocabulary, load_classifier, read
from trainer.text_emotion.word_vectors import read_vectors

SIGNS = ["funny", "vast", "calm", "thrilling", "unfair", "rotten", "dark", "lonely", "odd"]  # one word per emotion
FILLERS = ["the", "tree", "looks", "a", "bit", "painting", "and", "so", "i", "see"]
LSTM = {"name": "lstm", "embedding_dim": 6, "word_dim": 8, "hidden_dim": 7, "head_dim": 5}
TRANSFORMER = {"name": "transformer", "embedding_dim": 6, "width": 8, "heads": 2, "feedforward_dim": 16}
NETWORKS = {
    "lstm": LSTM,
    "with zero": {**LSTM, "zero_in_max": True},
    "transformer": {**TRANSFORMER, "max_words": MAX_WORDS},
}


def small(name: str):
    torch.manual_seed(0)
    return build_text_emotion({**NETWORKS[name], "vocabulary": 20, "classes": len(EMOTIONS)}).eval()


def write_annotations(path: Path, count: int, *, seed: int, shuffled: bool = False) -> Path:
    """Images with four explanations; one word of each marks its emotion, unless the emotions are shuffled."""
    rng = random.Random(seed)
    entries = {}
    for i in range(count):
        emotions = [rng.randrange(len(EMOTIONS)) for _ in range(4)]
        texts = []
        for emotion in emotions:
            words = [*rng.choices(FILLERS, k=rng.randint(2, 9)), SIGNS[emotion]]
            rng.shuffle(words)
            texts.append(" ".join(words).capitalize() + ".")
        if shuffled:
            rng.shuffle(emotions)
        entries[str(i)] = {
            "image_name": f"Style/{i}.jpg", "emotions": [EMOTIONS[e] for e in emotions], "explanations": texts,
        }  # fmt: skip
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def annotations(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("annotations")
    return {
        split: write_annotations(root / f"{split}.json", 60, seed=i) for i, split in enumerate(("train", "val", "test"))
    }


@pytest.fixture(scope="module")
def trained(annotations, tmp_path_factory):
    return fit(annotations, tmp_path_factory.mktemp("out") / "classifier", epochs=5)


def fit(annotations, out: Path, **changes):
    recipe = Recipe(**{"epochs": 2, "batch_size": 32, "learning_rate": 2e-3, **changes})
    texts = {split: read_explanations(path) for split, path in annotations.items()}
    return train(texts["train"], texts["val"], recipe, out=out, test=texts.get("test"), device="cpu")


# --- the networks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_and_other_texts_of_the_batch_do_not_matter(name):
    network = small(name)
    text, other = torch.tensor([3, 7, 5]), torch.arange(2, 14)
    alone = network(text[None], torch.tensor([3]))
    padded = torch.nn.functional.pad(text, (0, 9))
    garbage = torch.cat([text, torch.tensor([4, 9, 1, 18, 2, 2, 6, 11, 10])])
    for row in (padded, garbage):
        batch = network(torch.stack([row, other]), torch.tensor([3, 12]))
        assert torch.allclose(batch[0], alone[0], atol=1e-6)
        assert not torch.allclose(batch[1], alone[0], atol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_last_word_counts(name):
    network = small(name)
    logits = network(torch.tensor([[3, 7, 5], [3, 7, 6]]), torch.tensor([3, 3]))
    assert not torch.allclose(logits[0], logits[1], atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_words_after_the_end_get_no_gradient(name):
    network = small(name).train()
    network(torch.tensor([[3, 7, 11], [4, 5, 6]]), torch.tensor([2, 3])).square().sum().backward()
    touched = network.embedding.weight.grad.abs().sum(dim=1) > 0
    assert touched.nonzero().squeeze(1).tolist() == [3, 4, 5, 6, 7]


def test_zero_in_max_clamps_the_maximum_at_zero():
    with_zero, without = small("with zero"), small("lstm")
    pooled = []
    for network in (with_zero, without):
        network.head.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
        network(torch.tensor([[3, 7, 5]]), torch.tensor([3]))
    assert torch.equal(pooled[0], pooled[1].clamp(min=0)) and (pooled[1] < 0).any()


# --- words ------------------------------------------------------------------------------------------------------------


def test_the_vocabulary_depends_only_on_counts():
    texts = [["a", "tree", "a"], ["tree", "sky"], ["sky", "rare"]]
    assert Vocabulary.of(texts, min_count=2).words == ("<pad>", "<unk>", "a", "sky", "tree")
    assert (
        Vocabulary.of([text[::-1] for text in texts[::-1]], min_count=2).words
        == Vocabulary.of(texts, min_count=2).words
    )


def test_unknown_words_share_one_row():
    vocabulary = Vocabulary(["<pad>", "<unk>", "tree"])
    assert vocabulary.encode(["tree", "sky", "<pad"]) == [2, 1, 1]


@pytest.mark.parametrize("words", [[], ["<unk>", "<pad>"], ["<pad>", "a"], ["<pad>", "<unk>", "a", "a"]])
def test_invalid_vocabularies_are_refused(words):
    with pytest.raises(UserError, match="vocabulary"):
        Vocabulary(words)


def test_batches_hold_the_selected_texts():
    vocabulary = Vocabulary(["<pad>", "<unk>", *"abcdef"])
    texts = Encoded([list("ab"), [], list("cdefa"), ["f"]], vocabulary)
    tokens, lengths = texts.batch(torch.tensor([3, 2, 0]))
    assert lengths.tolist() == [1, 5, 2]
    assert tokens.tolist() == [[7, 0, 0, 0, 0], [4, 5, 6, 7, 2], [2, 3, 0, 0, 0]]


@pytest.mark.parametrize("name", NETWORKS)
def test_texts_of_any_length_are_classified(name):
    vocabulary = Vocabulary(["<pad>", "<unk>", *"abcdefghijklmnopqr"])
    texts = Encoded([[], ["a"], ["b"] * (5 * MAX_WORDS), ["zeppelin"]], vocabulary)
    reading = read(small(name), texts, torch.device("cpu"), batch_size=2)
    assert reading.emotions[0] == -1 and (reading.emotions[1:] >= 0).all()
    assert torch.allclose(reading.log_probabilities.exp().sum(dim=1), torch.ones(4, dtype=torch.float64))
    assert torch.allclose(reading.log_probabilities[0].exp(), torch.full((9,), 1 / 9, dtype=torch.float64))
    assert reading.unknown_words == pytest.approx(1 / (MAX_WORDS + 2))


def test_order_and_batch_size_do_not_matter(trained):
    texts = read_explanations(Path(trained.settings["data"]["train"])).words
    encoded = Encoded(texts, trained.vocabulary)
    small_batches, one_batch = (read(trained.network, encoded, trained.device, batch_size=n) for n in (3, 10_000))
    assert torch.allclose(small_batches.log_probabilities, one_batch.log_probabilities, atol=1e-5)


def test_case_and_punctuation_do_not_matter(trained):
    reading = trained.read(["The tree looks SO vast!!!", "the tree looks so vast"])
    assert torch.allclose(*reading.log_probabilities, atol=1e-6)


# --- accuracies -------------------------------------------------------------------------------------------------------


def test_accuracies_by_hand():
    """Pairs: emotion, prediction. Correct polarity: 1, 2, 4; emotion: 1, 4; of the four polar ones 1 and 2."""
    pairs = [("awe", "awe"), ("fear", "anger"), ("awe", "something else"), ("something else",) * 2, ("sadness", None)]
    emotions = torch.tensor([INDEX[emotion] for emotion, _ in pairs])
    predicted = torch.tensor([-1 if guess is None else INDEX[guess] for _, guess in pairs])
    assert accuracies(predicted, emotions) == {
        "nine_way": 2 / 5, "ternary": 3 / 5, "binary": 2 / 4, "majority": 2 / 5, "count": 5, "polar": 4,
    }  # fmt: skip


def test_accuracies_without_predictions_or_polar_explanations():
    found = accuracies(torch.tensor([-1, 8]), torch.tensor([8, 8]))
    assert (found["nine_way"], found["ternary"], found["binary"]) == (0.5, 0.5, None)
    assert accuracies(torch.tensor([-1]), torch.tensor([0]))["binary"] == 0.0


# --- training ---------------------------------------------------------------------------------------------------------


def test_the_lstm_learns(trained):
    assert trained.metrics["accuracies"]["test"]["nine_way"] > 0.9
    texts = [f"the tree looks so {sign}" for sign in SIGNS]
    assert trained.read(texts).emotions.tolist() == list(range(9))


def test_shuffled_emotions_are_not_learned(annotations, tmp_path):
    shuffled = write_annotations(tmp_path / "shuffled.json", 60, seed=7, shuffled=True)
    classifier = fit({**annotations, "train": shuffled}, tmp_path / "out", epochs=3)
    assert classifier.metrics["accuracies"]["test"]["nine_way"] < 0.5


def test_the_transformer_learns(annotations, tmp_path):
    classifier = fit(annotations, tmp_path / "out", network="transformer", epochs=4)
    assert classifier.metrics["accuracies"]["test"]["nine_way"] > 0.8


@pytest.mark.parametrize("network", ["lstm", "transformer"])
def test_the_seed_determines_the_weights(annotations, tmp_path, network):
    def weights(out: str, seed: int) -> dict[str, torch.Tensor]:
        torch.rand(seed + 1)  # earlier random numbers do not matter
        return fit(annotations, tmp_path / out, network=network, epochs=1, seed=seed).network.state_dict()

    first, again, other = weights("first", 5), weights("again", 5), weights("other", 6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_best_epoch_is_saved_with_its_accuracies(trained, annotations):
    epochs = trained.metrics["epochs"]
    best = max(epoch["validation"] for epoch in epochs)
    first = next(epoch["epoch"] for epoch in epochs if epoch["validation"] == best)
    assert trained.metrics["best_epoch"] == first
    again = load_classifier(trained.folder, device="cpu")
    assert again.metrics == trained.metrics
    for split, name in (("val", "validation"), ("test", "test")):
        assert evaluate(again, read_explanations(annotations[split])) == trained.metrics["accuracies"][name]


def test_the_learning_rate_is_halved_three_times():
    assert [learning_rate(epoch, 8.0) for epoch in (0, 9, 10, 19, 20, 29, 30, 49)] == [8, 8, 4, 4, 2, 2, 1, 1]


def test_a_last_batch_of_one_text_joins_the_one_before(annotations, tmp_path):
    """BatchNorm fails on a single text; 240 explanations in batches of 239 leave one."""
    assert fit(annotations, tmp_path / "out", epochs=1, batch_size=239).metrics["best_epoch"] == 0


def test_too_little_training_data_is_refused(annotations, tmp_path):
    with pytest.raises(UserError, match="--batch-size"):
        fit(annotations, tmp_path / "out", batch_size=1)
    with pytest.raises(UserError, match="--min-count"):
        fit(annotations, tmp_path / "out", min_count=10_000)
    one = tmp_path / "one.json"
    one.write_text(json.dumps({"1": {"image_name": "a/b.jpg", "emotions": ["awe"], "explanations": ["so vast"]}}))
    with pytest.raises(UserError, match="at least two explanations"):
        fit({**annotations, "train": one}, tmp_path / "out", min_count=1)
    one.write_text(json.dumps({"1": {"image_name": "a/b.jpg", "emotions": ["awe"], "explanations": ["?!"]}}))
    with pytest.raises(UserError, match=r"one\.json: no explanation has a word"):
        read_explanations(one)
    assert not (tmp_path / "out").exists()


# --- word vectors -----------------------------------------------------------------------------------------------------


def write_vectors(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_word_vectors_are_frozen(annotations, tmp_path):
    glove = write_vectors(
        tmp_path / "glove.txt", ["vast 1 2 3 4", "calm 0.5 -1 0 2e-1", "zeppelin 9 9 9 9", "\x85 1 1 1 1"]
    )
    classifier = fit(annotations, tmp_path / "out", embeddings=glove, epochs=2)
    weight, rows = classifier.network.embedding.weight, classifier.vocabulary.rows
    assert weight[rows["vast"]].tolist() == [1, 2, 3, 4]
    assert torch.allclose(weight[rows["calm"]], torch.tensor([0.5, -1, 0, 0.2]))
    assert weight[0].abs().sum() == 0 and weight[rows["tree"]].abs().sum() > 0
    assert "glove.txt, frozen: 2 of" in classifier.settings["embeddings"]
    again = load_classifier(tmp_path / "out", device="cpu").network.embedding.weight
    assert torch.equal(again, weight) and not again.requires_grad


def test_the_header_of_word2vec_is_skipped(tmp_path):
    path = write_vectors(tmp_path / "vectors.txt", ["2 3", "tree 1 2 3", "sky 4 5 6"])
    assert {word: vector.tolist() for word, vector in read_vectors(path, ["sky"]).items()} == {"sky": [4, 5, 6]}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["other 1 2 3"], "has none of the 1 words"),
        (["a 1 2", "tree 1 x"], "line 2"),
        (["a 1 2", "tree 1 nan"], "line 2"),
        ([""], "has none"),
    ],
)
def test_invalid_word_vectors_are_refused(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        read_vectors(write_vectors(tmp_path / "glove.txt", lines), ["tree"])
    archive = tmp_path / "glove.zip"
    archive.write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(UserError, match=r"glove\.zip .*unpack"):
        read_vectors(archive, ["tree"])
    with pytest.raises(UserError, match="nowhere"):
        read_vectors(tmp_path / "nowhere.txt", ["tree"])


# --- files and command ------------------------------------------------------------------------------------------------


def test_the_command_trains_and_evaluates(annotations, tmp_path, capsys):
    out = tmp_path / "classifier"
    files = [*("--train", str(annotations["train"])), *("--val", str(annotations["val"])), "--out", str(out)]
    command = ["train", *files, "--epochs", "1", "--batch-size", "64", "--device", "cpu"]
    assert main(command) == 0
    assert "nine-way" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == [
        "metrics.json", "model.safetensors", "settings.json", "vocabulary.json",
    ]  # fmt: skip
    assert main(["evaluate", "--classifier", str(out), "--test", str(annotations["val"]), "--device", "cpu"]) == 0
    accuracy = json.loads((out / "metrics.json").read_text())["accuracies"]["validation"]["nine_way"]
    assert f"{accuracy:.3f}" in capsys.readouterr().out
    assert main(command) == 2 and "--overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "settings.json").unlink(), "no text→emotion classifier"),
        (lambda folder: (folder / "settings.json").write_text("[]"), r"settings\.json must hold"),
        (
            lambda folder: (folder / "settings.json").write_text('{"network": {"name": "gru"}}'),
            "does not describe",
        ),
        (lambda folder: (folder / "vocabulary.json").write_text("{"), r"vocabulary\.json cannot be read"),
        (lambda folder: (folder / "vocabulary.json").write_text('["<pad>", "<unk>"]'), "has 2 words and the network"),
        (lambda folder: (folder / "vocabulary.json").write_text('["a"]'), r"vocabulary\.json: a vocabulary begins"),
        (lambda folder: (folder / "vocabulary.json").write_text("[1]"), "must be a list of words"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors cannot be read"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"junk"), r"model\.safetensors cannot be read"),
    ],
)
def test_damaged_classifiers_are_refused(trained, change, message):
    copy = trained.folder.with_name("copy")
    original = trained.folder
    trained.save(copy)
    trained.folder = original
    change(copy)
    with pytest.raises(UserError, match=message):
        load_classifier(copy)


def test_weights_of_another_network_are_refused(trained, tmp_path):
    trained_at, folder = trained.folder, tmp_path / "other"
    trained.save(folder)
    trained.folder = trained_at
    settings = json.loads((folder / "settings.json").read_text())
    settings["network"]["hidden_dim"] = 8
    (folder / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"model\.safetensors does not match"):
        load_classifier(folder)


def test_a_folder_with_other_files_is_not_overwritten(annotations, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("ten years")
    files = [*("--train", str(annotations["train"])), *("--val", str(annotations["val"])), "--out", str(tmp_path)]
    assert main(["train", *files, "--overwrite"]) == 2
    assert "thesis.tex" in capsys.readouterr().err and (tmp_path / "thesis.tex").read_text() == "ten years"


def test_usage_errors_are_one_line(tmp_path, capsys):
    for command in (
        ["evaluate", "--classifier", str(tmp_path), "--test", "x.json"],
        ["train", "--train", "x.json", "--val", "x.json", "--out", str(tmp_path / "out")],
        ["import", "x.pt", "--vocabulary", "x.pkl", "--out", str(tmp_path / "out")],
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
