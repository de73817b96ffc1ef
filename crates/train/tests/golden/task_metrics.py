"""Writes task_metrics.json: what scikit-learn and scipy say of small lists, edge cases among them.

Needs scikit-learn and scipy; their versions are in the file. NaN is written as null.
"""

import json
import math
import pathlib
import random
import warnings

import scipy
import sklearn
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, mean_squared_error

warnings.simplefilter("ignore")
random.seed(7)

CLASSES = [
    (2, [0, 1, 1, 0, 1, 0, 0, 1], [0, 1, 0, 0, 1, 1, 0, 1]),
    (2, [1, 1, 1, 1], [0, 1, 0, 1]),
    (2, [0, 0, 0], [0, 0, 0]),
    (2, [1, 1, 1], [1, 1, 1]),
    (2, [0, 0, 0], [1, 1, 1]),
    (2, [0, 1], [1, 0]),
    (2, [1], [1]),
    (2, [random.randint(0, 1) for _ in range(60)], [random.randint(0, 1) for _ in range(60)]),
    (3, [0, 2, 1, 2, 0, 1], [0, 1, 1, 2, 0, 0]),
    (3, [0, 0, 0], [0, 1, 0]),
    (4, [3, 3, 3, 3], [3, 3, 3, 3]),
    (4, [0, 1, 2, 2, 1], [0, 2, 2, 2, 1]),
    (5, [random.randint(0, 4) for _ in range(80)], [random.randint(0, 4) for _ in range(80)]),
]

VALUES = [
    ([0.5, 1.25, -2.0, 3.0], [0.25, 1.0, -1.0, 2.5]),
    ([1.0, 2.0, 2.0, 3.0, 3.0, 3.0], [2.0, 1.0, 4.0, 4.0, 5.0, 0.0]),
    ([1.0, 1.0, 1.0], [0.0, 1.0, 2.0]),
    ([0.0, 1.0, 2.0], [4.0, 4.0, 4.0]),
    ([1.0, 2.0], [5.0, 3.0]),
    ([1.0, 2.0, 3.0], [10.0, 100.0, 1000.0]),
    ([math.nan, 1.0, 2.0], [0.0, 1.0, 2.0]),
    ([1e-150, 2e-150, 4e-150], [1.0, 2.0, 3.0]),
    ([1e150, -2e150, 4e150], [1.0, 2.0, 3.0]),
    ([random.gauss(0, 1) for _ in range(50)], [random.gauss(0, 1) for _ in range(50)]),
    ([round(random.gauss(0, 1), 1) for _ in range(70)], [round(random.gauss(0, 2)) for _ in range(70)]),
]


def number(value):
    return None if math.isnan(value) else float(value)


def main():
    classes = []
    for count, predictions, answers in CLASSES:
        average = dict(average="binary", pos_label=1) if count == 2 else dict(average="macro")
        classes.append(
            {
                "classes": count,
                "predictions": predictions,
                "answers": answers,
                "accuracy": accuracy_score(answers, predictions),
                "f1": f1_score(answers, predictions, zero_division=0, **average),
                "matthews": matthews_corrcoef(answers, predictions),
            }
        )
    values = []
    for predictions, answers in VALUES:
        has_nan = any(math.isnan(value) for value in predictions + answers)
        values.append(
            {
                "predictions": [number(value) for value in predictions],
                "answers": answers,
                "pearson": number(pearsonr(predictions, answers).statistic),
                "spearman": number(spearmanr(predictions, answers).statistic),
                "mse": None if has_nan else mean_squared_error(answers, predictions),
            }
        )
    golden = {"versions": {"scikit-learn": sklearn.__version__, "scipy": scipy.__version__}, "classes": classes, "values": values}
    path = pathlib.Path(__file__).with_name("task_metrics.json")
    path.write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
