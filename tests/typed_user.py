"""What a user of meidbench writes, for tests/check_types.py: mypy must see the types of the public names.

Each line that ignores a wrong type would be reported as needless if the name were Any.
"""

from typing import TYPE_CHECKING

import meidbench as mb

if TYPE_CHECKING:  # nothing runs
    split: mb.Split = mb.load_split("charadeslt")
    result: mb.Result = mb.evaluate([[0.5]], ["a"], split, subset="test")
    tail: float = result.mAP.tail
    page: str = mb.comparison_html(mb.compare({"bce": "bce.parquet"}, split))
    metric = mb.MeanAveragePrecision(split, "val")
    metric.update(["a"], [[0.5]])
    average: float = mb.ClassAverageAccuracy(split, "val").compute().tail

    mb.compare(5, split)  # type: ignore[arg-type]
    wrong_result: str = metric.compute()  # type: ignore[assignment]
    wrong_frame: str = result.to_pandas()  # type: ignore[assignment]
    wrong_data: str = mb.FeatureDataset(split, features="features.h5")  # type: ignore[assignment]
    wrong_split: str = mb.split_from_pandas(split.to_pandas(), dataset="mine", head_above=9, tail_up_to=1)  # type: ignore[assignment]
    wrong_name = mb.evaluat  # type: ignore[attr-defined]
