"""Formulas as MathML, which browsers draw without a script."""

import html
import re

from latex2mathml.converter import convert

# What the converter has under another name, or not at all; in formulas that stand apart, limits of
# sums belong above and below.
_EVERYWHERE = (
    (re.compile(r"\\(begin|end)\{aligned\}"), r"\\\1{align*}"),
    (re.compile(r"\\[td]frac\b"), r"\\frac"),
    (re.compile(r"\\tag\{([^}]*)\}"), r"\\qquad (\1)"),
)
_APART = ((re.compile(r"\\(sum|prod)_"), r"\\\1\\limits_"),)

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
        known = latex
        for pattern, replacement in _EVERYWHERE + (_APART if block else ()):
            known = pattern.sub(replacement, known)
        made = str(convert(known, display="block" if block else "inline"))
    except Exception as error:  # the library has a class for each fault and no common one
        raise FormulaInvalid(f"{latex}: {type(error).__name__} {error}") from error
    # A command that it does not know becomes the text of its name, a column of an unknown table &.
    unknown = re.search(r">(\\[A-Za-z]+|&(?:amp;)?)<", made)
    if unknown:
        raise FormulaInvalid(f"{latex}: {unknown[1]} is not known")
    return made
