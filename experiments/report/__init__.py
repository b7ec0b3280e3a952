"""`marl report`: statistics of runs over seeds and tasks, as tables, figures, a web page, and data files."""
