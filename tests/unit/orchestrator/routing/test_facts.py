"""Which facts an answer has, and which of them another one has too."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.orchestrator.routing.agreement import agreement
from presift.orchestrator.routing.facts import NO_FACTS, FactCount, count_facts

LIST = """The notes name six crates:
1. Falcon holds 1,204 rotors and is kept in Lyon.
2. Harrier holds 87 valves and is kept in Porto.
3. Kestrel holds 3,310 gaskets and is kept in Ghent.
4. Merlin holds 45.5 tons and is kept in Turku.
5. Osprey holds 612 nozzles and is kept in Graz.
6. Buzzard holds 990 bolts and is kept in Bergen."""
HEAD, *ITEMS = LIST.split("\n")
REORDERED = "\n".join([HEAD, *(f"{at}{ITEMS[item][1:]}" for at, item in enumerate((3, 5, 0, 4, 2, 1), 1))])


def agree(compressed, full):
    """Of texts, with a token for each word."""
    ids = {word: at for at, word in enumerate(sorted({*compressed.split(), *full.split()}))}
    tokens = ([ids[word] for word in text.split()] for text in (compressed, full))
    return agreement(*tokens, count_facts(compressed, full))


def test_a_list_in_another_order_agrees():
    found = agree(REORDERED, LIST)
    assert found.facts == FactCount(18, 18) and found.fact_share == 1.0
    assert found.overlap < 0.65 and found.degree > 0.95


def test_a_lost_fact_shows_whatever_the_wording():
    fluent = LIST.replace(ITEMS[4], "5. There is one more crate, about which the notes say nothing else.")
    found = agree(fluent, LIST)
    assert found.facts == FactCount(15, 18) and found.degree < 0.85


@pytest.mark.parametrize(("right", "wrong"), [("1,204", "1,240"), ("Lyon", "Riga"), ("45.5", "45.4")])
def test_one_wrong_fact_in_otherwise_equal_answers_shows(right, wrong):
    found = agree(LIST.replace(right, wrong), LIST)
    assert found.facts == FactCount(17, 18) and found.overlap > 0.95 > found.degree + 0.001


@pytest.mark.parametrize("full", ["yes", "It is red.", "No, they don't know why the road was closed.", "", "は い"])
def test_a_short_answer_without_facts_is_compared_by_its_wording(full):
    for compressed in ("yes", "It is blue.", full):
        found = agree(compressed, full)
        assert found.facts == NO_FACTS and found.fact_share is None and found.degree == found.overlap


def test_a_short_answer_with_a_fact_is_half_of_each():
    assert agree("The code is 4711", "The code is 4711").degree == 1.0
    assert agree("The code is 4712", "The code is 4711").degree == pytest.approx(0.75 / 2)
    assert agree("4711", "The code is 4711").degree == pytest.approx((0.4 + 1) / 2)


@pytest.mark.parametrize(
    ("full", "compressed"),
    [
        ("1,234 crates", "1234 crates"),
        ("512MB of memory", "512 MB of memory"),
        ("`cache_ttl_s` is set", "cache_ttl_s is set"),
        ('named "the open door"', "named “The Open Door”"),
        ("kept by Marta", "Marta keeps it."),
        ("it is in src/main.rs", "main.rs has it"),
        ("on 2024-03-17", "on 17/03/2024"),
        ("the code is ALPHA-7", "the code is alpha 7"),
        ("共有512箱", "箱子一共512个"),
        ("名称是「白鹭计划」", "它叫白鹭计划。"),
        ("١٢ صندوقا", "في المخزن ١٢"),
        ("512", "\uff15\uff11\uff12"),
    ],
)
def test_the_same_fact_in_another_form(full, compressed):
    count = count_facts(compressed, full)
    assert count.found == count.total > 0


@pytest.mark.parametrize(
    ("full", "compressed"),
    [
        ("3.14", "3.15"),
        ("3.14", "14.3"),
        ("parseFile(path)", "readFile(path)"),
        ("cache_ttl_s", "cache_size_s"),
        ("raises `ValueError`", "raises `TypeError`"),
        ("return config['max_tokens']", "return config['min_tokens']"),
        ("GPT-4", "GPT-5"),
        ("Die Kiste steht in Graz", "Die Kiste steht in Wien"),
        ("ящик стоит в Твери", "ящик стоит в Туле"),
        ("共有512箱", "共有521箱"),
        ('"the open door"', '"the closed door"'),
    ],
)
def test_another_fact(full, compressed):
    count = count_facts(compressed, full)
    assert count.found < count.total


@pytest.mark.parametrize(
    "text",
    [
        "1. red\n2) blue\n- green",
        "See e.g. the red one. It is old.",
        "Note: the note is red.",
        "I know a well-known road.",
    ],
)
def test_these_are_no_facts(text):
    assert count_facts("", text).total == 0


def test_items_of_a_list_begin_with_their_names():
    assert count_facts("falcon, harrier", "The crates are red.\n- Falcon\n- Harrier\n").found == 2


def test_code():
    full = 'def parse_rows(path: Path) -> list[Row]:\n    return csvReader(open(path, "rb"), 16)\n'
    assert count_facts(full, full) == FactCount(5, 5)  # parse_rows, Row, csvReader, "rb", 16
    assert count_facts(full.replace("16", "32").replace("csvReader", "jsonReader"), full) == FactCount(3, 5)


def test_a_fact_that_the_limit_cut_is_not_missed():
    assert count_facts("the code is 4711", "the code is 47", is_cut=True) == NO_FACTS
    assert count_facts("the code is 4711", "the code is 47", is_cut=False) == FactCount(0, 1)
    assert count_facts("the code is 4711", "the code is 4711.", is_cut=True) == FactCount(1, 1)


def test_repeating_a_fact_changes_nothing():
    assert count_facts("7 and 8", "7 " * 50 + "8 9") == FactCount(2, 3)


@given(st.text(), st.text(), st.booleans())
def test_any_text_has_countable_facts(compressed, full, is_cut):
    count = count_facts(compressed, full, is_cut=is_cut)
    assert 0 <= count.found <= count.total <= len(full) * 18  # NFKC makes at most 18 characters of one


@given(st.text())
def test_an_answer_has_all_facts_of_its_own(text):
    count = count_facts(text, text)
    assert count.found == count.total


def seconds_for(text):
    """Of processor time to compare a text with itself, the best of three."""
    taken = []
    for _ in range(3):
        started = time.process_time()
        count_facts(text, text)
        taken.append(time.process_time() - started)
    return min(taken)


@pytest.mark.parametrize("piece", ['"', '"a', "'a ", "“ab ", "a.", "_a", "1,", "7 ", "箱", "- A\n", "A1.b2 ", "A{}.b "])
def test_a_hostile_answer_takes_linear_time(piece):
    """Eight times the text takes about eight times as long; with quadratic time, 64 times."""
    texts = ["".join(piece.format(number) for number in range(count)) for count in (1_000, 8_000)]
    short_s, long_s = map(seconds_for, texts)
    assert long_s < 30 * max(short_s, 1e-3)
