"""Loaders: items depend only on (seed, epoch, index); unusable images are skipped or raise an error."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import av
import pytest
import torch
from PIL import Image

from common.errors import UserError
from data.emotions import one_hot
from data.loaders import CaptionDataset, EpochSampler, choose_texts, drop_empty_batches, make_loader, shuffle_images
from data.samples import Samples
from data.schema import Sample
from data.text import IGNORED, EncodedText, Template
from data.vad.lexicon import Lexicon
from data.vad.pieces import PieceAligner
from tests.helpers.tiny import make_aligner, make_samples, make_template, sentences

TENSORS = ("frames", "frame_mask", "input_ids", "labels", "segment", "text_image", "vad", "vad_known", "emotion")
TENSORS += ("emotion_start", "explanation_start")


@pytest.fixture
def samples(tmp_path):
    return make_samples(tmp_path / "pictures", 7)


def dataset_of(samples, template, **changes) -> CaptionDataset:
    settings = {"texts_per_image": 2, "seed": 0, "max_frames": 4, "preprocess": {"size": 16}}
    settings |= {"aligner": make_aligner(template), **changes}
    return CaptionDataset(samples, template=template, **settings)


def epoch_of(dataset, *, epoch: int = 0, workers: int = 0, skip: int = 0, batch_size: int = 3):
    loader, sampler = make_loader(dataset, batch_size=batch_size, num_workers=workers, shuffle=True)
    sampler.epoch, sampler.skip = epoch, skip
    return list(loader)


def same(left, right) -> bool:
    return left.ids == right.ids and all(torch.equal(getattr(left, n), getattr(right, n)) for n in TENSORS)


def without_emotions(samples) -> list[Sample]:
    return [dataclasses.replace(sample, emotions=(), histogram=None) for sample in samples]


def truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def write_clip(path: Path, count: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for i in range(count):
            picture = Image.new("RGB", (32, 32), (20 * i, 0, 255 - 20 * i))
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))
    return path


def test_workers_make_no_difference(samples, template):
    dataset = dataset_of(samples, template)
    alone, with_workers = epoch_of(dataset, epoch=3), epoch_of(dataset, epoch=3, workers=2)
    assert len(alone) == 3 and all(same(a, b) for a, b in zip(alone, with_workers, strict=True))
    torch.manual_seed(123)
    assert all(same(a, b) for a, b in zip(alone, epoch_of(dataset_of(samples, template), epoch=3), strict=True))


def test_epochs_and_seeds_differ_in_order_and_texts(samples, template):
    dataset, other = dataset_of(samples, template), dataset_of(samples, template, seed=1)
    orders = [[i for batch in epoch for i in batch.ids] for epoch in (epoch_of(dataset), epoch_of(dataset, epoch=1))]
    orders.append([i for batch in epoch_of(other) for i in batch.ids])
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == [f"id{i}" for i in range(7)] for order in orders)
    shown = [[tuple(choose_texts(s, count=2, seed=d, epoch=e)) for s in samples] for d, e in ((0, 0), (0, 1), (1, 0))]
    assert shown[0] != shown[1] != shown[2] != shown[0]


def test_items_are_independent_of_each_other(samples, template):
    dataset = dataset_of(samples, template)
    few = dataset_of(samples[4:5], template)
    ours, theirs = dataset[2, 4], few[2, 0]
    assert [t.encoded for t in ours.texts] == [t.encoded for t in theirs.texts]
    assert torch.equal(ours.frames, theirs.frames)


def test_chosen_texts_have_different_emotions_and_vary():
    texts = tuple(sentences(5))
    sample = Sample("x", Path("/x"), texts, (2, 2, 2, 7, 7))
    seen = set()
    for epoch in range(60):
        chosen = choose_texts(sample, count=2, seed=0, epoch=epoch)
        assert len(chosen) == 2 and sample.emotions[chosen[0]] != sample.emotions[chosen[1]]
        seen.update(chosen)
    assert seen == set(range(5))


@pytest.mark.parametrize(
    ("emotions", "wanted", "got"),
    [((3, 3, 3), 2, 1), ((3, 4, 3), 2, 2), ((3, 4, 5), 1, 1), ((3, 4, 5), 3, 3), ((3, 4, 5), 0, 0), ((), 2, 2)],
)
def test_number_of_chosen_texts(emotions, wanted, got):
    sample = Sample("x", Path("/x"), tuple(sentences(3)), emotions)
    chosen = choose_texts(sample, count=wanted, seed=0, epoch=0)
    assert len(chosen) == len(set(chosen)) == got


def test_texts_have_their_own_emotion(samples, template):
    dataset = dataset_of(samples, template)
    for index, sample in enumerate(samples):
        for text in dataset[0, index].texts:
            ids = [template.encode(words, text.emotion).input_ids for words in sample.texts]
            assert sample.emotions[ids.index(text.encoded.input_ids)] == text.emotion


def test_only_the_first_text_supervises_its_emotion(samples, template):
    """The first text is drawn from the votes; the others are chosen to differ, which over-represents rare emotions."""
    dataset, head = dataset_of(samples, template), len(template.prompt)
    for index in range(len(samples)):
        for place, text in enumerate(dataset[1, index].texts):
            name = text.encoded.labels[head : head + len(template.label_ids[text.emotion])]
            assert name == template.label_ids[text.emotion] if place == 0 else set(name) == {IGNORED}


def test_data_without_emotions(samples, template):
    for batch in epoch_of(dataset_of(without_emotions(samples), template)):
        assert (batch.emotion == -1).all() and not batch.histogram.any() and not batch.segment.any()
        assert batch.text_image.tolist() == [i for i in range(len(batch.ids)) for _ in range(2)]
        assert all(a.tolist() != b.tolist() for a, b in batch.input_ids.split(2))


def test_no_texts_for_generation(samples, template):
    batch = epoch_of(dataset_of(samples, template, texts_per_image=0))[0]
    assert len(batch.ids) == len(batch.frames) == 3 and len(batch.input_ids) == 0


def test_truncated_word_is_no_vad_target(samples, template):
    calm = dataclasses.replace(samples[0], texts=("calm " * 30,), emotions=(1,))
    looked_complete = 0
    for max_length in range(18, 26):
        text = dataset_of([calm], Template(template.tokenizer, max_length=max_length))[0, 0].texts[0]
        _, _, target = make_aligner(template).align(text.encoded.input_ids)
        looked_complete += int(target[-2])
        assert text.encoded.truncated and text.vad_target.any()
        assert torch.equal(text.vad_target[:-2], target[:-2]) and not text.vad_target[-2:].any()
    assert looked_complete > 0, "no text was truncated inside a word"


class Endless(Template):
    """Truncates without <eos>."""

    def encode(self, text: str, emotion: int | None, **options) -> EncodedText:
        encoded = super().encode(text, emotion, **options)

        if not encoded.truncated:
            return encoded
        lists = {name: getattr(encoded, name)[:-1] for name in ("input_ids", "labels", "segment")}
        return dataclasses.replace(encoded, **lists)


def test_truncated_word_without_eos_is_no_vad_target(samples, template):
    calm = dataclasses.replace(samples[0], texts=("calm " * 30,), emotions=(1,))
    looked_complete = 0
    for max_length in range(18, 26):
        text = dataset_of([calm], Endless(template.tokenizer, max_length=max_length))[0, 0].texts[0]
        _, _, target = make_aligner(template).align(text.encoded.input_ids)
        looked_complete += int(target[-1])
        assert torch.equal(text.vad_target[:-1], target[:-1]) and not text.vad_target[-1]
    assert looked_complete > 0, "no text was truncated inside a word"


def test_truncated_text_keeps_vad_targets_of_pieces(samples, template):
    pieces = {template.tokenizer.decode([i]).strip() for i in template._tokens(" calm serene")}
    assert all(piece == piece.lower() for piece in pieces)
    aligner = PieceAligner(Lexicon(dict.fromkeys(pieces, (0.5, 0.5, 0.5))), template.tokenizer)
    calm = dataclasses.replace(samples[0], texts=("calm " * 30,), emotions=(1,))
    dataset = dataset_of([calm], Template(template.tokenizer, max_length=22), aligner=aligner)
    text = dataset[0, 0].texts[0]
    assert text.encoded.truncated and text.vad_target[-2]
    assert torch.equal(text.vad_target, aligner.align(text.encoded.input_ids)[2])


def test_clips_of_different_lengths_share_a_batch(tmp_path, samples, template):
    clips = [dataclasses.replace(samples[i], path=write_clip(tmp_path / f"{i}.mp4", n)) for i, n in ((0, 3), (1, 9))]
    dataset = dataset_of([*clips, samples[2]], template)
    batch = epoch_of(dataset, batch_size=3)[0]
    frames = dict(zip(batch.ids, batch.frame_mask.sum(1).tolist(), strict=True))
    assert frames == {"id0": 3, "id1": 4, "id2": 1}, "max_frames is 4"


def test_order_is_a_permutation_that_depends_on_the_epoch():
    sampler = EpochSampler(20, seed=5, shuffle=True)
    first = list(sampler)
    assert sorted(first) == [(0, i) for i in range(20)] and first == list(sampler)
    sampler.epoch = 1
    assert {e for e, _ in sampler} == {1} and [i for _, i in sampler] != [i for _, i in first]
    assert list(EpochSampler(4, seed=5, shuffle=False)) == [(0, 0), (0, 1), (0, 2), (0, 3)]


def bucketed(length: int, *, epoch: int = 0, skip: int = 0, **changes) -> list[int]:
    """Return a sampler whose sizes are unrelated to its order."""
    settings = {"buckets": 4, "group": 3, "size": lambda epoch, index: (7 * index + 5 * epoch) % 11, **changes}
    sampler = EpochSampler(length, seed=5, shuffle=True, **settings)
    sampler.epoch, sampler.skip = epoch, skip
    return [index for _, index in sampler]


@pytest.mark.parametrize("length", [0, 2, 3, 12, 13, 24, 38, 41])
def test_buckets_reorder_within_a_window_only(length):
    drawn, order = bucketed(length, buckets=1), bucketed(length)
    for start in range(0, length, 12):
        assert sorted(order[start : start + 12]) == sorted(drawn[start : start + 12])
    assert order == bucketed(length) and bucketed(length, skip=2) == order[2:]


def test_batches_have_similar_lengths_in_random_order():
    """In a window of 12, one batch has the three shortest, one the next three, and so on."""
    size = lambda index: (7 * index) % 11  # noqa: E731
    order = bucketed(36)
    batches = [[size(i) for i in order[k : k + 3]] for k in range(0, 36, 3)]
    for start in range(0, 12, 4):
        sizes = [*itertools.chain(*sorted(batches[start : start + 4]))]
        assert sizes == sorted(sizes)
    assert batches != sorted(batches) and bucketed(36, epoch=1) != order


def test_short_batch_stays_last(samples, template):
    """Else `skip` of a resumed epoch would be wrong."""
    for length in (13, 14, 26):
        assert all(len(bucketed(length)[k : k + 3]) == 3 for k in range(0, length - 2, 3))
        windows = [sorted((7 * i) % 11 for i in bucketed(length)[k : k + 12]) for k in range(0, length, 12)]
        tail = [(7 * i) % 11 for i in bucketed(length)[-(length % 3) :]]
        assert sorted(tail) == windows[-1][-len(tail) :], "the longest of the last window"


def test_buckets_reduce_padding(tmp_path, template):
    samples = make_samples(tmp_path, 40)
    dataset = dataset_of(samples, template, texts_per_image=1)

    def padding(buckets: int) -> int:
        loader, _ = make_loader(dataset, batch_size=4, num_workers=0, shuffle=True, buckets=buckets)
        batches = list(loader)
        assert sorted(id for batch in batches for id in batch.ids) == sorted(sample.id for sample in samples)
        return sum(int((~batch.attention_mask).sum()) for batch in batches)

    assert padding(10) < 0.7 * padding(1)  # length is measured in characters


@pytest.mark.parametrize("skip", [0, 1, 6, 7])
def test_skip_continues_the_epoch(skip):
    sampler = EpochSampler(7, seed=5, shuffle=True)
    sampler.epoch = 2
    whole = list(sampler)
    sampler.skip = skip
    assert list(sampler) == whole[skip:] and len(sampler) == 7 - skip


def test_skip_continues_the_batches(samples, template):
    dataset = dataset_of(samples, template)
    whole, rest = epoch_of(dataset, epoch=1, batch_size=2), epoch_of(dataset, epoch=1, batch_size=2, skip=4)
    assert len(rest) == 2 and all(same(a, b) for a, b in zip(whole[2:], rest, strict=True))


@pytest.mark.parametrize("count", [2, 3, 7])
def test_shuffled_images_belong_to_other_samples(samples, count):
    samples = Samples.pack(samples[:count])
    shuffled = shuffle_images(samples, seed=4)
    assert all(a.path != b.path for a, b in zip(samples, shuffled, strict=True))
    assert sorted(s.path for s in shuffled) == sorted(s.path for s in samples)
    assert [dataclasses.replace(s, path=o.path) for s, o in zip(shuffled, samples, strict=True)] == [*samples]
    assert [*shuffled] == [*shuffle_images(samples, seed=4)]


def test_shuffled_images_depend_on_the_seed(samples):
    samples = Samples.pack(samples)
    assert len({tuple(s.path for s in shuffle_images(samples, seed=seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_image_is_skipped_with_its_reason(samples, template, workers):
    truncate(samples[3].path)
    dataset, skipped = dataset_of(samples, template), []
    loader, _ = make_loader(dataset, batch_size=3, num_workers=workers, shuffle=False)
    batches = list(drop_empty_batches(loader, skipped, strict=False))
    assert [i for batch in batches for i in batch.ids] == ["id0", "id1", "id2", "id4", "id5", "id6"]
    assert [(s.id, s.path) for s in skipped] == [("id3", samples[3].path)] and skipped[0].reason
    assert all(batch.text_image.max() + 1 == len(batch.ids) == len(batch.frames) for batch in batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_strict_raises_for_a_damaged_image(samples, template, workers):
    truncate(samples[3].path)
    loader, _ = make_loader(dataset_of(samples, template), batch_size=3, num_workers=workers, shuffle=False)
    with pytest.raises(UserError) as error:
        list(drop_empty_batches(loader, [], strict=True))
    message = str(error.value)
    assert str(samples[3].path) in message and "image id3" in message and "dataset.strict=false" in message
    assert "\n" not in message and "Traceback" not in message


def test_batches_without_images_are_dropped(samples, template):
    for sample in samples[:3]:
        sample.path.write_bytes(b"")
    skipped = []
    loader, _ = make_loader(dataset_of(samples, template), batch_size=3, num_workers=0, shuffle=False)
    batches = list(drop_empty_batches(loader, skipped, strict=False))
    assert [len(batch.ids) for batch in batches] == [3, 1] and len(skipped) == 3


def test_emotions_without_texts_supervise_their_names(samples, tmp_path):
    template = make_template(tmp_path / "tokenizer")
    named = Samples.pack(dataclasses.replace(s, texts=("",), emotions=s.emotions[:1]) for s in samples)
    items = [dataset_of(named, template)[0, i] for i in range(len(named))]
    for item, sample in zip(items, named, strict=True):
        [text] = item.texts
        assert text.encoded == template.encode_name(sample.emotions[0]) and text.emotion == sample.emotions[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_histograms_have_the_size_of_the_label_set(samples, tmp_path, workers):
    labels = ("joy", "fear", "awe")
    template = Template(make_template(tmp_path / "tokenizer").tokenizer, max_length=40, labels=labels)
    few = [dataclasses.replace(s, texts=("",), emotions=(i % 3,), histogram=one_hot(i % 3, labels))
           for i, s in enumerate(samples)]  # fmt: skip
    few[0] = dataclasses.replace(few[0], histogram=None)
    for batch in epoch_of(dataset_of(Samples.pack(few, labels), template), workers=workers):
        assert batch.histogram.shape == (len(batch.ids), 3)
        for row, id in zip(batch.histogram.tolist(), batch.ids, strict=True):
            [sample] = [sample for sample in few if sample.id == id]
            assert tuple(row) == (sample.histogram or (0.0, 0.0, 0.0))
