"""Decides which configurations fit a budget and which to try first.

    api.py            plan(...) and estimate(...): what the commands call, as functions of plain values
    question.py       plain values understood: space, budget, card, workload
    budget.py, workload.py, datasets.py, units.py
                      what a card leaves for a plan; what the data say; sizes as people write them
    search/           candidates, prices, order, growth
    plan/             the plan as a document and as a file
    estimates.py      the estimate of one configuration
    advice.py         ways out where nothing fits, each one priced
    confirm.py        a choice tried under a hard cap
    step_time*.py, calibration.py, several_gpus.py
                      times, what a profile corrects, several GPUs on paper
    train_configuration.py, pricing.py, smaller_run.py
                      what `train` runs, priced on the device that is here, and a smaller run for a CPU
    analysis/         run tables, importance of knobs, quality
    cli/              the command line

Nothing here imports torch at module level; a verb that needs it imports it when it runs.
"""
