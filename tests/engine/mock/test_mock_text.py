from collections import Counter
from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hpcserve.config.builtin_tokenizer import builtin_tokenizer_json
from hpcserve.engine.mock.stop_strings import StopStrings
from hpcserve.engine.mock.tokens import load_table
from hpcserve.errors import EngineError


def train(directory: Path, pre_tokenizer, decoder) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>"], show_progress=False)
    tokenizer.train_from_iterator(["the engine serves the tokens that the router sends, ünïcode 123"] * 20, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    return tokenizer


# --- tokens ------------------------------------------------------------------------------------------------------


def test_builtin_texts_are_what_the_builtin_tokenizer_decodes():
    table, tokenizer = load_table(None), Tokenizer.from_str(builtin_tokenizer_json())
    assert tokenizer.decode(table.ids) == "".join(table.texts)


@pytest.mark.parametrize(
    ("pre_tokenizer", "decoder"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()),
        (pre_tokenizers.Metaspace(), decoders.Metaspace()),
    ],
    ids=["byte-level", "sentencepiece"],
)
def test_texts_of_a_model_are_what_its_tokenizer_decodes(tmp_path, pre_tokenizer, decoder):
    tokenizer = train(tmp_path, pre_tokenizer, decoder)
    table = load_table(tmp_path)
    assert len(table) > 30
    assert all(text.strip().isascii() and text.strip().isalpha() for text in table.texts)
    # A word in front: at the very start of a text, SentencePiece drops a leading space.
    plain = next(i for i, text in zip(table.ids, table.texts, strict=True) if not text.startswith(" "))
    assert tokenizer.decode([plain, *table.ids]) == table.text_of[plain] + "".join(table.texts)


def test_a_missing_tokenizer_is_an_engine_error(tmp_path):
    with pytest.raises(EngineError, match=r"cannot read the tokenizer .*tokenizer\.json"):
        load_table(tmp_path)


def test_the_next_token_depends_on_the_last_and_the_position_only():
    table = load_table(None)
    assert table.pick(5, 100) == table.pick(5, 100)
    by_position = Counter(table.pick(5, position) for position in range(5000))
    by_token = Counter(table.pick(token, 5) for token in range(5000))
    for counts in (by_position, by_token):
        assert len(counts) == len(table)
        assert max(counts.values()) < 3 * 5000 / len(table)


# --- stop strings ------------------------------------------------------------------------------------------------


def feed(stops, pieces, **options):
    """Return what was shown of `pieces`, piece by piece, and the stop string."""
    matcher = StopStrings(stops, include_stop=False, **options)
    shown = []
    for piece in pieces:
        text, stop = matcher.push(piece)
        shown.append(text)
        if stop is not None:
            return shown, stop
    return [*shown, matcher.flush()], None


def test_text_that_may_begin_a_stop_string_is_held_back():
    assert feed(("END",), ["aE", "N", "x"]) == (["a", "", "ENx", ""], None)
    assert feed(("END",), ["aE", "N", "Dx"]) == (["a", "", ""], "END")
    assert feed(("END",), ["aE", "N"]) == (["a", "", "EN"], None)


def test_the_stop_string_that_begins_first_wins():
    assert feed(("b", "ab"), ["xab"]) == (["x"], "ab")


def test_a_stop_string_can_be_kept():
    matcher = StopStrings(("END",), include_stop=True)
    assert matcher.push("x E"[:3]) == ("x ", None)
    assert matcher.push("ND tail") == ("END", "END")


@given(
    text=st.text("ab", max_size=40),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple),
    cuts=st.lists(st.integers(0, 40), max_size=10),
)
def test_however_text_is_cut_the_shown_text_is_the_same(text, stops, cuts):
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in pairwise(edges)]
    one_by_one, stop = feed(stops, list(text))
    shown, found = feed(stops, pieces)
    ends = [text.find(s) for s in stops if s in text]
    assert (found is None) == (not ends) == (stop is None)
    if not ends:
        assert "".join(shown) == "".join(one_by_one) == text
    assert text.startswith("".join(shown))
    if found is not None:
        assert "".join(shown) == text[: text.find(found)]


# --- generations -------------------------------------------------------------------------------------------------


def test_equal_prompts_give_equal_outputs_and_others_differ(virtual):
    core = virtual()
    ids = [core.add(50, max_tokens=30), core.add(50, max_tokens=30), core.add(51, max_tokens=30)]
    core.run()
    same, again, other = (core.tokens(request) for request in ids)
    assert same == again
    assert same != other
    assert core.text(ids[0]) == bytes(same).decode()


@pytest.mark.parametrize("moved_after", [1, 17, 39])
def test_a_moved_request_goes_on_with_the_same_tokens(virtual, moved_after):
    here = virtual()
    request = here.add(50, max_tokens=40)
    here.run()
    expected = here.tokens(request)
    there = virtual()
    moved = there.add(
        [*range(1000, 1050), *expected[:moved_after]], max_tokens=40 - moved_after, num_resumed=moved_after
    )
    there.run()
    assert there.tokens(moved) == expected[moved_after:]
    assert here.text(request).endswith(there.text(moved))


def output_without_stops(virtual):
    core = virtual()
    request = core.add(50, max_tokens=60)
    core.run()
    return core.text(request), core.tokens(request)


def test_a_stop_string_across_tokens_ends_the_text_before_it(virtual):
    text, tokens = output_without_stops(virtual)
    stop = text[20:24]
    core = virtual()
    request = core.add(50, max_tokens=60, sampling={"stop": (stop,)})
    core.run()
    last = core.last(request)
    assert (last.finish_reason, last.stop_reason) == ("stop", stop)
    assert core.text(request) == text[: text.index(stop)]
    assert core.tokens(request) == tokens[: text.index(stop) + 4]


def test_a_stop_string_can_be_included(virtual):
    text, _ = output_without_stops(virtual)
    stop = text[20:24]
    core = virtual()
    request = core.add(50, max_tokens=60, sampling={"stop": (stop,), "include_stop": True})
    core.run()
    assert core.text(request) == text[: text.index(stop) + 4]


def test_held_back_text_is_shown_when_the_output_ends(virtual):
    text, _ = output_without_stops(virtual)
    core = virtual()
    request = core.add(50, max_tokens=10, sampling={"stop": (text[9] + "#",)})
    core.run()
    assert core.text(request) == text[:10]
    assert core.last(request).finish_reason == "length"


def test_a_stop_string_is_found_across_a_move(virtual):
    text, tokens = output_without_stops(virtual)
    stop = text[20:24]
    at = text.index(stop)
    first = virtual()
    one = first.add(50, max_tokens=at + 2, sampling={"stop": (stop,)})
    while len(first.tokens(one)) < at + 1:
        first.step()
    second = virtual()
    two = second.add(
        [*range(1000, 1050), *tokens[: at + 1]], max_tokens=40, num_resumed=at + 1, sampling={"stop": (stop,)}
    )
    second.run()
    assert first.text(one) + second.text(two) == text[:at]
    assert second.last(two).stop_reason == stop


def test_min_tokens_defers_stops(virtual):
    text, tokens = output_without_stops(virtual)
    for sampling in ({"stop": tuple(set(text))}, {"stop_token_ids": tuple(set(tokens))}):
        core = virtual()
        request = core.add(50, max_tokens=60, sampling={"min_tokens": 12, **sampling})
        core.run()
        assert len(core.tokens(request)) == 13
        assert core.text(request) == text[:12]
        assert core.last(request).finish_reason == "stop"


def test_a_stop_token_ends_the_output_without_its_text(virtual):
    text, tokens = output_without_stops(virtual)
    core = virtual()
    request = core.add(50, max_tokens=60, sampling={"stop_token_ids": (tokens[7],)})
    core.run()
    at = tokens.index(tokens[7])
    assert core.tokens(request) == tokens[: at + 1]
    assert core.text(request) == text[:at]
    assert core.last(request).stop_reason == tokens[7]


def test_logprobs_come_with_as_many_alternatives_as_asked(virtual):
    core = virtual()
    request = core.add(50, max_tokens=3, sampling={"logprobs": 5})
    plain = core.add(50, max_tokens=3, sampling={"logprobs": 0})
    core.run()
    for output in core.outputs[request]:
        (logprob,) = output.logprobs
        assert (logprob.token_id,) == output.token_ids
        assert logprob.token == output.text
        assert len({token_id for token_id, _, _ in logprob.top}) == 5
        assert [p for _, _, p in logprob.top] == sorted((p for _, _, p in logprob.top), reverse=True)
        assert logprob.top[0] == (logprob.token_id, logprob.token, logprob.logprob)
    assert all(output.logprobs[0].top == () for output in core.outputs[plain])
