"""Results for readers: text tables, the page with its charts, LaTeX, plots."""
