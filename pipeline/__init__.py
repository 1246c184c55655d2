"""The machine: recipes, stages, artifacts, the runner and its edges.

Importing anything here imports neither torch, trl, vllm nor prefect (`tests/test_shape.py` holds that), so
`make plan` answers at once. Import order, lowest first:

    errors <- refs <- artifact <- card <- stage <- stages/* <- recipe <- runner <- (flow, report) <- cli
"""
