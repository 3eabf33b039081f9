"""An explanation as a page."""

import re
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from presift.cli.render.heat import printable
from presift.cli.render.page import page_of
from presift_client import RouteForecast


class Page(HTMLParser):
    """The tags, text and images of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.pieces, self.words, self._in_text, self._depth = [], [], [], 0, 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append((tag, values))
        if values.get("class") == "text":
            self._in_text = 1
        elif self._in_text and tag == "span":
            self.pieces.append([values["class"], ""])

    def handle_endtag(self, tag):
        if tag == "div":
            self._in_text = 0

    def handle_data(self, data):
        self.words.append(data)
        if self._in_text:
            self.pieces[-1][1] += data

    @property
    def text(self):
        return "".join(text for _, text in self.pieces)

    def images(self, alt):
        return [values for tag, values in self.tags if tag == "img" and values["alt"].startswith(alt)]


EVIL = [
    "<script>alert(1)</script>",
    "</span></div></body>",
    "\"' onmouseover=alert(1) x='",
    "<img src=x onerror=alert(1)>",
    "&lt;b&gt; &amp; {{ 7 * 7 }} {% raw %}",
    "<!-- --> ]]> \x00\x1b[31m\u202e",
    "\n\n  leading and trailing  \n",
]


def test_text_is_escaped(explained):
    explanation = explained(EVIL, [True, False] * 3 + [True])
    page = Page(page_of(explanation))
    assert page.text == printable("".join(EVIL))
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "a", "form"} and [tag for tag, _ in page.tags].count("b") == 1
    assert all(not name.startswith("on") for _, values in page.tags for name in values)
    assert all(values["src"].startswith("data:image/png;base64,") for tag, values in page.tags if tag == "img")


def test_names_and_reasons_are_escaped(explained):
    explanation = explained(["x"])
    model = replace(explanation.decision.target, id="<script>", revision="<em>")
    decision = replace(explanation.decision, route="<script>", reason="<u>", draft=model, target=model)
    explanation = replace(explanation, decision=decision)
    page = Page(page_of(explanation))
    assert not {"script", "em", "u"} & {tag for tag, _ in page.tags}
    assert "a <b> & c" in "".join(page.words) and "<script> (<em>)" in "".join(page.words)


def test_the_page_is_self_contained(explained):
    text = page_of(explained(["x"], kv=np.ones((1, 1, 1), dtype=bool)))
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<link|<script|srcset", re.sub(r"base64,[^\"]*", "", text))
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in text
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in text


def test_each_piece_has_the_classes_of_its_heat_and_hold(explained):
    explanation = explained(["hot", "cold", "must"], [True, False, True], [2], [0.9, 0.0, 0.1])
    assert Page(page_of(explanation)).pieces == [["h9 k4", "hot"], ["h0 k0", "cold"], ["h2 k4 p", "must"]]


def test_the_decision_is_shown(explained):
    words = "".join(Page(page_of(explained(["x"] * 1234, kv=np.ones((2, 2, 1234), dtype=bool)))).words)
    for word in ("spec_kv", "requested: a <b> & c", "1,234", "0.500", "0.750", "m (r)", "draft 3 ms", "2 layers, 2 KV"):
        assert word in words


def test_a_strip_for_every_layer_and_head(explained):
    kv = np.zeros((3, 2, 40), dtype=bool)
    kv[1, 0, :20] = True
    page = Page(page_of(explained(["x"] * 40, kv=kv)))
    images = page.images("layer")
    assert [image["alt"] for image in images] == [f"layer {row // 2}, head {row % 2}" for row in range(6)]
    assert images[2]["src"] != images[0]["src"] == images[1]["src"]


def test_one_strip_if_all_layers_and_heads_are_the_same(explained):
    page = Page(page_of(explained(["x"] * 4, kv=np.ones((1, 1, 4), dtype=bool))))
    assert len(page.images("layer all")) == 1 and "all layers, all KV heads" in "".join(page.words)


def test_no_map_if_no_kv_is_dropped(explained):
    page = Page(page_of(explained(["x"], [True])))
    assert page.images("layer") == [] and "kept in some heads" not in "".join(page.words)


def test_no_importance_if_nothing_was_scored(explained):
    page = Page(page_of(explained(["x", "y"], importance=[0.0, 0.0])))
    assert page.images("importance") == [] and "importance, as scored" not in "".join(page.words)
    page = Page(page_of(explained(["x", "y"])))
    assert len(page.images("importance")) == 1 and "importance, as scored" in "".join(page.words)


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_short_prompt(explained, tokens):
    assert Page(page_of(explained(["x"] * tokens))).text == "x" * tokens


def test_a_long_prompt_makes_a_small_page_quickly(explained):
    rng = np.random.default_rng(0)
    importance = rng.pareto(1.5, 6000)
    kv = rng.random((28, 2, 6000)) < 0.1
    explanation = explained(["word "] * 6000, kv=kv, importance=(importance / importance.sum()).tolist())
    started = time.process_time()
    text = page_of(explanation)
    assert time.process_time() - started < 3 and len(text) < 1_000_000
    assert Page(text).text == "word " * 6000


def test_routes_are_a_table_and_their_reasons_are_escaped(explained):
    evil = RouteForecast("full", False, "needs <script>alert(1)</script>", ttft_ms=4.0)
    chosen = RouteForecast("spec_pc", True, is_chosen=True, read_tokens=1234)
    page = Page(page_of(replace(explained(["a"]), routes=(evil, chosen))))
    assert [values for tag, values in page.tags if tag == "tr"] == [{}, {}, {"class": "chosen"}]
    assert "needs <script>alert(1)</script>" in page.words and "1,234" in page.words
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert "table" not in [tag for tag, _ in Page(page_of(explained(["a"]))).tags]


def luminance(colour):
    parts = [value / 255 for value in colour]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def mixed(one, other, share):
    return [share * a + (1 - share) * b for a, b in zip(one, other, strict=True)]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_all_text_has_enough_contrast(explained, scheme):
    """WCAG AA, 4.5:1, for kept and dropped text on every background."""
    style = page_of(explained(["x"]))
    values = {name: found[-1 if scheme else 0] for name in ("ink", "ground", "dropped", "warmest")
              if (found := re.findall(rf"--{name}: ([^;]+);", style))}  # fmt: skip
    ink, ground, dropped = (
        [int(n, 16) for n in re.findall("..", v if len(v) == 6 else v * 2)]
        for name in ("ink", "ground", "dropped")
        for v in [values[name][1:]]
    )
    warm = [232, 112, 10]
    overridden = {int(level) for level in re.findall(r"\.h(\d) \{ color: var\(--ink\)", style)}
    for level in range(10):
        behind = mixed(warm, ground, level / 9 * float(values["warmest"]))
        assert contrast(ink if level in overridden else dropped, behind) >= 4.5, level
    assert "line-through" in style  # a shade alone does not mark dropped text


def test_on_a_phone_each_number_has_its_heading(explained):
    late = RouteForecast("full", False, "needs 9 tokens", ttft_ms=4.0)
    page = Page(page_of(replace(explained(["a"]), routes=(late,))))
    headings = [values["data-head"] for tag, values in page.tags if tag == "td"]
    assert headings[0] == "route" and headings[-1] == "budget" and len(headings) == 8
