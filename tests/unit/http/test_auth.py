import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from server.errors import Forbidden, SettingsInvalid, Unauthorized
from server.http.auth import MAX_FILE_BYTES, Keys


def keys(*given: str, file: Path | None = None) -> Keys:
    return Keys([SecretStr(each) for each in given], file)


def test_settings_and_file_hold_keys_together(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    text = "four\n# who: one\n\n  two \r\n#three\nключ\n"
    file.write_text(text, encoding="utf-8-sig")  # as Windows' editor does
    both = keys("one", file=file)
    for key in ("one", "two", "four", "ключ"):
        assert both.allows(key)
        both.check({"authorization": f"Bearer {key.encode().decode('latin-1')}"})
        both.check({"x-api-key": key.encode().decode("latin-1")})
    for wrong in ("", "three", "#three", "on", "one ", "ONE", "# who: one", "\ud800"):
        assert not both.allows(wrong)


@pytest.mark.parametrize("inside", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_only_the_end_of_a_line_ends_a_key(tmp_path: Path, inside: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(f"one{inside}two\r\n\t three{inside} \nfour".encode())
    known = keys(file=file)
    assert known.count == 3
    for key in (f"one{inside}two", f"three{inside}", "four"):
        assert known.allows(key)
    for part in ("one", "two", "three"):
        assert not known.allows(part)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "keys"
    if kind == "pipe":
        os.mkfifo(file)  # nobody writes into it: opening it the usual way would never return
    else:
        file = Path("/dev/null")
    with pytest.raises(SettingsInvalid, match=f"{file} is not a regular file"):
        keys(file=file)


def test_without_keys_everybody_is_let_through_but_not_where_a_key_is_needed() -> None:
    assert not keys().configured
    assert keys().allows("any")
    keys().check({})
    with pytest.raises(Forbidden, match="api_keys_file"):
        keys().require({"x-api-key": "any"})
    with pytest.raises(Unauthorized):
        keys("one").require({"x-api-key": "any"})
    keys("one").require({"x-api-key": "one"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "no key"),
        (b"# only\n\n", "no key"),
        (b"\xff\xfe", "not UTF-8"),
        (b"a\n" * MAX_FILE_BYTES, "over 1048576 bytes"),
    ],
)
def test_a_bad_file_is_refused_and_at_a_reload_the_old_keys_stay(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "keys"
    file.write_text("old", encoding="utf-8")
    known = keys(file=file)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(SettingsInvalid, match=message):
        keys(file=file)
    with pytest.raises(SettingsInvalid, match=message):
        known.reload()
    assert known.allows("old")


def test_a_reload_takes_the_file_as_it_is_now(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("old", encoding="utf-8")
    known = keys("given", file=file)
    file.write_text("new", encoding="utf-8")
    known.reload()
    assert [known.allows(key) for key in ("given", "old", "new")] == [True, False, True]
