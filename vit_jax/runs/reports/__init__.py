"""What many runs have reached: collected from workdirs, grouped over seeds, beside a paper's numbers, as tables and a page."""
