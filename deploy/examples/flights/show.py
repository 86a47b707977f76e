"""How the demo talks: lines and tables on stdout, and on stderr what takes longer than a second."""

import os
import sys
import time

FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
QUIET = 1  # seconds before something is shown to take its time
REPEAT = 10  # seconds between lines where lines cannot be drawn over


def say(text=""):
    print(text, flush=True)


def strong(text):
    plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ
    return text if plain else f"\033[1m{text}\033[0m"


def step(number, title):
    say(f"\n{strong(f'{number}  {title}')}")


def table(rows, indent=3):
    """Rows of text below each other: numbers to the right, words to the left. The first row is the heading."""

    def is_number(text):
        return text.lstrip("-").replace(",", "").replace(".", "", 1).isdigit()

    widths = [max(map(len, column)) for column in zip(*rows)]
    right = [all(is_number(text) for text in column[1:] if text) for column in zip(*rows)]
    for place, row in enumerate(rows):
        cells = (text.rjust(width) if to_right else text.ljust(width) for text, width, to_right in zip(row, widths, right))
        line = " " * indent + "  ".join(cells).rstrip()
        say(strong(line) if place == 0 else line)


def seconds(duration):
    return f"{duration:.1f} s"


class Working:
    """Shows that something goes on, once it takes longer than a second: call `tick` in the loop that waits.

    On a terminal one line is drawn over and over and gone at the end; elsewhere a line comes now and then.
    """

    def __init__(self, what):
        self.what = what
        self.began = time.monotonic()
        self.next = QUIET
        self.drawn = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.drawn:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()

    @property
    def elapsed(self):
        return time.monotonic() - self.began

    def tick(self, detail=""):
        elapsed = self.elapsed
        if elapsed < self.next:
            return
        line = f"   {self.what}, {elapsed:.0f} s" + (f": {detail}" if detail else "")
        if sys.stderr.isatty():
            self.next = elapsed + 0.1
            self.drawn += 1
            # Not a column too many: a line that wraps cannot be drawn over.
            width = (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1
            sys.stderr.write("\r\033[K" + f"{FRAMES[self.drawn % len(FRAMES)]}{line[1:]}"[:width])
        else:
            self.next = elapsed + REPEAT
            sys.stderr.write(line + "\n")
        sys.stderr.flush()
