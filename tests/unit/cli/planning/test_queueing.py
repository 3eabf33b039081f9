"""Queueing, against textbook values."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.cli.planning.queueing import erlang_c, mean_wait_s, servers_for, spread


@pytest.mark.parametrize(
    ("servers", "offered", "waits"), [(1, 0.5, 1 / 2), (2, 1.0, 1 / 3), (3, 2.0, 4 / 9), (1, 0.0, 0.0), (4, 0.0, 0.0)]
)
def test_erlang_c_by_hand(servers, offered, waits):
    assert erlang_c(servers, offered) == pytest.approx(waits)


def test_one_server_half_used():
    """rho / (2 (1 - rho)) for constant service times, twice that for exponential ones."""
    assert mean_wait_s(1, 0.5, 1.0, 0.0) == pytest.approx(0.5)
    assert mean_wait_s(1, 0.5, 1.0, 1.0) == pytest.approx(1.0)
    # Two servers for the same work: C(2, 0.5) = 0.1, so 0.1 / 1.5 and half of that.
    assert mean_wait_s(2, 0.5, 1.0, 0.0) == pytest.approx(0.1 / 1.5 / 2)


def test_an_overloaded_queue_waits_for_ever():
    assert mean_wait_s(2, 2.0, 1.0) == mean_wait_s(1, 3.0, 1.0) == math.inf


def test_spread_by_hand():
    assert spread([(2.0, 1.0)]) == (2.0, 0.0)
    # 1 and 3 alike: mean 2, variance 1.
    assert spread([(1.0, 0.5), (3.0, 0.5)]) == (2.0, pytest.approx(0.25))
    assert spread([(1.0, 2.0), (3.0, 2.0)]) == (2.0, pytest.approx(0.25))
    assert spread([]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("offered", "utilisation", "servers"), [(0.0, 0.7, 1), (0.7, 0.7, 1), (0.71, 0.7, 2), (7, 0.7, 10)]
)
def test_servers_by_hand(offered, utilisation, servers):
    assert servers_for(offered, utilisation) == servers


@given(st.integers(1, 50), st.floats(0.01, 0.98), st.floats(0, 4))
def test_another_server_shortens_the_wait(servers, load, scv):
    rate = servers * load
    assert mean_wait_s(servers + 1, rate, 1.0, scv) <= mean_wait_s(servers, rate, 1.0, scv)
