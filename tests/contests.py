"""Contests for the tests of benchmarks.bench, where a new process finds them without delay."""

import os

from benchmarks.harness import Contest, Side


def builds(settings, folder):
    stock, ours = (lambda n=n: float(sum(range(n))) for n in (10**6, 10**5))
    return Contest({"stock": Side(stock), "ours": Side(ours, flop=1e6)})


def breaks(settings, folder):
    raise ValueError("no such thing\nin two lines")


def dies(settings, folder):
    os._exit(9)
