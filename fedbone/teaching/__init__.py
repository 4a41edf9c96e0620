"""What only the notebooks need: set-up check, figures, the run of the whole workbook."""
