#!/usr/bin/env python3
"""Clusters the digits with scikit-learn, for comparison with `praas demo`.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install scikit-learn
    /tmp/venv/bin/python examples/kmeans/recompute.py

Prints one JSON object for the table beside this script, and fails if the inertia is not the one
that the demo is held to, or if scikit-learn's own copy of the table is another.
"""

import json
import pathlib
import sys

import numpy
import sklearn
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

INERTIA = 1167859.3840065985

table = pathlib.Path(__file__).parent / "data" / "digits.csv.gz"
points = numpy.loadtxt(table, delimiter=",")[:, :64]
model = KMeans(n_clusters=10, init=points[:10], n_init=1, algorithm="lloyd", tol=0).fit(points)
print(
    json.dumps(
        {
            "inertia": float(model.inertia_),
            "iterations": int(model.n_iter_),
            "sizes": numpy.bincount(model.labels_, minlength=10).tolist(),
            "scikit-learn": sklearn.__version__,
        }
    )
)
if not numpy.array_equal(points, load_digits().data):
    sys.exit("scikit-learn's digits are not those beside this script")
if abs(model.inertia_ / INERTIA - 1) > 1e-9:
    sys.exit(f"expected an inertia of {INERTIA}")
