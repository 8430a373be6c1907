"""Linear SVMs as people fit them with scikit-learn alone."""

from pathlib import Path

import joblib
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from training.bench.plain import rows_of
from training.bench.work import SVM
from training.transfer.job import Task


def score_layer(folder: Path, layer: str, task: Task, cores: int) -> float:
    """Choose the cost, fit and test on a layer; mean accuracy of the classes, percent.

    Loss, costs, folds and scaling are those of the job svm. Folds are fitted in threads: liblinear
    runs without Python's lock.

    Args:
        folder: With features of both sides, as `keep_features` writes them.
        layer: Its name.
        task: Classes of the rows.
        cores: Threads.
    """
    train, test = rows_of(folder, layer)
    scaler = StandardScaler().fit(train)
    search = GridSearchCV(
        LinearSVC(loss="squared_hinge", dual="auto"),
        {"C": SVM.costs_for(multi_label=False)},
        cv=StratifiedKFold(SVM.folds, shuffle=True, random_state=0),
        scoring="balanced_accuracy",
    )
    with joblib.parallel_config("threading", n_jobs=cores):
        search.fit(scaler.transform(train), task.train.targets)
    return 100 * float(search.score(scaler.transform(test), task.test.targets))
