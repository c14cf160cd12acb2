"""Formulas as MathML, which browsers draw without a script."""

import html
import re

from latex2mathml.converter import convert

# What the extension arithmatex makes of $...$ and $$...$$.
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


class FormulaInvalid(Exception):
    """A formula can't be read; the text names it and the reason."""


def with_mathml(content: str) -> str:
    r"""A page's HTML with its formulas as MathML.

    Args:
        content: HTML with what arithmatex (generic) left: LaTeX in `\(...\)` or `\[...\]`.

    Raises:
        FormulaInvalid: LaTeX that the converter does not know.
    """
    return _FORMULA.sub(lambda found: _mathml(found[3], block=found[2] == "["), content)


def _mathml(escaped: str, *, block: bool) -> str:
    latex = html.unescape(escaped).strip()
    try:
        made = convert(latex, display="block" if block else "inline")
    except Exception as error:  # the library has a class for each fault and no common one
        raise FormulaInvalid(f"{latex}: {type(error).__name__} {error}") from error
    # A command that it does not know becomes the text of its name.
    unknown = re.search(r">(\\[A-Za-z]+)<", made)
    if unknown:
        raise FormulaInvalid(f"{latex}: {unknown[1]} is not known")
    return str(made)
