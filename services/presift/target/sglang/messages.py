"""Translates requests and answers between presift and SGLang."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from typing import Any

from presift.core.answer import AnswerDelta, Finished, ParsedText, TokenLogprob
from presift.core.generation import FinishReason
from presift.core.stop_strings import StopStrings
from presift.target.engine import Event, GenerateRequest
from presift.target.sglang.aborts import aborted
from presift.target.sglang.answer_parser import AnswerParser, joined
from presift.target.sglang.parsers import Parsers, Prepared
from presift.target.sglang_plugin import custom_params

# SGLang's value for the whole vocabulary. A larger one overflows int32 and would end the scheduler.
_TOP_K_ALL = 1 << 30
# So many take about a millisecond to read.
_LONG_PROMPT_TOKENS, _LONG_MASK_CHARACTERS = 128, 2**16
_SAME_NAME = ("min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "min_new_tokens")


def to_sglang(request: GenerateRequest, parsers: Parsers, prepared: Prepared) -> Any:
    """The request for SGLang's tokenizer manager, with a new request id. `prepared` is that of `parsers`.

    Raises InvalidRequest for tools or a forced call that cannot be served.
    """
    from sglang.srt.managers.io_struct import GenerateReqInput  # noqa: PLC0415 - loaded by now

    sampling = request.sampling
    parameters = sampling_arguments(request) | parsers.constraint(request, prepared)
    if parsers.keeps_special_tokens(request.format):
        parameters["skip_special_tokens"] = False
    return GenerateReqInput(
        input_ids=request.token_ids.tolist(),
        sampling_params=parameters,
        cache_salt=request.cache_salt or None,
        rid=uuid.uuid4().hex,
        stream=True,
        return_logprob=sampling.top_logprobs is not None,
        top_logprobs_num=sampling.top_logprobs or 0,
        # -1: those of the answer only.
        logprob_start_len=0 if sampling.prompt_logprobs else -1,
        require_reasoning=prepared.is_thinking,
    )


def sampling_arguments(request: GenerateRequest) -> dict[str, Any]:
    """SGLang's `sampling_params` of a request. SGLang takes None for its defaults: no penalties."""
    sampling, plan = request.sampling, request.kv_plan
    grammar = {} if sampling.grammar is None else {sampling.grammar.kind.value: sampling.grammar.text}
    return {
        "max_new_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature or 0.0,
        "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
        "top_k": -1 if sampling.top_k is None else min(sampling.top_k, _TOP_K_ALL),
        # SGLang's seeds are signed.
        "sampling_seed": None if sampling.seed is None else sampling.seed - (sampling.seed >> 63 << 64),
        "stop": list(sampling.stop),
        "stop_token_ids": list(sampling.stop_token_ids),
        "ignore_eos": sampling.ignore_eos,
        "logit_bias": {str(token_id): bias for token_id, bias in sampling.logit_bias.items()} or None,
        "skip_special_tokens": not sampling.keep_special_tokens,
        # With a format, the stop string is cut here: SGLang cuts it after it may have sent its beginning.
        "no_stop_trim": request.format is not None and bool(sampling.stop),
        "custom_params": None if plan is None else {custom_params.KEY: custom_params.to_text(plan)},
        **{name: getattr(sampling, name) for name in _SAME_NAME},
        **grammar,
    }


class AnswerReader:
    """Reads the messages of one answer, in order. The plugin's report comes first, and may come again."""

    def __init__(self, request: GenerateRequest, parsers: Parsers, prepared: Prepared) -> None:
        self._request, self._parsers = request, parsers
        self._parser = parsers.answer_parser(request, prepared)
        self._stop = StopStrings(request.sampling.stop)
        self._report: dict[str, Any] | None = None
        # SGLang's lists. Every message has all of them: they are read at the end, once.
        self._prompt_lists: tuple[Any, Any] = ((), None)

    def takes_long(self, answer: dict[str, Any]) -> bool:
        """Whether `events` takes a millisecond or more: for the last message of an answer with many log
        probabilities of the prompt or a large mask."""
        meta = answer["meta_info"]
        if not meta["finish_reason"]:
            return False
        reports = filter(None, (self._report, *(meta.get(custom_params.KEY) or ())))
        mask = max((len(report["kv_mask"]["kept"]) for report in reports if report["kv_mask"]), default=0)
        logprobs = max(len(self._prompt_lists[0]), len(meta.get("input_token_logprobs") or ()))
        return mask >= _LONG_MASK_CHARACTERS or logprobs >= _LONG_PROMPT_TOKENS

    def events(self, answer: dict[str, Any]) -> Iterator[Event]:
        """The events of one message. Raises TargetUnavailable if SGLang aborted the request, InvalidRequest if it
        could not compile the grammar, and the plugin's error (RouteUnsupported, ...) if the plugin refused it.
        """
        meta, token_ids = answer["meta_info"], answer["output_ids"]
        # Requests without a report have None if another request of the batch has one.
        for report in filter(None, meta.get(custom_params.KEY) or ()):
            # Only the first one has the mask.
            kept = (self._report or report)["kv_mask"]
            self._report = report | {"kv_mask": kept}
        reason = meta["finish_reason"]
        if reason and reason["type"] == "abort":
            raise aborted(reason, self._request)
        if reason and token_ids and token_ids[-1] == reason.get("matched"):
            token_ids = token_ids[:-1]
        if self._request.sampling.prompt_logprobs and meta.get("input_token_logprobs"):
            self._prompt_lists = meta["input_token_logprobs"], meta.get("input_top_logprobs")
        logprobs = token_logprobs(meta.get("output_token_logprobs"), meta.get("output_top_logprobs"))
        parsed = None if self._parser is None else self._parsed(self._parser, answer["text"], reason)
        if token_ids or parsed:
            yield AnswerDelta(tuple(token_ids), logprobs[: len(token_ids)], parsed)
        if reason:
            yield self._finished(meta, self._end(reason))

    def _parsed(self, parser: AnswerParser, text: str, reason: dict[str, Any] | None) -> ParsedText:
        if not reason:
            return parser.push(self._stop.push(text))
        matched = reason.get("matched")
        if self._request.sampling.stop and isinstance(matched, int):
            # `no_stop_trim` leaves the text of a stop token, too.
            text = self._parsers.without_end(text, matched)
        return joined([parser.push(self._stop.push(text) + self._stop.finish()), parser.finish()])

    def _end(self, reason: dict[str, Any]) -> FinishReason:
        end = FinishReason(reason["type"])
        called = self._parser is not None and self._parser.has_calls
        return FinishReason.TOOL_CALLS if called and end is FinishReason.STOP else end

    def _finished(self, meta: dict[str, Any], end: FinishReason) -> Finished:
        common: dict[str, Any] = {
            "completion_tokens": meta["completion_tokens"],
            "finish_reason": end,
            "reasoning_tokens": meta.get("reasoning_tokens") or 0,
            "prompt_logprobs": token_logprobs(*self._prompt_lists),
        }
        if self._report is not None:
            # SGLang's own counts refer to the entry, not to the prompt.
            kept = self._report["kv_mask"]
            report = self._report | {"kv_mask": custom_params.mask_from_values(kept) if kept else None}
            return Finished(**common, **report)
        prompt_tokens = meta["prompt_tokens"]
        return Finished(prompt_tokens, meta["cached_tokens"], kv_tokens=prompt_tokens, **common)


def token_logprobs(tokens: Any, tops: Any) -> tuple[TokenLogprob, ...]:
    """SGLang's lists of (logprob, token id, text), one for each token, and the lists of the most likely ones."""
    likely = list(tops or ())
    return tuple(
        TokenLogprob(token_id, logprob, _top(likely[place] if place < len(likely) else None))
        for place, (logprob, token_id, *_) in enumerate(tokens or ())
    )


def _top(tokens: Any) -> tuple[tuple[int, float], ...]:
    # A grammar or a bias may leave fewer possible tokens than were asked for.
    return tuple((token_id, logprob) for logprob, token_id, *_ in tokens or () if math.isfinite(logprob))
