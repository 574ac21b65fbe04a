"""Find figures outside blocks that look measured: nobody would notice when they are no longer true.

A figure is a number with a unit of time, memory, rate, share or divergence; a count such as `18 of 24`; or a decimal
number. Prose, lists and tables are searched, but not code, links, versions and the densities that budgets ask for. A
figure that is no measurement has a comment on the line before its paragraph, list or table:

    <!-- no measurement: definition -->
"""

import re
from collections.abc import Iterator

REASONS = "definition", "setting", "budget", "example", "aim", "calculation"
WAY_OUT = re.compile(r"<!-- no measurement: (.*?) -->")
UNITS = (
    "%|per cent|×|times|ms|s|milliseconds?|microseconds?|seconds?|minutes?|hours?|[KMGT]i?B|[KMG]B/s|bytes|nats|"
    "tokens/s"
)
NUMBER = r"(?:\d[\d,.]*)?\d"
FIGURE = re.compile(
    rf"(?<![\w.,]){NUMBER}(?: to {NUMBER})?[ -]?(?:{UNITS})(?![\w/])"
    rf"|(?<![\w.,]){NUMBER} of (?:the )?\d"
    r"|(?<![\w.])\d+\.\d+(?![\w.]*\d)"
)
UNSEEN = re.compile(
    r"^```.*?^```|^ {4}.*?$|<!-- figures: .*?<!-- end -->|`[^`]*`|\]\([^)]*\)"
    r"|arXiv:? ?\d{4}\.\d{5}"
    r"|(?:Python|[Tt]orch|PyTorch|Triton|CUDA|[Tt]ransformers|numpy|section|Phi-|Apache-)"
    r"\s?\d+(?:\.\d+)*(?: or \d+\.\d+)?"
    r"|(?<![\d.])0\.(?:5|25|125)(?!\d)|density 1\.0",
    re.MULTILINE | re.DOTALL,
)


def loose(text: str) -> Iterator[tuple[int, str]]:
    """Return line numbers, from 1, and what is wrong there."""
    lines = UNSEEN.sub(lambda found: "\n" * found[0].count("\n"), text).split("\n")
    excused, used = 0, True
    for number, line in enumerate([*lines, ""], 1):
        if excused and not line.strip():
            if not used:
                yield excused, "nothing here needs the comment"
            excused = 0
        if reason := WAY_OUT.match(line):
            excused, used = number, False
            if reason[1] not in REASONS:
                yield number, f"no measurement: must be one of {', '.join(REASONS)}; found {reason[1]}"
            continue
        found = [figure[0] for figure in FIGURE.finditer(line)]
        used = used or bool(found)
        if found and not excused:
            yield number, f"{', '.join(found)} outside a block, in: {line.strip()[:80]}"
