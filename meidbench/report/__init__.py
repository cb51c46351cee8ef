"""What people see: tables and plots."""

PLOT_FORMATS = (".png", ".svg", ".pdf")
