"""The paper's tables: what each takes, its rows run as far as can be, and ours beside theirs."""

from meidbench.baselines.reproduction.paper_tables import RUN_TABLES, TABLES, PaperTable, Row, read_table

__all__ = ["RUN_TABLES", "TABLES", "PaperTable", "Row", "read_table"]
