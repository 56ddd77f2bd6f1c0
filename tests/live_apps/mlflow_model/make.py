"""A small model as MLflow saves it, into the folder that is the argument."""

import sys

import mlflow.sklearn
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

flowers, kinds = load_iris(return_X_y=True)
mlflow.sklearn.save_model(LogisticRegression(max_iter=1000).fit(flowers, kinds), sys.argv[1])
