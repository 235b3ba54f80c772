"""DiT brought to be compared: what is right passes only as it is said to be loaded, and whatever is wrong is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers import GOLDEN, HEADS, dit, save, stated
from memory_tensors import memory_tensors
from opened import Pair
from safetensors.torch import load_file, save_file

from converter import UsageError, convert
from converter.checkpoint import open_checkpoint
from converter.checkpoint.json_file import read_json
from converter.conversion.analysis import analyse
from converter.errors import InputError
from converter.families import Findings
from converter.mapping import fold
from converter.models.dit import parity as brought
from converter.models.dit.net import dit as whole
from converter.models.dit.parity import AS_LOADED, GUIDED, PARITY, STOCK, cases, faults, shape
from converter.models.dit.table import AMENDED, DIT
from converter.nets import Values, Weights, no_probe
from converter.nets.faults import CONFIG, FUNCTION, WEIGHTS
from converter.nets.inputs import Case
from converter.parity import check
from converter.parity.catalogue import catalogue
from converter.parity.session import Session
from converter.parity.sides import Sides, spec_of
from converter.reports.report import Report

FILE = "diffusion_pytorch_model.safetensors"
COPY = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.weight"
# Of a block, what runs one after the other.
PARTS = ("norm1.emb.timestep_embedder", "norm1.emb.class_embedder", "norm1.linear", "attn1", "ff")
EXACT: dict[str, Any] = {"exact_timesteps": True}


def findings(path: Path = GOLDEN / "dit.pt", **given: Any) -> Findings:
    with open_checkpoint(path) as checkpoint:
        return analyse(checkpoint, {"num_attention_heads": HEADS} | given).findings


FOUND = findings()
STATE: dict[str, torch.Tensor] = torch.load(GOLDEN / "dit.pt", weights_only=True)
CONVERTED = DIT.keys(STATE)
EXACT_LINE = AMENDED.line(FOUND)
FIX = PARITY.fix(FOUND, {})
assert FIX
FIXED = FIX.spec


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Converted for diffusers' own class."""
    at = tmp_path_factory.mktemp("dit")
    convert(GOLDEN / "dit.pt", at / "out", stock=True, hyper_parameters={"num_attention_heads": HEADS})
    return Pair(GOLDEN / "dit.pt", at / "out")


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Converted for the class that travels."""
    at = tmp_path_factory.mktemp("exact")
    convert(GOLDEN / "dit.pt", at / "out", hyper_parameters={"num_attention_heads": HEADS})
    return Pair(GOLDEN / "dit.pt", at / "out")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Of more positions than most cases have."""
    at = tmp_path_factory.mktemp("large")
    path = save(dit(input_size=24, class_rows=3, learn_sigma=False), at / "a.pt")
    convert(path, at / "out", stock=True, hyper_parameters={"num_attention_heads": HEADS})
    return Pair(path, at / "out")


def spoilt(pair: Pair, at: Path, change: Callable[[dict[str, torch.Tensor]], Any], **config: Any) -> Pair:
    """The pair with something done to the converted weights and config."""
    state = load_file(pair.model / FILE)
    change(state)
    at.mkdir()
    save_file(state, at / FILE, metadata={"format": "pt"})
    said = {key: value for key, value in (read_json(pair.model / "config.json") | config).items() if value is not None}
    (at / "config.json").write_text(json.dumps(said))
    return Pair(pair.original, at)


def compared(pair: Pair, **options: Any) -> Report:
    return check(pair.original, pair.folder, **stated(**{"num_attention_heads": HEADS} | options))


def phase(report: Report, name: str) -> Any:
    return next(phase for phase in report.phases if phase.name == name)


def faulty(report: Report) -> dict[str, list[str]]:
    """The stages that go wrong, with what is wrong inside of them."""
    rows = phase(report, "function").detail["localisation"]["stages"]
    return {row["name"]: [part["name"] for part in row["inside"] if part["faulty"]] for row in rows if row["faulty"]}


@contextmanager
def session(pair: Pair, **given: Any) -> Iterator[Session]:
    with ExitStack() as stack:
        ours, theirs = (stack.enter_context(open_checkpoint(path)) for path in (pair.original, pair.folder))
        looked = analyse(ours, {"num_attention_heads": HEADS} | given)
        config = read_json(pair.model / "config.json")
        yield Session(Sides(looked.require(), looked.findings, looked.plan, ours, theirs, spec=PARITY, config=config))


# The verdict.


def test_the_class_that_travels_is_the_original(exact: Pair) -> None:
    report = compared(exact, profile="standard", self_test="full")
    assert (report.verdict, report.exit_code) == ("PASS", 0)
    assert phase(report, "trajectory").verdict == "PASS"
    assert phase(report, "function").notes == []
    assert len(phase(report, "self-test").checks) > 100
    assert EXACT_LINE not in report.reason


@pytest.mark.parametrize("change", ["missing", "modified", "elsewhere"])
def test_the_module_beside_the_weights_has_to_be_the_one_that_was_compared(
    exact: Pair, tmp_path: Path, change: str
) -> None:
    other = spoilt(exact, tmp_path / "out", lambda state: None)
    config = read_json(other.folder / "config.json")
    module = (exact.model / "dit_transformer.py").read_text()
    if change != "missing":
        (other.folder / "dit_transformer.py").write_text(module + "\n" * (change == "modified"))
    if change == "elsewhere":
        del config["auto_map"]
        (other.folder / "config.json").write_text(json.dumps(config))
    report = compared(other)
    assert report.verdict == ("INCONCLUSIVE" if change == "modified" else "FAIL")
    words = {"missing": "dit_transformer.py is missing", "elsewhere": "auto_map is None, and has to be {'AutoModel'"}
    assert words.get(change, "what trust_remote_code runs is unknown") in phase(report, "config").words


def test_as_from_pretrained_loads_it_the_converted_model_is_another_and_it_is_said_why(pair: Pair) -> None:
    report = compared(pair)
    assert (report.verdict, report.exit_code) == ("FAIL", 1)
    assert [phase(report, name).verdict for name in ("weights", "config", "function")] == ["PASS", "PASS", "FAIL"]
    assert list(faulty(report)) == ["timestep embedding"]
    assert faulty(report)["timestep embedding"] == ["block 0", "block 1", "block 2"]
    words = phase(report, "function").words
    assert words.startswith("stock DiTTransformer2DModel has other timestep")
    assert "; it goes wrong in timestep embedding; " in words
    assert f"once this is run on what from_pretrained loads: {EXACT_LINE}" in words
    assert report.reason.startswith("function: ")


def test_with_the_line_run_on_it_it_is_the_original_and_it_is_said_which_was_compared(pair: Pair) -> None:
    report = compared(pair, profile="standard", **EXACT)
    assert (report.verdict, report.exit_code) == ("PASS", 0)
    assert f"this was run on what from_pretrained loads: {EXACT_LINE}" in report.reason
    (note,) = phase(report, "function").notes
    assert note.startswith("as from_pretrained alone loads it: relative L2 0.18 in float64")
    (row,) = [check for check in phase(report, "function").checks if "from_pretrained" in check.statistic]
    assert (row.passed, row.limit) == (None, 1e-7)
    assert row.value == pytest.approx(0.18, abs=0.01)
    assert phase(report, "trajectory").verdict == "PASS"


def test_every_deliberate_fault_is_found(pair: Pair) -> None:
    report = compared(pair, self_test="full", **EXACT)
    tested = phase(report, "self-test")
    assert tested.verdict == "PASS", tested.words
    assert len(tested.checks) > 100


def test_what_the_user_said_at_conversion_counts(tmp_path: Path) -> None:
    convert(GOLDEN / "dit.pt", tmp_path / "out", **stated(num_attention_heads=HEADS, stock=True, **EXACT))
    assert check(GOLDEN / "dit.pt", tmp_path / "out").verdict == "PASS"
    assert check(GOLDEN / "dit.pt", tmp_path / "out", hyper_parameters={"exact_timesteps": False}).verdict == "FAIL"


def test_from_the_command_line(pair: Pair, tmp_path: Path, cli: Any) -> None:
    flags = ["--orig_ckpt_path", pair.original, "--converted_path", pair.folder]
    result = cli("pixart", "parity", *flags)
    assert result.returncode == 1
    assert EXACT_LINE in result.stdout
    assert "--exact_timesteps true" in result.stdout
    report = tmp_path / "report"
    result = cli(
        "pixart", "parity", *flags, "--exact_timesteps", "--report", f"{report}.json", "--report", f"{report}.html"
    )
    assert result.returncode == 0
    assert EXACT_LINE in result.stdout
    assert EXACT_LINE in Path(f"{report}.html").read_text().replace("<wbr>", "")
    assert json.loads(Path(f"{report}.json").read_text())["verdict"] == "PASS"
    result = cli("pixart", "parity", "--orig_ckpt_path", GOLDEN / "sigma-ms.pth", "--converted_path", pair.folder,
                 "--exact_timesteps")  # fmt: skip
    assert (result.returncode, "not a hyper-parameter of the family pixart" in result.stderr) == (2, True)


def test_right_after_a_conversion(tmp_path: Path, cli: Any) -> None:
    flags = ["--orig_ckpt_path", GOLDEN / "dit.pt", "--dump_path", tmp_path / "out", "--num_attention_heads=4"]
    result = cli("pixart", "convert", *flags, "--parity", "--stock")
    assert result.returncode == 1
    assert result.stdout.count(EXACT_LINE) >= 2  # the conversion's note, and the comparison's reason
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["verdict"] == "FAIL"
    result = cli("pixart", "convert", *flags, "--parity", "--overwrite")
    assert (result.returncode, EXACT_LINE in result.stdout) == (0, False)


def test_the_models_own_size_and_the_stock_loader(large: Pair) -> None:
    report = compared(large, profile="full", **EXACT)
    assert report.verdict == "PASS", report.reason
    (loader,) = [check for check in phase(report, "function").checks if check.statistic == "float32 stock loader"]
    assert (loader.passed, "bit for bit" in loader.words) == (True, True)
    assert "native" in {case["name"] for case in phase(report, "function").detail["cases"]}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_reported(pair: Pair, dtype: str) -> None:
    report = compared(pair, dtype=dtype, **EXACT)
    assert report.verdict == "PASS"
    rows = [check for check in phase(report, "function").checks if check.statistic == f"{dtype} relative L2"]
    assert len(rows) == 2
    assert all("no worse" in row.words for row in rows)


# What is wrong is named.


def test_a_copy_that_differs_in_one_block(pair: Pair, tmp_path: Path) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        state[COPY][5, 7] += 1e-3

    report = compared(spoilt(pair, tmp_path / "out", change), **EXACT)
    weights = phase(report, "weights")
    assert (report.verdict, weights.verdict) == ("FAIL", "FAIL")
    assert (
        f"1 of 63 converted tensors are not the original's: {COPY} differs in 1 of 2304 elements, by up to 0.001"
        in weights.words
    )
    assert faulty(report) == {"timestep embedding": ["block 1"]}


def test_a_copy_that_differs_by_a_bit_that_no_output_shows(pair: Pair, tmp_path: Path) -> None:
    key = "transformer_blocks.2.norm1.emb.class_embedder.embedding_table.weight"

    def change(state: dict[str, torch.Tensor]) -> None:
        state[key][4] = state[key][4].nextafter(torch.tensor(9.0))  # a class that no input has

    report = compared(spoilt(pair, tmp_path / "out", change), **EXACT)
    assert report.verdict == "FAIL"
    assert f"{key} differs in 48 of 528 elements" in phase(report, "weights").words
    assert phase(report, "function").verdict == "PASS"


def test_embedders_of_another_model_in_every_block(pair: Pair, tmp_path: Path) -> None:
    """All copies agree, and are wrong all the same."""

    def change(state: dict[str, torch.Tensor]) -> None:
        for i in range(3):
            state[f"transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table.weight"][3] *= 1.5

    report = compared(spoilt(pair, tmp_path / "out", change), **EXACT)
    assert "transformer_blocks.{0..2}.norm1.emb.class_embedder" in phase(report, "weights").words
    assert list(faulty(report)) == ["class embedding"]


def test_copies_that_are_missing_or_of_another_dtype(pair: Pair, tmp_path: Path) -> None:
    report = compared(spoilt(pair, tmp_path / "lost", lambda state: state.pop(COPY)), **EXACT)
    assert (report.verdict, phase(report, "function").verdict) == ("FAIL", "NOT RUN")
    assert f"missing: {COPY}" in report.reason

    def half(state: dict[str, torch.Tensor]) -> None:
        state[COPY] = state[COPY].half()

    report = compared(spoilt(pair, tmp_path / "half", half), **EXACT)
    assert f"{COPY} is float16, and the original is float32" in report.reason


@pytest.mark.parametrize("amended", [True, False])
def test_another_fault_is_not_hidden_behind_the_frequencies(pair: Pair, tmp_path: Path, amended: bool) -> None:
    def swap(state: dict[str, torch.Tensor]) -> None:
        for end in ("weight", "bias"):
            q, k = (f"transformer_blocks.2.attn1.to_{part}.{end}" for part in "qk")
            state[q], state[k] = state[k], state[q]

    report = compared(spoilt(pair, tmp_path / "out", swap), exact_timesteps=amended)
    assert report.verdict == "FAIL"
    assert (
        "transformer_blocks.2.attn1.to_q.weight holds what belongs in transformer_blocks.2.attn1.to_k" in report.reason
    )
    assert list(faulty(report)) == [*([] if amended else ["timestep embedding"]), "block 2"]
    assert faulty(report)["block 2"][:2] == ["attn1 q", "attn1 k"]
    function = phase(report, "function")
    assert any("block 2 is right again with attn1.to_q and attn1.to_k swapped" in note for note in function.notes)
    assert any("but that is not all" in note for note in function.notes) == (not amended)
    assert (EXACT_LINE in function.words) == amended


def test_the_stock_default_of_the_norms(pair: Pair, tmp_path: Path) -> None:
    """As the published conversion has it, whose config leaves it out."""
    report = compared(spoilt(pair, tmp_path / "out", lambda state: None, norm_eps=None), **EXACT)
    assert [phase(report, name).verdict for name in ("weights", "config", "function")] == ["PASS", "FAIL", "FAIL"]
    assert "norm_eps is 1e-05, and has to be 1e-06" in phase(report, "config").words
    assert list(faulty(report)) == ["block 0", "block 1", "block 2"]


def test_the_class_is_found_under_its_old_name_too(pair: Pair, tmp_path: Path) -> None:
    report = compared(spoilt(pair, tmp_path / "out", lambda state: None, _class_name="Transformer2DModel"), **EXACT)
    assert report.verdict == "PASS", report.reason


def test_without_heads_they_are_taken_from_the_converted_config_and_said_to_be(pair: Pair, tmp_path: Path) -> None:
    bare = spoilt(pair, tmp_path / "out", lambda state: None)
    report = check(bare.original, bare.folder, **stated(**EXACT))
    assert report.verdict == "PASS"
    assert "num_attention_heads" in {item["name"] for item in report.assumed}
    with pytest.raises(UsageError, match="`exact_timesteps` 'yes': not bool but str"):
        compared(pair, exact_timesteps="yes")


# Saved inputs.


def test_failing_cases_are_saved_and_run_again(pair: Pair, tmp_path: Path) -> None:
    report = compared(pair, save_failing=tmp_path / "saved")
    (path,) = (tmp_path / "saved").iterdir()
    held = load_file(path)
    assert held["t999-t321.class_label"].tolist() == [3, 10, 10, 3]
    assert held["t999-t321.class_label"].dtype == torch.int64
    again = compared(pair, cases=path)
    one, other = (phase(made, "function").detail["cases"] for made in (report, again))
    assert one[0]["sha256"] == other[0]["sha256"]
    for key, value, says in (
        ("t999-t321.class_label", held["t999-t321.class_label"] * 0 + 11, "the original net does not take it"),
        ("t999-t321.class_label", held["t999-t321.class_label"].float(), "is no input of this model"),
        ("t999-t321.latent", held["t999-t321.latent"].long(), "is no input of this model"),
    ):
        save_file(held | {key: value}, tmp_path / "wrong.safetensors")
        with pytest.raises(InputError, match=says):
            compared(pair, cases=tmp_path / "wrong.safetensors")


# The nets.


def test_it_is_what_the_family_brings() -> None:
    assert spec_of(DIT) is PARITY
    assert FIX
    assert (FIX.flag, FIX.line, FIX.why) == ("exact_timesteps", EXACT_LINE, AMENDED.why(FOUND))
    assert (AS_LOADED.fix(FOUND, {}), PARITY.fix(FOUND, {"_class_name": AMENDED.exact})) == (None, None)


def test_the_shape_is_what_the_file_shows() -> None:
    made = shape(FOUND)
    assert (made.depth, made.hidden_size, made.num_heads, made.patch_size) == (3, 48, HEADS, 2)
    assert (made.out_channels, made.input_size, made.multi_scale, made.scale) == (8, 16, False, 1)


def test_the_reference_is_the_original_net_on_its_own_size_and_runs_on_others(large: Pair) -> None:
    found = findings(large.original)
    state = torch.load(large.original, weights_only=True)
    made = {case.name: case for case in cases(found, "standard", {})}
    spoilt = state | {"pos_embed": state["pos_embed"] + 1}
    for name, own in (("native", True), ("t999-t321", False)):
        inputs = made[name].tensors(torch.float64)
        one, other = (
            brought.reference(found, Weights(held, torch.float64)).forward(inputs) for held in (state, spoilt)
        )
        assert torch.equal(one, other) != own
        if own:
            assert torch.equal(one, whole(Weights(state, torch.float64), shape(found)).forward(inputs))
    ((stage, case),) = PARITY.stages(found)
    assert (stage, case.arrays["latent"].shape) == ("patch embedding", (1, 4, 24, 24))


def streamed(dtype: torch.dtype = torch.float32, state: Any = CONVERTED, **config: Any) -> Any:
    return FIXED.converted(DIT.config(FOUND) | config, Weights(memory_tensors(state), dtype))


def test_the_line_of_the_note_is_what_is_done_to_the_model() -> None:
    from diffusers import DiTTransformer2DModel

    config = {key: value for key, value in DIT.config(FOUND).items() if not key.startswith("_")}
    inputs = cases(FOUND, "quick", {})[0].tensors(torch.float32)
    outputs = []
    for line in (EXACT_LINE, ""):
        model = DiTTransformer2DModel(**config).eval()
        model.load_state_dict(CONVERTED)
        exec(line, {"model": model})
        with torch.no_grad():
            outputs.append(STOCK.call(model, inputs))
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-2)
    net = FIXED.converted(config | {"_class_name": AMENDED.stock}, Weights(memory_tensors(CONVERTED), torch.float32))
    assert torch.equal(net.forward(inputs), outputs[0])
    assert torch.equal(streamed().forward(inputs), outputs[0])


def test_the_loader_of_the_checker_is_that_of_the_library(pair: Pair, exact: Pair) -> None:
    inputs = cases(FOUND, "quick", {})[0].tensors(torch.float32)
    for model, folder in ((AS_LOADED, pair.model), (FIXED, pair.model), (AS_LOADED, exact.model)):
        assert model.loaded
        config = read_json(folder / "config.json")
        ours = model.converted(config, Weights(memory_tensors(CONVERTED), torch.float32)).forward(inputs)
        assert torch.equal(model.loaded(folder, inputs), ours)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_stage_by_stage_is_the_forward(dtype: torch.dtype) -> None:
    net = streamed(dtype)
    for case in cases(FOUND, "standard", {})[:4]:
        inputs = case.tensors(dtype)
        seen: dict[str, Values] = {}
        wanted = net.forward(inputs, lambda stage, made, seen=seen: seen.update({stage: made}))
        values = dict(inputs)
        with torch.inference_mode():
            for stage in net.stages:
                made = stage.run(values, no_probe)
                assert seen[stage.name].keys() <= made.keys()
                assert all(torch.equal(made[key], value) for key, value in seen[stage.name].items()), stage.name
                values |= made
        assert torch.equal(values["output"], wanted)
        assert list(seen) == [stage.name for stage in net.stages]


def test_both_nets_have_the_same_stages_values_and_probes() -> None:
    ours = brought.reference(FOUND, Weights(STATE, torch.float64))
    net, told = streamed(torch.float64), set[str]()
    values: Values = cases(FOUND, "quick", {})[0].tensors(torch.float64)
    with torch.inference_mode():
        for one, other in zip(ours.stages, net.stages, strict=True):
            assert one.name == other.name
            truth: dict[str, torch.Tensor] = {}
            heard: dict[str, torch.Tensor] = {}
            made, theirs = one.run(values, truth.__setitem__), other.run(values, heard.__setitem__)
            assert {key: value.shape for key, value in made.items()} == {k: v.shape for k, v in theirs.items()}
            assert sorted(truth) == sorted(heard)
            for name in truth:
                apart = (heard[name] - truth[name]).norm() / truth[name].norm()
                assert float(apart) < 1e-12, f"{one.name}: {name}"
            told |= truth.keys() if one.name.startswith("block") else set()
            values |= made
    assert told == set(STOCK.probes)


def there(net: Any) -> set[str]:
    return {name for name, parameter in net.model.named_parameters() if parameter.device.type != "meta"}


def test_only_the_part_that_runs_is_there() -> None:
    net = streamed()
    assert there(net) == set()
    seen: dict[str, set[str]] = {}
    for i, block in enumerate(net.model.transformer_blocks):
        for part in PARTS:

            def note(*_: Any, name: str = f"transformer_blocks.{i}.{part}") -> None:
                seen[name] = {key.removeprefix(f"{name}.") for key in there(net)}

            block.get_submodule(part).register_forward_pre_hook(note)
    net.forward(cases(FOUND, "quick", {})[0].tensors(torch.float32))
    assert there(net) == set()
    assert len(seen) == 3 * len(PARTS)
    for name, keys in seen.items():
        assert keys == {key.removeprefix(f"{name}.") for key in CONVERTED if key.startswith(f"{name}.")}


def test_a_block_that_raises_gets_its_own_embedders_back() -> None:
    net = streamed()
    own = net.model.transformer_blocks[0].norm1.emb
    values = cases(FOUND, "quick", {})[0].tensors(torch.float32)
    for stage in net.stages[:3]:
        values |= stage.run(values, no_probe)
    with pytest.raises(RuntimeError):
        net.stages[3].run(values | {"x": values["x"][:, :, :5]}, no_probe)
    assert net.model.transformer_blocks[0].norm1.emb is own
    assert there(net) == set()
    assert net.forward(values).shape == (4, 8, 4, 4)


@pytest.mark.parametrize("field", ["num_layers", "out_channels", "norm_eps", "num_embeds_ada_norm", "sample_size"])
def test_defaults_are_those_of_the_class(field: str) -> None:
    from diffusers import DiTTransformer2DModel

    config = {key: value for key, value in DIT.config(FOUND).items() if key != field}
    with torch.device("meta"):
        model = DiTTransformer2DModel.from_config(config)
    made = STOCK.resolve_config(config)
    assert made["out_channels"] == model.out_channels
    for name in set(made) - {"out_channels"}:
        assert name.startswith("_") or made[name] == model.config[name]


# Inputs.


@pytest.mark.parametrize("profile", ["quick", "standard", "full"])
def test_cases_are_well_formed(profile: str, large: Pair) -> None:
    for found in (FOUND, findings(large.original)):
        rows, side = found.value("num_classes") + 1, found.value("sample_size")
        made = cases(found, profile, {})
        assert len({case.name for case in made}) == len(made)
        for case in made:
            latent, timestep, label = (case.arrays[name] for name in ("latent", "timestep", "class_label"))
            assert set(case.arrays) == {"latent", "timestep", "class_label"}
            assert len(latent) == len(timestep) == len(label) >= 2
            assert (latent.dtype, timestep.dtype, label.dtype) == (np.float32, np.int64, np.int64)
            assert latent.shape[2] == latent.shape[3] <= side  # the original takes squares only
            assert ((label >= 0) & (label < rows)).all()
            assert all(not np.array_equal(one, other) for one, other in pairwise(latent))
            assert case.axes
        timesteps = {int(t) for case in made for t in case.arrays["timestep"]}
        assert {999, 321} <= timesteps
        if profile != "quick":
            assert {0, 1, 20, 500, 998} <= timesteps
            assert {0, rows - 1} <= {int(n) for case in made for n in case.arrays["class_label"]}
            assert side // 2 in {case.arrays["latent"].shape[2] // 2 for case in made}


def test_guidance_begins_with_no_class() -> None:
    (case,) = [case for case in cases(FOUND, "standard", {}) if case.name == GUIDED]
    assert case.arrays["class_label"].tolist() == [10, 3]


def test_whole_numbers_are_never_rounded() -> None:
    case = Case("x", {"class_label": np.array([999, 257]), "latent": np.ones((2, 1), np.float32)})
    made = case.tensors(torch.bfloat16)
    assert made["class_label"].tolist() == [999, 257]
    assert made["latent"].dtype == torch.bfloat16


def test_a_single_class_is_no_fault(tmp_path: Path) -> None:
    """One row is the class of everything: there is nothing to mix up, and no fault that would survive."""
    path = save(dit(class_rows=1), tmp_path / "a.pt")
    convert(path, tmp_path / "out", **stated(num_attention_heads=HEADS, **EXACT))
    report = check(path, tmp_path / "out", self_test="full")
    assert report.verdict == "PASS", report.reason


# Faults.


def test_what_is_feared_is_among_the_faults(pair: Pair) -> None:
    with session(pair, **EXACT) as opened:
        plan = opened.sides.plan
        made = catalogue(plan, PARITY) + list(faults(FOUND, opened.config, plan))
    names = {fault.name: fault for fault in made}
    assert len(names) == len(made) > 100
    wanted = {
        "attn1.to_q and attn1.to_k swapped in all blocks": {WEIGHTS, FUNCTION},
        "bias of attn1.to_k of block 2 dropped": {WEIGHTS},
        "rows 0 and 3 of 6 of norm1.linear of block 2 swapped": {WEIGHTS, FUNCTION},
        "rows 0 and 1 of 2 of proj_out_1 of the model swapped": {WEIGHTS, FUNCTION},
        "norm1.emb.timestep_embedder.linear_2 of the model transposed": {WEIGHTS, FUNCTION},
        f"weight scaled by 1 % in one of 3 copies: {COPY.replace('1', '2', 1)}": {WEIGHTS, FUNCTION},
        f"weight off by a last bit in one of 3 copies: {COPY.replace('1', '2', 1)}": {WEIGHTS},
        "norm1.emb.class_embedder.embedding_table.weight of the model scaled by 1 %": {WEIGHTS, FUNCTION},
        "sines before cosines of the timestep": {WEIGHTS, FUNCTION},
        "eps 1e-5 for 1e-6": {CONFIG, FUNCTION},
        "a class more": {CONFIG, FUNCTION},
        "num_embeds_ada_norm missing from the config": {CONFIG},
        "classes off by one": {FUNCTION},
        "last layer not told of the class": {FUNCTION},
        "positional table transposed": {FUNCTION},
        "output rows with the channel before the patch position": {WEIGHTS, FUNCTION},
    }
    assert {name: set(names[name].expected) for name in wanted} == wanted
    # What is done to all copies is done alike, so that only the whole is wrong.
    whole_fault = names["norm1.emb.timestep_embedder.linear_1 of the model scaled by 1 %"]
    (pattern,) = fold(whole_fault.weights)
    assert pattern == "transformer_blocks.{0..2}.norm1.emb.timestep_embedder.linear_1.weight"


def test_fields_that_change_no_output_are_no_faults(pair: Pair) -> None:
    inputs = cases(FOUND, "quick", {})[0].tensors(torch.float32)
    right = streamed().forward(inputs)
    for field, value in (("dropout", 0.5), ("norm_num_groups", 8), ("upcast_attention", True)):
        assert torch.equal(streamed(**{field: value}).forward(inputs), right), field


def test_the_session_compares_the_net_that_the_user_names(pair: Pair) -> None:
    for said in ({}, EXACT):
        with session(pair, **said) as opened:
            assert opened.fixed == bool(said)
            assert (opened.model is opened.as_loaded) == (not said)


def copies(state: Mapping[str, Any]) -> int:
    return sum("norm1.emb" in key for key in state)


def test_the_golden_file_has_copies_in_every_block() -> None:
    assert copies(CONVERTED) == 3 * 5
