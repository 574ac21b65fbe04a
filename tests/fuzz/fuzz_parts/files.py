"""Changes of the files that a command reads: cut short, bytes changed, documents edited, other kinds in their place."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml
from fuzz_parts.change import Change, Effect
from fuzz_parts.documents import mutated

OTHERS = ("binary.bin", "empty", "prompt.txt", "docs.parquet", "study.journal", "eval.jsonl", "model/config.json")
BINARY = ("profile.safetensors", "model/model.safetensors", "resumed.safetensors.partial/text.256.0.safetensors")
JOURNALS = ("eval.jsonl", "study.journal")


def change(path: str, rng: Random) -> Change:
    """Any change of the file at `path`, by its kind."""
    kinds: list[Callable[[str, Random], Change]] = [truncated, flipped, replaced]
    if path.endswith(".safetensors"):
        kinds += [header, flipped, truncated]
    elif path.endswith(".yaml"):
        kinds += [document, document, document, yaml_text, yaml_text, yaml_text, harmless_yaml, harmless_yaml]
    elif path.endswith(".json"):
        kinds += [document, document, document, json_text]
    elif path.endswith((".jsonl", ".journal")):
        kinds += [rows, rows, truncated, truncated, truncated]
    elif path.endswith(".txt"):
        kinds = [text, text, replaced]
    return rng.choice(kinds)(path, rng)


def truncated(path: str, rng: Random) -> Change:
    """The file as a full disk or a lost connection leaves it."""
    part = rng.choice([0.0, rng.random(), rng.random(), 0.999999])
    effect: Effect = "bad" if path in BINARY[:2] else "same" if path in JOURNALS or path in BINARY else "free"

    def edit(folder: Path) -> None:
        whole = (folder / path).read_bytes()
        (folder / path).write_bytes(whole[: min(int(len(whole) * part), len(whole) - 1)])

    return Change(f"{path} cut at {part:.4f}", effect, edit=edit)


def flipped(path: str, rng: Random) -> Change:
    """One byte is another."""
    part, byte = rng.choice([rng.random(), rng.random() * 0.1]), rng.randrange(1, 256)
    same = path in (BINARY[0], BINARY[2])  # what was measured is never wrong without a word

    def edit(folder: Path) -> None:
        raw = bytearray((folder / path).read_bytes())
        if raw:
            raw[int(len(raw) * part)] ^= byte
        (folder / path).write_bytes(bytes(raw))

    return Change(f"{path}: byte at {part:.4f} ^ {byte}", "same" if same else "free", edit=edit)


def replaced(path: str, rng: Random) -> Change:
    """Another kind of file, a folder or nothing in its place."""
    other = rng.choice([*OTHERS, "a folder", "nothing", "a link to itself"])
    other = "empty" if other == path else other

    def edit(folder: Path) -> None:
        target = folder / path
        target.unlink()
        if other == "a folder":
            target.mkdir()
        elif other == "a link to itself":
            target.symlink_to(target.name)
        elif other != "nothing":
            shutil.copy(folder / other, target)

    return Change(f"{path} is {other}", "free", edit=edit)


def header(path: str, rng: Random) -> Change:
    """An edit of a safetensors file's header, or of the JSON that a profile keeps in it."""
    seed = rng.random()
    same = path in (BINARY[0], BINARY[2])

    def edit(folder: Path) -> None:
        random = Random(seed)
        raw = (folder / path).read_bytes()
        size = struct.unpack("<Q", raw[:8])[0]
        head = json.loads(raw[8 : 8 + size])
        if random.random() < 0.7 and "profile" in head.get("__metadata__", {}):
            inner, _ = mutated(json.loads(head["__metadata__"]["profile"]), random)
            head["__metadata__"]["profile"] = json.dumps(inner)
        else:
            head, _ = mutated(head, random)
        new = json.dumps(head).encode()
        (folder / path).write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + size :])

    return Change(f"{path}: header edited ({seed:.4f})", "same" if same else "free", edit=edit)


def document(path: str, rng: Random) -> Change:
    """A key less, a key more, or a value of another kind."""
    seed, count = rng.random(), rng.choice([1, 1, 2])

    def edit(folder: Path) -> None:
        random = Random(seed)
        raw = (folder / path).read_text()
        found: Any = yaml.safe_load(raw) if path.endswith(".yaml") else json.loads(raw)
        for _ in range(count):
            found, _said = mutated(found, random)
        new = yaml.safe_dump(found, allow_unicode=True) if path.endswith(".yaml") else json.dumps(found)
        (folder / path).write_text(new, errors="surrogatepass")

    return Change(f"{path}: {count} edits ({seed:.4f})", "free", edit=edit)


YAML_TEXTS = (
    "!!python/object/apply:os.system ['false']", "!!python/name:os.system", "!!binary aGVsbG8=", "!!set {a, b}",
    "!unknown {a: 1}", "&a [*a]", "*nowhere", "{<<: *x}", "2026-13-45", "2026-11-28", "0o17", "0b11", "1:30:00", "~",
    "|",
    "? [a, b]\n: c", "\t", "%YAML 9.9", "---\na: 1\n---\nb: 2", "...", "{a: 1, a: 2}", "\x07", "\ufeff", "- a\nb: c",
    "{a: {b: {c: {d: {e: f}}}}}", "[" * 3000, "{[1, 2]: 3}", "{1.5: 2}", "{null: 3}", "=", "<<",
)  # fmt: skip
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def yaml_text(path: str, rng: Random) -> Change:
    """What YAML knows besides plain data, in place of a value, at the end or as the whole file."""
    piece, where = rng.choice([*YAML_TEXTS, BOMB]), rng.choice(["value", "end", "whole", "bomb"])
    seed = rng.random()

    def edit(folder: Path) -> None:
        plain = (folder / path).read_text()
        lines = plain.splitlines()
        at = Random(seed).randrange(len(lines))
        if where == "value":
            lines[at] = f"{lines[at].partition(':')[0]}: {piece}"
        new = {"end": plain + piece, "whole": piece, "bomb": BOMB + plain}.get(where, "\n".join(lines))
        (folder / path).write_text(new)

    return Change(f"{path}: {piece[:40]!r} as {where}", "free", edit=edit)


def harmless_yaml(path: str, rng: Random) -> Change:
    """The same plan, written otherwise."""
    way = rng.choice(["comments", "block style", "JSON", "sorted", "CRLF", "document marks", "all heads"])

    def edit(folder: Path) -> None:
        plain = (folder / path).read_text()
        if "*a" in plain:
            raise ValueError("a bomb, which some of these ways would write out")
        found = yaml.safe_load(plain)
        ways = {
            "comments": lambda: "# a plan\n" + plain.replace("\n", "  # é\n"),
            "block style": lambda: yaml.safe_dump(found, default_flow_style=False),
            "JSON": lambda: json.dumps(found, default=str),
            "sorted": lambda: yaml.safe_dump(found, sort_keys=True, default_flow_style=True),
            "CRLF": lambda: plain.replace("\n", "\r\n"),
            "document marks": lambda: f"%YAML 1.1\n---\n{plain}...\n",
            "all heads": lambda: _all_heads(found),
        }
        (folder / path).write_text(ways[way](), newline="")

    effect: Effect = "free" if way == "JSON" else "same"  # keys of JSON are texts
    return Change(f"{path} as {way}", effect, edit=edit)


def _all_heads(found: dict[str, Any]) -> str:
    """Every layer with an entry, which says the defaults again."""
    layers = found.setdefault("layers", {})
    for layer in range(found["model"]["layers"]):
        layers.setdefault(layer, {}).setdefault("heads", ["default"] * found["model"]["kv_heads"])
    return yaml.safe_dump(found)


def json_text(path: str, rng: Random) -> Change:
    """Text that is no JSON, or JSON that nobody writes."""
    way = rng.choice(["BOM", "comment", "comma", "twice", "latin-1", "deep", "NaN", "long number"])

    def edit(folder: Path) -> None:
        plain = (folder / path).read_text()
        ways = {
            "BOM": b"\xef\xbb\xbf" + plain.encode(), "comment": b"// costs\n" + plain.encode(),
            "comma": plain.encode().rstrip()[:-1] + b",}", "twice": plain.encode() * 2,
            "latin-1": plain.encode().replace(b'"', b'"\xe9', 1), "deep": b"[" * 100_000,
            "NaN": b'{"a": NaN}', "long number": b'{"a": ' + b"9" * 10_000 + b"}",
        }  # fmt: skip
        (folder / path).write_bytes(ways[way])

    return Change(f"{path}: {way}", "free", edit=edit)


def rows(path: str, rng: Random) -> Change:
    """A row that is edited, doubled, lost, or no JSON."""
    seed, way = (
        rng.random(),
        rng.choice(["edited", "edited", "twice", "lost", "garbage", "list", "blank", "nul", "BOM"]),
    )

    def edit(folder: Path) -> None:
        random = Random(seed)
        lines = (folder / path).read_bytes().splitlines(keepends=True)
        if not lines:
            return
        at = random.randrange(len(lines))
        if way == "edited":
            found, _ = mutated(json.loads(lines[at]), random)
            lines[at] = json.dumps(found).encode() + b"\n"
        elif way == "BOM":
            lines[0] = b"\xef\xbb\xbf" + lines[0]
        elif way in ("twice", "lost"):
            lines[at : at + 1] = [lines[at]] * (2 if way == "twice" else 0)
        else:
            lines.insert(at, {"garbage": b"{]\n", "list": b"[1, 2]\n", "blank": b"\n", "nul": b"\0\0\0\n"}[way])
        (folder / path).write_bytes(b"".join(lines))

    effect: Effect = "same" if path in JOURNALS and way in ("lost", "garbage", "list", "blank", "nul") else "free"
    return Change(f"{path}: a row {way} ({seed:.4f})", effect, edit=edit)


def text(path: str, rng: Random) -> Change:
    """Texts that are long, empty, or not UTF-8."""
    way = rng.choice(["BOM", "latin-1", "UTF-16", "NULs", "CRLF", "blank", "emoji", "long line", "special tokens"])

    def edit(folder: Path) -> None:
        plain = (folder / path).read_text()
        ways = {
            "BOM": b"\xef\xbb\xbf" + plain.encode(), "latin-1": plain.encode() + b"caf\xe9",
            "UTF-16": plain.encode("utf-16"), "NULs": b"\0" * 300, "CRLF": plain.replace(". ", ".\r\n").encode(),
            "blank": b" \n" * 200, "emoji": "🌊é\u2028".encode() * 60, "long line": plain.encode() * 20,
            "special tokens": b"<s></s>" * 200,
        }  # fmt: skip
        (folder / path).write_bytes(ways[way])

    return Change(f"{path}: {way}", "same" if way == "BOM" else "free", edit=edit)
