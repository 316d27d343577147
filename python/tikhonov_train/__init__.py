"""tikhonov in notebooks: trains by the `tikhonov` program, reads what it wrote. Holds no training code of its own.

    from tikhonov_train import Run, train
    run = train("quickstart", output="runs/first", **{"penalty.l2": 1e-3})
    run.metrics, run.result, run.plot("loss"), run.model()
"""

__all__ = ["Plot", "Run", "TikhonovError", "call", "train"]


def __getattr__(name):
    # At the first use: the command `tikhonov` imports this file too, and has no time for the rest.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    from . import notebook

    return getattr(notebook, name)


def __dir__():
    return __all__
