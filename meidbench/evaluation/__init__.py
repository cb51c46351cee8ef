"""From aligned scores to numbers: ranks, average precision, intervals, results and paired comparisons."""
