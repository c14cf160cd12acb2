import re
from collections.abc import Iterator

import pytest

from server import errors
from server.errors import ServerError, TooLarge


def below(kind: type[ServerError]) -> Iterator[type[ServerError]]:
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from below(child)


KINDS: list[type[ServerError]] = [ServerError, *below(ServerError)]


def test_every_class_has_a_code_of_its_own() -> None:
    codes = [kind.code for kind in KINDS]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


def test_the_tree_at_the_top_of_the_module_is_the_tree() -> None:
    assert errors.__doc__ is not None
    drawn: dict[int, str] = {}
    parents: dict[str, str] = {}
    for indent, name in re.findall(r"^([│├└─ ]*)([A-Z]\w+)", errors.__doc__, re.MULTILINE):
        if name in {kind.__name__ for kind in KINDS}:
            depth = len(indent)
            drawn[depth] = name
            parents[name] = drawn.get(depth - 4, "")
    assert parents == {
        kind.__name__: kind.__bases__[0].__name__ if kind is not ServerError else ""
        for kind in KINDS
    }


def test_too_large_says_which_limit_it_was() -> None:
    error = TooLarge("3 images, the limit is 2", code="too_many_images")
    assert (error.code, str(error)) == ("too_many_images", "3 images, the limit is 2")
    assert TooLarge("x").code == TooLarge.code == "too_large"
    with pytest.raises(AssertionError):
        TooLarge("x", code="a_code_no_client_knows")
