"""The machine: recipes, stages, artifacts, the runner and its edges.

Importing anything here imports neither torch, trl, vllm nor prefect, so `make plan` answers at once. Modules import
only those that stand before them in the order of `tests/test_shape.py`, which holds both.
"""
