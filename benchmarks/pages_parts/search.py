"""Write blocks about the search: extrapolation, solver, measured costs, studies."""

from statistics import mean

from pages_parts.common import Figures, claims, exact, listed, percent, table, wrapped


def extrapolation(found: Figures) -> str:
    """Return text's harm at longer lengths than were profiled, beside what was measured there."""
    columns = "profiled", "text of", "", "rank of rules", "rank of groups", "harm / measured", "IQR"
    forms, rows = {"rules": ".3f", "groups": ".3f", "ratio": ".2f", "iqr": ".2f"}, []
    for row in found["rows"]:
        for how in ("extrapolated", "unchanged"):
            figures = [format(row[how][key], form) for key, form in forms.items()]
            rows.append([f"{row['from']:,}", f"{row['to']:,}", how, *figures])
    return table(columns, rows)


def solver(found: Figures) -> str:
    """Time, gap and memory at the size of large models."""
    columns = (
        "size", "budgets", "choices", "left", "search, CPU s", "search, clock s", "solver, clock s", "gap",
        "gap by duality alone",
    )  # fmt: skip
    rows = [
        [
            size["size"], f"{case['case']}: {', '.join(case['budgets'])}", f"{case['given']:,}", f"{case['left']:,}",
            *(f"{case[key]:.2f}" for key in ("cpu_seconds", "seconds", "solver_seconds")),
            *(f"{case[key]:.1e}" for key in ("gap", "lagrangian_gap")),
        ]
        for size in found["sizes"] for case in size["cases"]
    ]  # fmt: skip
    peaks = listed([f"{size['peak_bytes'] / 1e9:.2f} GB for {size['size']}" for size in found["sizes"]])
    last = f"A group has {found['sizes'][0]['rules']} rules. The process's peak memory, profile included, is {peaks}."
    return "\n\n".join([table(columns, rows), wrapped(last), claims(found)])


def costs(found: Figures) -> str:
    """Return predicted against measured times."""
    kinds = {"decode": "decode step", "prefill": "prefill"}
    fits = listed([f"{exact(found['fit_error'][kind])} for {says}s" for kind, says in kinds.items()])
    last = wrapped(f"The plans were not in the fit, whose own median errors are {fits}.")
    rows = [
        [
            kinds[cell["kind"]], f"{cell['length']:,}", str(cell["batch"]), str(cell["plans"]), exact(cell["error"]),
            f"{100 * cell['bias']:+.1f} %", "-" if cell["rank"] is None else f"{cell['rank']:.2f}",
            exact(cell["standard_error"]), "yes" if cell["resolved"] else "no",
        ]
        for cell in found["cells"]
    ]  # fmt: skip
    where, order = ("", "tokens", "batch", "plans"), ("rank correlation", "largest standard error", "resolved")
    columns = *where, "median error", "bias", *order
    return "\n\n".join([table(columns, rows), last, claims(found)])


def study(found: Figures) -> str:
    """Return what trials gain on the text that they go by, and on text that they never saw."""
    by_row = {(row["length"], row["row"]): row for row in found["rows"]}
    lengths = sorted({length for length, _ in by_row})
    rows = []
    for one in sorted(found["studies"], key=lambda s: (-float(s["density"]), s["seed"])):
        density, seed, base, best = one["density"], one["seed"], one["base"], one["measured"]
        changes = [f"{base[key]:.4f} to {best[key]:.4f}" for key in ("kl", "recall")]
        names = f"exact {density}", f"study {density}, seed {seed}"
        changes.append(" to ".join(f"{found['unseen'][name]['recall']:.4f}" for name in names))
        row = [density, str(seed), str(sum(one["trials"])), *changes]
        for length in lengths:
            before, after = (by_row[length, name] for name in names)
            row.append(f"{before['text']['kl']:.4f} to {after['text']['kl']:.4f}")
        rows.append(row)
    unseen = [f"KL at {length:,}, text never seen" for length in lengths]
    columns = "density", "seed", "trials", "KL of text", "KL of answers", "KL of answers, tasks never seen"
    parts = [table([*columns, *unseen], rows)]
    drawn = [one for one in found["random"] if one["replays"]]
    if drawn:
        scores = table(
            ["seed", "default sampler", "random mixes"],
            [[str(one["seed"]), f"{one['tpe']:.2f}", f"{one['best']:.2f}"] for one in drawn],
        )
        parts += ["The best score of each study; the plan of `moa search` has 1, and lower is better:", scores]
        shares = [
            f"{name} {percent(mean(one['replays'][name][0] for one in drawn))}"
            for name in drawn[0]["replays"]
            if name != "none"
        ]
        parts.append(wrapped(f"The pruners measure this share of the samples: {listed(shares)}."))
    alone = found["alone"]
    if alone["scores"]:
        parts.append(wrapped(
            f"Without the solver, {alone['trials']} trials of Optuna over the rule of every group, at density "
            f"{alone['density']} of {alone['length']:,} tokens, reach {min(alone['scores']):.2f}; the plan of "
            "`moa search` has 1."
        ))  # fmt: skip
    return "\n\n".join(parts)
