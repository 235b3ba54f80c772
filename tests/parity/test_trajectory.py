"""Sampler steps: the update rule against diffusers' own, right nets at the noise floor, wrong ones noticed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from opened import Pair, State, golden, session
from torch import Tensor

from converter.nets import Stage, Staged, Values
from converter.nets.inputs import Case, noise
from converter.nets.sampler import Sampler
from converter.parity import trajectory
from converter.parity.trajectory import DIVERGED
from converter.reports.report import FAIL, INCONCLUSIVE, NOT_RUN, PASS, Phase

SAMPLER = Sampler("guidance")
CASE = Case("guidance", {"latent": noise(1, 2, 4, 8, 6), "timestep": np.float32([999, 321]), "text": noise(2, 2, 1)})


def net(function: Callable[[Values], Tensor]) -> Staged:
    return Staged([Stage("all", lambda values, probe: {"output": function(values)})])


def guess(values: Values) -> Tensor:
    """Something of the latent, the timestep and the text; more channels than are sampled."""
    bent = torch.tanh(values["latent"] * (1 + values["timestep"][:, None, None, None] / 1000))
    return torch.cat([bent + 0.1 * values["text"][:, :, None, None], values["latent"]], dim=1)


def path(of: Staged, dtype: torch.dtype = torch.float64, case: Case = CASE) -> list[tuple[int, Tensor]]:
    return list(SAMPLER.sample(of, case, 4, dtype=dtype))


# The update rule.


def test_the_schedule_is_that_of_diffusers() -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    assert np.allclose(SAMPLER.alphas, scheduler.alphas_cumprod.numpy(), rtol=1e-5)
    scheduler.set_timesteps(4)
    assert [t + 249 for t in scheduler.timesteps.tolist()] == list(SAMPLER.timesteps)


def test_the_steps_are_those_of_diffusers() -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False, set_alpha_to_one=True
    )
    scheduler.set_timesteps(4)
    # Its betas are float32, which would be all the difference.
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    made = path(net(guess))
    assert [timestep for timestep, _ in made] == list(SAMPLER.timesteps) == [999, 749, 499, 249]
    text, x = torch.from_numpy(CASE.arrays["text"]).double(), torch.from_numpy(CASE.arrays["latent"]).double()[1:2]
    for timestep, ours in made:
        both = {"latent": torch.cat([x, x]), "timestep": torch.full((2,), float(timestep)).double(), "text": text}
        null, conditioned = guess(both)[:, :4].chunk(2)
        epsilon = null + SAMPLER.guidance * (conditioned - null)
        x = scheduler.step(epsilon, timestep, x).prev_sample
        assert float((ours - x).norm() / x.norm()) < 1e-12, timestep


def test_the_last_step_is_the_guess_of_the_clean_image() -> None:
    """Where the net knows the noise exactly, what is left is the image."""
    image, drawn = (torch.from_numpy(noise(seed, 1, 4, 8, 6)).double() for seed in (5, 6))
    alphas = SAMPLER.alphas
    start = alphas[999] ** 0.5 * image + (1 - alphas[999]) ** 0.5 * drawn
    case = Case("a", {"latent": torch.cat([drawn, start]).numpy(), "timestep": np.float32([0, 0])})
    *_, (_, last) = path(net(lambda values: drawn.expand(2, -1, -1, -1)), case=case)
    assert float((last - image).norm() / image.norm()) < 1e-6  # the case is float64 here, and cast exactly


def test_the_null_branch_comes_first_and_keeps_its_own_inputs() -> None:
    heard: list[Values] = []

    def listens(values: Values) -> Tensor:
        heard.append(values)
        return torch.zeros(2, 8, 8, 6, dtype=values["latent"].dtype)

    path(net(listens))
    assert len(heard) == 4
    for step, values in zip(SAMPLER.timesteps, heard, strict=True):
        assert torch.equal(values["latent"][0], values["latent"][1])  # both branches from the same latents
        assert values["timestep"].tolist() == [step, step]
        assert torch.equal(values["text"], torch.from_numpy(CASE.arrays["text"]).double())


def test_guidance() -> None:
    """null + 4.5 * (text - null): another order of the branches is another picture."""
    made = path(net(guess))
    swapped = Case("b", dict(CASE.arrays) | {"text": CASE.arrays["text"][::-1].copy()})
    other = path(net(guess), case=swapped)
    assert not torch.allclose(made[0][1], other[0][1])


# Both nets.


def run(converted: Callable[[Values], Tensor], original: Callable[[Values], Tensor] = guess) -> Phase:
    return trajectory.run(lambda precision: net(original), lambda precision: net(converted), CASE, 4, sampler=SAMPLER)


def test_the_same_net() -> None:
    made = run(guess)
    assert made.verdict == PASS
    steps = made.detail["steps"]
    assert [row["timestep"] for row in steps] == list(SAMPLER.timesteps)
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert all(row["error"] == row["floor"] > 0 for row in steps)
    assert made.words.startswith("after 4 steps the latents are ")
    assert "1.00 times the noise floor" in made.words
    assert made.detail["sampler"] == "DDIM, guidance 4.5"


def test_a_wrong_net_is_noticed_and_stopped() -> None:
    calls: list[int] = []

    def wrong(values: Values) -> Tensor:
        calls.append(1)
        return guess(values) * 1.5

    made = run(wrong)
    assert made.verdict == FAIL
    assert made.words.startswith("they diverge at step 1 (timestep 999): ")
    assert len(calls) == len(made.detail["steps"]) == 1


def test_a_wrong_net_is_noticed_where_it_becomes_wrong() -> None:
    made = run(lambda values: guess(values) * (1.5 if values["timestep"][0] < 600 else 1))
    assert made.verdict == FAIL
    assert [row["timestep"] for row in made.detail["steps"]] == [999, 749, 499]
    assert made.words.startswith("they diverge at step 3 (timestep 499)")
    assert made.detail["steps"][-1]["error"] > DIVERGED
    made = run(lambda values: guess(values) * (50 if values["timestep"][0] < 300 else 1))
    assert (made.verdict, len(made.detail["steps"])) == (FAIL, 4)  # at the very last, and not lost


def test_a_walk_may_go_on_to_the_end_of_both_paths() -> None:
    def path(*errors: float) -> Callable[[str], trajectory.Path]:
        """Along latents of 1, with these errors in float32."""
        right = torch.ones(1, 4, 8, 8, dtype=torch.float64)
        return lambda kind: [(999.5 - i, right * (1 + (kind == "float32") * e)) for i, e in enumerate(errors)]

    words = {"name": "images", "sampler": "three steps"}
    made = trajectory.walk(path(0, 1e-6, 1e-5), path(0, 0.5, 0.1), **words, to_the_end=True)
    assert (made.name, made.verdict) == ("images", FAIL)
    assert made.words == "they diverge at step 2 (timestep 998.5): 0.5 of the latents"
    assert [round(step["error"], 6) for step in made.detail["steps"]] == [0, 0.5, 0.1]
    assert len(trajectory.walk(path(0, 0, 0), path(0, 0.5, 0.1), **words).detail["steps"]) == 2
    made = trajectory.walk(path(0, 0.1, 0.2), path(0, 1e-3, 0.5), **words, to_the_end=True)
    assert (made.verdict, len(made.detail["steps"])) == (INCONCLUSIVE, 3), "the floor was left first"
    assert trajectory.walk(path(0, 0, 0.2), path(0, 0.5, 0.5), **words, to_the_end=True).verdict == FAIL


def test_not_a_number_is_a_divergence() -> None:
    made = run(lambda values: guess(values) * float("nan"))
    assert (made.verdict, len(made.detail["steps"])) == (FAIL, 1)
    assert made.detail["steps"][0]["error"] == float("inf")


def test_an_error_that_stays_small_is_told_and_passes() -> None:
    """A report, not a gate: the function has been gated before."""
    made = run(lambda values: guess(values) * 1.00001)
    assert made.verdict == PASS
    assert made.words.endswith("times the noise floor (up to 3 is usual)")


def test_an_original_that_float32_cannot_follow_is_inconclusive() -> None:
    def coarse(values: Values) -> Tensor:
        return guess(values) * (1.5 if values["latent"].dtype == torch.float32 else 1)

    assert run(guess, coarse).verdict == INCONCLUSIVE


# The golden models.


@pytest.fixture(scope="module", params=["alpha-ms", "sigma-ms"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return golden(request.param, tmp_path_factory.mktemp("trajectory"))


def phase(pair: Pair, change: Callable[[State], None] | None = None, profile: str = "standard") -> Phase:
    with session(pair, change) as opened:
        cases = [case for case in opened.cases("standard") if case.name == opened.model.sampler.case]
        opened.function(cases, ("float64", "float32"))
        return opened.trajectory(profile, True)


def test_right_nets_stay_at_the_noise_floor(pair: Pair) -> None:
    made = phase(pair)
    assert made.verdict == PASS
    for row in made.detail["steps"]:
        assert row["error"] < 3 * row["floor"] < 1e-3
    assert "(of which" not in made.words


def test_wrong_nets_do_not(pair: Pair) -> None:
    def scaled(state: State) -> None:
        state["proj_out.weight"] *= 1.5

    made = phase(pair, scaled)
    assert made.verdict == FAIL
    assert len(made.detail["steps"]) < len(SAMPLER.timesteps)


def test_when_it_is_not_run(pair: Pair) -> None:
    assert phase(pair, profile="quick").verdict == NOT_RUN
    with session(pair) as opened:
        opened.function(opened.cases("quick"), ("float64",))
        assert opened.trajectory("standard", False).words == "an earlier phase has not passed"
        assert opened.trajectory("standard", True).words == "there is no case with an unconditioned sample"
