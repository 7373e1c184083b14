"""The planner as two functions of plain values: what `srsplan recommend` and `srsplan estimate` call.

    plan(catalog="1.6M", budget="40GB").choices[0]
    estimate(loss="cce", catalog=1_600_000, batch_size=512, seq_len=200, gpu="a100-40gb").fits

Neither writes a file or needs a GPU. Sizes are numbers, or text as people write it ("40GB", "300K").
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from srsplan.kernels.losses import Kernel, Sampler
from srsplan.models.checks import find_loss, find_model
from srsplan.models.config import Architecture, Configuration, Precision
from srsplan.models.kinds import DEFAULT_MODEL
from srsplan.models.units import format_gib, parse_bytes
from srsplan.planner import advice, commands, question, words
from srsplan.planner import step_time as timing
from srsplan.planner.budget import DEFAULT_MARGIN, Budget, assumed_gpu, make_budget
from srsplan.planner.estimates import Estimate
from srsplan.planner.passes import in_one_pass, with_pass, with_whole_pass
from srsplan.planner.question import DataFile, Question, Size
from srsplan.planner.search.prices import Prices
from srsplan.planner.search.recommendation import Recommendation
from srsplan.planner.search.recommending import recommend
from srsplan.planner.search.space import Space
from srsplan.planner.time_limit import EPOCHS, check_users, time_limit
from srsplan.profiler.probes.catalogue import Gpu
from srsplan.profiler.probes.detect import resolve_gpu

if TYPE_CHECKING:
    from srsplan.planner.plan.document import Plan

Location = str | os.PathLike[str]

REFERENCE_GPU = "h200"
"""The card that step times are for where none is named: the one they were measured on."""


def plan(
    *,
    catalog: Size | None = None,
    budget: Size | None = None,
    gpu: str | None = None,
    data: Location | None = None,
    mean_length: float | None = None,
    users: Size | None = None,
    model: str = DEFAULT_MODEL,
    mask_share: float | None = None,
    dim: int = 256,
    blocks: int = 2,
    heads: int = 2,
    precision: str = "fp16",
    sampler: str = "uniform",
    recompute: bool | None = None,
    ema: float | None = None,
    kernel: str = "chunked",
    gpus: int = 1,
    losses: Sequence[str] | None = None,
    every_loss: bool = True,
    margin: float = DEFAULT_MARGIN,
    max_batch_size: int | None = None,
    epoch_time: Size | float | None = None,
    total_time: Size | float | None = None,
    epochs: int = EPOCHS,
    user_column: str | None = None,
    item_column: str | None = None,
    timestamp_column: str | None = None,
    split: str = "auto",
    runs: Location | None = None,
    profile: Location | None = None,
    check: bool = False,
) -> Plan:
    """Return the configurations that fit a budget, in the order to try them, as a plan that `train` reads.

    One of `catalog` (number of items) and `data` (a file of interactions) must be given, and one of `budget` (bytes)
    and `gpu` (a name of `srsplan gpus`). `mean_length` (interactions per user) and `users` say what is known of the
    data without a file. `model` is a name of models.kinds, `mask_share` the share of items that a masked one
    learns to fill in. `dim`, `blocks`, `heads` and `precision` (fp32, fp16, bf16) are the model's; `recompute` keeps
    no activations of blocks, None leaves it to the search; `ema` is the decay of a moving average of the weights, which
    takes one more copy of them, None keeps none. `losses` limits the search, and without `every_loss`
    only the preferred one of them has choices; `sampler` (uniform, popularity,
    in-batch) is that of the losses that have it, `kernel` (chunked, triton) the implementation of chunked losses.
    Batches end at `max_batch_size` sequences, without it where published evidence does. `epoch_time` and `total_time`
    (seconds, or "30min") are a second budget, the latter for so many `epochs`; both need the number of users. `margin`
    is the share of the budget to keep free. `runs` is a run table that re-orders, `profile` a file of probes that
    corrects the predictions, `check` tries the first choice. With `gpus` the plan says what each of several needs.

    Raises InputError for a wrong value, NothingFits where no configuration fits.
    """
    file = None
    if data is not None:
        file = DataFile(
            path=Path(data), user_column=user_column, item_column=item_column, timestamp_column=timestamp_column,
            split=split,
        )  # fmt: skip
    architecture = Architecture(dim=dim, blocks=blocks, heads=heads)
    fit = question.fit_of(None if profile is None else Path(profile))
    card, limit = question.card_and_budget(gpu, budget, margin)
    if fit.context_bytes is not None:
        limit = replace(limit, context_bytes=fit.context_bytes, context_basis="measured")
    items, workload, data_notes = question.known_data(
        file, catalog, mean_length, users, masked=find_model(model).masked
    )
    time = time_limit(epoch_time, total_time, epochs)
    check_users(time, workload.users)
    space = Space(
        catalog=items,
        losses=question.losses_of(losses),
        architecture=architecture,
        precision=cast(Precision, precision),
        workload=workload,
        recompute=recompute,
        model=model,
        mask_share=mask_share,
        sampler=cast(Sampler, sampler),
        kernel=cast(Kernel, kernel),
        max_batch_size=max_batch_size,
        ema=ema,
    )
    order, trust = question.order_of(None if runs is None else Path(runs), items)
    asked = Question(
        space=space,
        budget=limit,
        gpu=card,
        gpu_is_given=gpu is not None,
        prices=Prices(workload, limit, card, fit.model, fit.rates, time=time, may_recompute=recompute is None),
        step_basis=fit.step_basis,
        order=order,
        trust=trust,
        data=file,
        gpus=gpus,
        every_loss=every_loss,
        notes={**({"data": "\n".join(data_notes)} if data_notes else {}), **_profile_note(fit.sentence)},
    )
    return _answer(asked, check)


def _profile_note(sentence: str) -> dict[str, str]:
    return {"profile": sentence} if sentence else {}


def _answer(asked: Question, check: bool) -> Plan:
    advice.check_floor(asked)
    found = recommend(asked.space, asked.prices, asked.order, every_loss=asked.every_loss)
    notes = dict(asked.notes)
    if check and found.choices:
        found, notes["checked"] = _checked(found, asked)
    if not found.choices:
        raise advice.nothing_fits(found, asked)
    return _plan_of(found, asked, notes)


def _checked(found: Recommendation, asked: Question) -> tuple[Recommendation, str]:
    """Try the first choice; return the recommendation that remains, and what was tried, in sentences."""
    from srsplan.planner.confirm import confirm_first

    found, said = confirm_first(found, asked.budget, asked.gpu)
    if found.choices and found.choices[0].confirmed is not None:
        confirmed = found.choices[0].confirmed
        said.append(f"#1 runs within {format_gib(confirmed.reserved_bytes)} reserved ({confirmed.basis})")
    return found, "\n".join(said)


def _plan_of(found: Recommendation, asked: Question, notes: dict[str, str]) -> Plan:
    from srsplan.planner.plan import DEFAULT_PATH
    from srsplan.planner.plan.document import Inputs
    from srsplan.planner.plan.making import make_plan

    space = asked.space
    inputs = Inputs(
        catalog=space.catalog,
        gpu=asked.gpu.name,
        gpu_title=asked.gpu.title,
        gpu_is_given=asked.gpu_is_given,
        model=space.model,
        mask_share=found.choices[0].configuration.mask_share,
        dim=space.architecture.dim,
        blocks=space.architecture.blocks,
        heads=space.architecture.heads,
        precision=space.precision,
        ema=space.ema,
        data=None if asked.data is None else str(asked.data.path),
        data_options=[] if asked.data is None else asked.data.options(),
        users=space.workload.users,
        lengths=space.workload.basis,
        time="" if asked.prices.time is None else asked.prices.time.describe(),
        order=asked.order.rule + (f". {asked.trust}" if asked.trust else ""),
        quality=advice.quality_note(found.choices, asked.trust),
        notes=notes,
    )
    made = make_plan(
        inputs,
        asked.budget,
        found,
        step_basis=asked.step_basis,
        binds=words.what_binds(found, space, asked.prices.time),
        next_command="",
        several=asked.prices.on_several(found.choices[0], asked.gpus),
    )
    return made.model_copy(update={"next_command": commands.train_from_plan(made, DEFAULT_PATH)})


def estimate(
    *,
    loss: str,
    catalog: Size,
    batch_size: int,
    seq_len: int,
    negatives: int | None = None,
    tokens_per_set: int | None = None,
    sampler: str = "uniform",
    model: str = DEFAULT_MODEL,
    mask_share: float | None = None,
    dim: int = 256,
    blocks: int = 2,
    heads: int = 2,
    precision: str = "fp16",
    pass_tokens: int | None = None,
    recompute: bool = False,
    ema: float | None = None,
    kernel: str = "chunked",
    gpus: int = 1,
    mean_length: float | None = None,
    gpu: str | None = None,
    budget: Size | None = None,
) -> Estimate:
    """Return the memory and the step time of one configuration.

    `batch_size` counts sequences, `seq_len` positions, `negatives` the items of a set that `tokens_per_set` tokens
    share (sampled losses only). A batch runs in passes of `pass_tokens` tokens at most, without them in one. `gpu` is
    the card that times are for and whose capacity counts; `budget` (bytes) is what must be enough instead. Without
    either the estimate has no verdict. The rest is as for `plan`.

    Raises InputError for a wrong value.
    """
    kind = find_loss(loss)
    workload = question.workload_without_data(mean_length, None)
    configuration = Configuration(
        loss=loss,
        catalog=question.items_of(catalog),
        batch_size=batch_size,
        seq_len=seq_len,
        negatives=kind.usual_negatives if negatives is None else negatives,
        tokens_per_set=kind.default_tokens_per_set if tokens_per_set is None else tokens_per_set,
        sampler=cast(Sampler, sampler),
        model=model,
        mask_share=mask_share,
        architecture=Architecture(dim=dim, blocks=blocks, heads=heads),
        precision=cast(Precision, precision),
        pass_tokens=pass_tokens,
        kernel=cast(Kernel, kernel),
        recompute=recompute,
        ema=ema,
    )
    card, limit = _card(gpu, budget)
    prices = Prices(workload, limit or make_budget(None, card), card, question.assumed_model())
    whole = with_whole_pass(configuration, workload)
    if pass_tokens is not None and pass_tokens < whole.tokens:
        configuration = with_pass(configuration, pass_tokens, workload)
    else:
        configuration = in_one_pass(whole, prices)
    choice = prices.choice(configuration)
    return Estimate(choice=choice, prices=prices, budget=limit, gpus=gpus, step_basis=timing.BASIS)


def _card(gpu: str | None, budget: Size | None) -> tuple[Gpu, Budget | None]:
    """Return the card for times, and a budget where one was asked for."""
    if budget is None:
        card = resolve_gpu(gpu or REFERENCE_GPU)
        return card, None if gpu is None else make_budget(None, card)
    total = parse_bytes(str(budget), "--budget")
    card = resolve_gpu(gpu) if gpu is not None else assumed_gpu(total)
    return card, make_budget(total, card)
