"""Reports as a checker makes them, without running one: what the renderers are tried on."""

from __future__ import annotations

import hashlib
import math
import random
from functools import cache
from itertools import product
from typing import Any

from converter.reports import render
from converter.reports.report import FAIL, INCONCLUSIVE, INTERNAL, NOT_RUN, PASS, REJECTED, Check, Phase, Report

PHASES = ("provenance", "weights", "config", "function", "trajectory", "self-test", "images")
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
STATISTICS = {"relative L2": 1.0, "max abs over RMS": 8.0, "worst channel": 1.3, "worst patch position": 1.2}
FLOAT64 = {"relative L2": 1e-7, "max abs over RMS": 1e-6, "worst channel": 2e-7, "worst patch position": 2e-7}
CASES = ("t999", "t321", "t0", "t431.5", "16x24", "8x8", "caption of 1", "no mask",
         "garbage in padding", "amplitude x3")  # fmt: skip
PARTS = ("epsilon", "variance")
HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&|pipe|`tick```` [link](http://evil.example/)"
    " @someone #123 www.evil.example https://evil.example/ {{ 7*7 }} {% raw %} ]]>"
    "\x00\x07\x1b[31m\x7f\x85\ud800\ufffe\u202eRTL\u2066\n\n# heading\r\n| a | b |\n<!-- -->"
)


def sha(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def stage_names(blocks: int) -> list[str]:
    embeddings = ["patch embedding", "timestep embedding", "caption embedding"]
    return [*embeddings, *(f"block {i}" for i in range(blocks)), "final layer"]


def function_checks(dice: random.Random, cases: tuple[str, ...], factor: float = 1.0) -> list[Check]:
    """Every case and part, gates and what is shown; `factor` is how much worse than noise the converted net is."""
    made = []
    for case in cases:
        for part in PARTS:
            what = f"{case} / {part}"
            for name, size in STATISTICS.items():
                value, limit = 0.9e-8 * size * dice.uniform(0.7, 1.6) * factor, FLOAT64[name]
                words = f"{value / limit:.2g} times the limit of {limit:g}"
                made.append(Check(what, f"float64 {name}", value, limit, value <= limit, words))
            for against in ("", " against the original's"):
                for name, size in STATISTICS.items():
                    floor = 5.3e-7 * size * dice.uniform(0.8, 1.2)
                    ratio = dice.uniform(0.95, 1.35) * (factor**0.8 if factor > 1 else 1)
                    words = f"{ratio:.2f} times the noise floor (limit 3)"
                    made.append(Check(what, f"float32 {name}{against}", ratio * floor, 3 * floor, ratio <= 3, words))
            made.append(Check(what, "float32 cosine", 1 - 1e-13, None, None, "0.999999999999"))
            made.append(Check(what, "float32 SQNR in dB", 125.31, None, None, "125.3 dB"))
            made.append(Check(what, "float32 mean signed bias", -2.1e-9, None, None, "-2.1e-09 of the RMS"))
            made.append(Check(what, "float32 quantile 99 %", 1.7e-6, None, None, "1.7e-06 of the RMS"))
            worst = "sample 1, channel 2, row 7, column 3: 0.71213418 and 0.71213377"
            made.append(Check(what, "float32 worst index", worst, None, None, worst))
    return made


def blocks_detail(dice: random.Random, blocks: int, bad: int | None = None) -> dict[str, Any]:
    names = stage_names(blocks)
    floor = [2.1e-7 * (1 + 0.06 * i) * dice.uniform(0.9, 1.1) for i in range(len(names))]
    floor[1] = 6e-8
    converted = [value * dice.uniform(0.95, 1.25) for value in floor]
    if bad is not None:
        converted[bad + 3 :] = [2e-3 * 1.09**i * dice.uniform(0.9, 1.1) for i in range(len(names) - bad - 3)]
    made = {"case": "t999", "precision": "float32", "stages": names, "converted": converted, "floor": floor}
    return made | {"limit": 3.0}


def heat_detail(dice: random.Random, rows: int = 24, columns: int = 16, wrong: bool = False) -> dict[str, Any]:
    channels = [f"{part} {i}" for part in PARTS for i in range(4)]
    values = []
    for c in range(8):
        noise = [abs(dice.gauss(0, 4e-7)) for _ in range(rows * columns)]
        if wrong:
            noise = [
                n + 3e-3 * math.exp(-((i // columns - 9 - c) ** 2 + (i % columns - 6) ** 2) / 18)
                for i, n in enumerate(noise)
            ]
        values.append(noise)
    unit = "|difference| / RMS of the output"
    about = {"case": "t999", "precision": "float32", "channels": channels, "rows": rows, "columns": columns}
    return about | {"values": values, "unit": unit}


def localisation_detail(dice: random.Random, blocks: int, faulty: tuple[int, ...]) -> dict[str, Any]:
    parts = ["norm1", "attn1 q", "attn1 k", "attn1 v", "attn1 out", "attn2 q", "attn2 k", "attn2 v", "attn2 out", "ff"]
    stages = []
    for name in stage_names(blocks):
        wrong, floor = name in {f"block {i}" for i in faulty}, 4e-7 * dice.uniform(0.8, 1.2)
        error = 1.3e-2 * dice.uniform(0.6, 1.5) if wrong else floor
        inside = []
        for part in parts if wrong else []:
            bad = part in ("attn1 q", "attn1 k")
            own = 0.9 if bad else 2e-7 * dice.uniform(0.8, 1.2)
            inside.append({"name": part, "error": own, "floor": 2e-7, "faulty": bad})
        stage: dict[str, Any] = {"name": name, "error": error, "floor": floor, "faulty": wrong}
        stages.append(stage | ({"inside": inside} if wrong else {}))
    words = f"swapping attn1.to_q and attn1.to_k of block {faulty[0]} restores 1.1 times the noise floor"
    repairs = [
        {"words": "adding 1 to the timestep leaves 24600 times the noise floor", "restores": False},
        {"words": words, "restores": True},
    ]
    return {"precision": "float64", "case": "t999", "stages": stages, "repairs": repairs}


def trajectory_detail(dice: random.Random, steps: int = 8, factor: float = 1.0) -> dict[str, Any]:
    made = []
    for i in range(steps):
        floor = 4e-7 * 1.3**i
        error = floor * dice.uniform(0.9, 1.3) * factor
        made.append({"step": i + 1, "timestep": 999 - 125 * i, "error": error, "floor": floor})
    return {"sampler": "DDIM", "steps": made}


def images_detail(dice: random.Random, steps: int = 6) -> dict[str, Any]:
    titles = ("original", "converted", "difference × 100")
    pictures = [{"title": title, "words": f"what the {title} shows", "png": PNG} for title in titles]
    header, rows = ["diffusers' convention", "latents"], [["8 bits rounded half to even", 0.0], ["all of these", 0.21]]
    tables = [{"title": "What stock conventions change", "words": "", "header": header, "rows": rows}]
    walk = trajectory_detail(dice, steps)
    for step in walk["steps"]:
        step["timestep"] -= 0.5  # between two
    return walk | {"pictures": pictures, "tables": tables}


def timesteps_detail() -> dict[str, Any]:
    return {"timesteps": [0, 500, 999], "lines": {"a": [0.5, 0.0, 0.7]}, "equal": 500, "words": "apart"}


def tables_detail() -> list[dict[str, Any]]:
    return [{"title": "measured", "words": "all of it", "header": ["name", "error"], "rows": [["a", 0.5]]}]


def smallest_details() -> list[tuple[str, dict[str, Any]]]:
    """The details of phases, one at a time, of as little as makes a picture: there are many ways to damage them."""
    dice = random.Random(0)
    heat = heat_detail(dice, 2, 2)
    heat |= {"channels": heat["channels"][:1], "values": heat["values"][:1]}
    localisation = localisation_detail(dice, 1, (0,))
    for stage in localisation["stages"]:
        stage["inside"] = stage.get("inside", [])[:2]
    return [
        ("function", {"blocks": blocks_detail(dice, 1)}),
        ("function", {"heat": heat}),
        ("function", {"localisation": localisation}),
        ("trajectory", trajectory_detail(dice, 2)),
        ("images", images_detail(dice, 1)),
        ("other timesteps", {"timesteps": timesteps_detail()}),
        ("other timesteps", {"tables": tables_detail()}),
    ]


def self_test(survivors: int = 0, blocks: int = 28) -> Phase:
    kinds = ("q and k swapped", "v transposed", "self-attention key bias zeroed", "shift and scale swapped",
             "mask ignored", "gate dropped")  # fmt: skip
    checks = []
    for block, kind in product(sorted({0, 1, blocks // 2, blocks - 2, blocks - 1}), kinds):
        survives = len(checks) < survivors
        value = "" if survives else "weights" if kind.startswith("self") else "weights, function"
        words = "nothing noticed it" if survives else f"caught by {value}"
        checks.append(Check(f"{kind} in block {block}", "caught by", value, "weights", not survives, words))
    words = f"{len(checks) - survivors} of {len(checks)} deliberate faults were caught"
    return Phase("self-test", INCONCLUSIVE if survivors else PASS, words, checks)


def environment() -> dict[str, Any]:
    return {
        "tool": "convert-pixart 0.1.0",
        "python": "3.11.7",
        "torch": "2.6.0",
        "diffusers": "0.32.1",
        "numpy": "2.1.3",
        "device": "cpu",
        "threads": 8,
        "tf32": False,
        "deterministic_algorithms": True,
        "dtypes": ["float64", "float32"],
        "seed": 20240607,
    }


def sides(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    original = {"name": f"{name}.pth", "size": 2445123456, "sha256": sha(name), "container": "torch zip"}
    original["weights"] = "state_dict"
    files = {
        "transformer/config.json": {"size": 682, "sha256": sha(name + "config")},
        "transformer/diffusion_pytorch_model.safetensors": {"size": 2444600320, "sha256": sha(name + "weights")},
    }
    return original, {"name": f"{name}-diffusers", "size": 2444601002, "sha256": sha(name + "folder"), "files": files}


def sample(name: str, verdict: str, reason: str, phases: list[Phase]) -> Report:
    original, converted = sides(name)
    run = {
        "date": "2025-02-03 14:05:06 UTC",
        "seconds": 200.25,
        "command": f"pixart parity {name}.pth {name}-diffusers --profile standard --report parity.html",
        "original": f"/models/{name}.pth",
        "converted": f"/models/{name}-diffusers",
    }
    assumed = [
        {"name": "num_attention_heads", "value": 16, "why": "no tensor shows it; every released PixArt model has 16"},
        {"name": "norm_eps", "value": 1e-06, "why": "no tensor shows it; the original architecture has no other"},
    ]
    notes = ["The original holds state_dict_ema as well; state_dict was compared"]
    return Report(
        verdict, reason, "pixart", "standard", original, converted, environment(), assumed, notes, phases, run
    )


def cheap_phases() -> list[Phase]:
    provenance = Check("TF32", "setting", "off", "off", True, "TF32 is off")
    words = "all 443 tensors (610.9 M numbers) are the original's, byte for byte"
    bijection = Check("weights", "bytes", None, None, True, words)
    buffer = Check("pos_embed", "recomputed", 3.6e-8, 0.0, None, "pos_embed is recomputed by the target")
    fields = [
        Check(n, "config", v, v, True, f"{n} is {v}: {why}")
        for n, v, why in (
            ("sample_size", "128", "pos_embed has 64 x 64 positions of 2 x 2"),
            ("num_layers", "28", "blocks.0 to blocks.27"),
            ("interpolation_scale", "2", "given"),
            ("use_additional_conditions", "False", "no csize_embedder"),
        )
    ]
    weights = f"{words}; none missing, none extra"
    return [
        Phase("provenance", PASS, "both sides are hashed; TF32 off, deterministic algorithms, 8 threads", [provenance]),
        Phase("weights", PASS, weights, [bijection, buffer], ["pos_embed is left out on purpose"]),
        Phase("config", PASS, "all 4 fields that matter are what the original shows or needs", fields),
    ]


def passing(blocks: int = 28, name: str = "PixArt-Sigma-XL-2-1024-MS", cases: tuple[str, ...] = CASES) -> Report:
    dice = random.Random(blocks)
    words = "float32 output within 1.35 times the noise floor (limit 3); float64 output within 1.4e-08 (limit "
    words += f"1e-07); {24 * len(cases)} statistics checked on {len(cases)} cases of {4 * len(cases)} samples in all"
    function = Phase("function", PASS, words, function_checks(dice, cases))
    function.detail = {"blocks": blocks_detail(dice, blocks), "heat": heat_detail(dice)}
    trajectory = Phase("trajectory", PASS, "8 steps of DDIM stay at the noise floor", detail=trajectory_detail(dice))
    images = Phase("images", PASS, "after 6 steps the latents are 1.1e-06 apart", detail=images_detail(dice))
    phases = [*cheap_phases(), function, trajectory, self_test(blocks=blocks), images]
    return sample(name, PASS, words, phases)


def failing(blocks: int = 28, faulty: tuple[int, ...] = (14,)) -> Report:
    dice = random.Random(2)
    phases = cheap_phases()
    key = f"transformer_blocks.{faulty[0]}.attn1.to_q.weight"
    wrong = Check(key, "bytes", None, None, False, f"{key} holds what belongs in {key.replace('to_q', 'to_k')}")
    kept = "kept for an old pipeline, until 2026"
    phases[2].checks.append(Check("norm_eps", "config", "1e-05", "1e-06", False, "norm_eps is 1e-05", waived=kept))
    words = f"the converted weights are not the original's: {wrong.words}, and 1 more"
    phases[1] = Phase("weights", FAIL, words, [wrong])
    words = "3 elements are NaN or infinite, 0 in the original's output"
    checks = function_checks(dice, CASES, 4000.0)
    checks.append(Check("t999 / epsilon", "float64 non-finite", 3.0, 0.0, False, words))
    fault = f"attn1.to_q and attn1.to_k swapped in block {faulty[0]}"
    words = f"{fault}; it goes wrong in block {faulty[0]}; 193 of 241 statistics over the limit"
    function = Phase("function", FAIL, words, checks)
    function.detail = {
        "blocks": blocks_detail(dice, blocks, faulty[0]),
        "heat": heat_detail(dice, wrong=True),
        "localisation": localisation_detail(dice, blocks, faulty),
    }
    trajectory = Phase("trajectory", NOT_RUN, "not run: the function differs already")
    skipped = Phase("self-test", NOT_RUN, "not run: nothing to confirm after a failure")
    reason = f"{fault}; weights: {phases[1].words}"
    return sample("PixArt-alpha-XL-2-512", FAIL, reason, [*phases, function, trajectory, skipped])


def inconclusive() -> Report:
    dice = random.Random(3)
    function = Phase(
        "function", PASS, "outputs identical in float32; 96 statistics checked", function_checks(dice, CASES[:4])
    )
    function.detail = {"blocks": blocks_detail(dice, 42), "heat": heat_detail(dice, 16, 24)}
    phases = [
        *cheap_phases(),
        function,
        Phase("trajectory", NOT_RUN, "the quick profile leaves it out"),
        self_test(survivors=2),
    ]
    reason = "self-test: 2 of 30 deliberate faults missed: q and k swapped in block 0 (caught by nothing)"
    return sample("my-finetune-epoch-7", INCONCLUSIVE, reason, phases)


def rejected() -> Report:
    original = {"name": "model.pth", "size": 812}
    reason = "model.pth: archive/data.pkl: calls os.system, which no checkpoint needs"
    run = {"date": "2025-02-03 14:05:06 UTC", "command": "pixart parity model.pth out"}
    return Report(REJECTED, reason, original=original, environment=environment(), run=run)


def internal() -> Report:
    return Report(INTERNAL, "RuntimeError: out of memory")


def tiny() -> Report:
    return passing(4, "tiny", CASES[:2])


def hostile() -> Report:
    """Hostile text wherever text can stand, and numbers that are none."""
    text = HOSTILE
    nan, huge = math.nan, "N" * 10000
    check = Check(text, f"float32 {text}", nan, math.inf, False, text)
    kept = Check(text, "float32 relative L2", text, None, False, text, waived=text)
    null = Check(huge, huge, None, None, None, huge)
    inside = [{"name": text, "error": 1.0, "faulty": True}]
    stages: list[dict[str, Any]] = [{"name": text, "error": nan, "floor": None, "faulty": True, "inside": inside}, {}]
    case = {"case": text, "precision": text}
    numbers = {"converted": [1e-3, nan, None], "floor": [1e-7, "inf"], "limit": nan}
    heat = {"channels": [text, huge], "rows": 1, "columns": 2, "values": [[nan, 1e-7], [None, 0.0]], "unit": text}
    detail = {
        "blocks": {**case, "stages": [text, huge, "block 0"], **numbers},
        "heat": {**case, **heat},
        "localisation": {"case": text, "stages": stages, "repairs": [{"words": text, "restores": True}, {}]},
    }
    step = {"step": 1, "timestep": text, "error": "nan", "floor": 1e-7}
    steps = {"sampler": text, "steps": [step, {"step": None, "error": 1.0}]}
    phases = [
        Phase("function", FAIL, text, [check, kept, null], [text], detail),
        Phase("trajectory", INCONCLUSIVE, text, [], [text], steps),
        Phase("self-test", NOT_RUN, text, [check], [text]),
        Phase(
            "images",
            FAIL,
            text,
            [],
            [text],
            {
                "pictures": [
                    {"title": text, "words": text, "png": PNG},
                    None,
                    {},
                    {"title": huge, "png": text},
                    {"png": 1},
                ]
            },
        ),
        Phase(text, FAIL, text, [], [text]),
    ]
    original = {"name": text, "size": text, "sha256": text, "container": text, "weights": huge}
    converted = {"name": huge, "size": 10**400, "sha256": text, "files": {text: {"size": -1, "sha256": text}, huge: {}}}
    run = {"date": text, "seconds": nan, "command": text, "cached": text}
    assumed = [{"name": text, "value": text, "why": text}, {}]
    about = {"tool": text, text: [text, nan], "device": None}
    return Report(FAIL, text, text, text, original, converted, about, assumed, [text, huge], phases, run)


def bare() -> Report:
    """Every verdict of a phase, and nothing else."""
    phases = [
        Phase(name, verdict, "")
        for name, verdict in zip(PHASES, (PASS, FAIL, INCONCLUSIVE, NOT_RUN, PASS, PASS, NOT_RUN), strict=True)
    ]
    return Report(FAIL, "", phases=phases)


def everything() -> dict[str, Report]:
    made = (passing, failing, inconclusive, rejected, internal, tiny, hostile, bare)
    return {make.__name__: make() for make in made} | {"forty-two": passing(42), "many": failing(28, (3, 14, 20))}


@cache
def written(name: str, suffix: str) -> str:
    """One of them as a file. The pictures of a page take seconds to draw, and several test modules look at it."""
    return render([everything()[name]], suffix)
