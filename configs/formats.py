"""Checks the `format` of a dataset: text with columns in braces, {#column}sections{/column} among it."""

import string

MOST_PUT_IN = 100  # columns in one document, since each cell may be long


def check_format(form: str, fields: list[str]) -> None:
    """Raise ValueError unless `form` is text with bare column names in braces.

    `str.format` on text from a file could reach attributes or fill memory.
    """
    try:
        parts = list(string.Formatter().parse(form))
    except ValueError as error:
        raise ValueError(f"{error}; write {{{{ and }}}} for braces in the text") from None
    used: list[str] = []
    sections: list[str] = []  # begun and not ended
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        mark, field = (name[:1], name[1:]) if name[:1] in ("#", "/") and name not in fields else ("", name)
        if field not in fields or spec or conversion:
            written = f"{{{name}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}"
            allowed = ", ".join(f"{{{field}}}" for field in fields)
            raise ValueError(f"{written[:80]} is not a bare name from fields; allowed: {allowed}")
        if mark == "#":
            sections.append(field)
        elif mark and (not sections or sections.pop() != field):
            raise ValueError(f"{{/{field}}} ends no section; write {{#{field}}} where it begins, inside of no other")
        elif not mark:
            used.append(field)
    if sections:
        raise ValueError(f"the section {{#{sections[-1]}}} does not end; write {{/{sections[-1]}}} where it does")
    if not used:
        raise ValueError("uses none of its fields, so that every document would be the same")
    if len(used) > MOST_PUT_IN:
        raise ValueError(f"puts in {len(used):,} columns; at most {MOST_PUT_IN}")
