import inspect

import pytest

from presift.core import errors
from presift.core.errors import FieldError, InternalError, InvalidRequest, Overloaded, PresiftError, PromptTooLong

ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
ABOUT_A_FIELD = [kind for kind in ALL if issubclass(kind, FieldError) and kind is not Overloaded]


def test_there_is_one_tree():
    assert all(issubclass(kind, PresiftError) for kind in ALL)
    assert issubclass(PromptTooLong, InvalidRequest)


def test_the_docstring_draws_every_error_but_the_abstract_one():
    drawn = {
        word for line in errors.__doc__.splitlines() if "── " in line for word in [line.split("── ")[1].split()[0]]
    }
    assert drawn == {kind.__name__ for kind in ALL} - {"PresiftError", "FieldError"}


@pytest.mark.parametrize("kind", ABOUT_A_FIELD)
def test_field_errors_say_which_what_and_what_it_may_be(kind):
    error = kind("kernel", 4, "odd")
    assert str(error) == error.message == "kernel is 4; it must be odd"
    assert (error.field, error.value, error.limit) == ("kernel", 4, "odd")
    assert error.details == {"field": "kernel", "value": "4", "limit": "odd"}


@pytest.mark.parametrize("kind", ABOUT_A_FIELD)
def test_a_message_of_its_own_keeps_the_details(kind):
    error = kind("kernel", 4, "odd", "no even kernels")
    assert error.message == "no even kernels"
    assert error.details == {"field": "kernel", "value": "4", "limit": "odd"}


def test_an_overloaded_service_says_when_to_come_back():
    error = Overloaded("queue", 9, 8, retry_after_s=1.5)
    assert error.retry_after_s == 1.5
    assert error.details == {"field": "queue", "value": "9", "limit": "8"}


def test_other_errors_carry_what_they_are_given():
    error = InternalError("broken", field="importance")
    assert (str(error), error.details) == ("broken", {"field": "importance"})
