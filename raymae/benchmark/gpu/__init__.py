"""The training step on a GPU: `python -m raymae.benchmark.gpu` needs no Ray, MLflow, tyro, pandas or audio libraries.

Every figure is written to the JSON file as soon as it is measured, and a later call measures what is missing. Figures
that need a GPU (compiled steps, kernels, peak memory) are absent on CPUs, which run the others at tiny sizes.
"""
