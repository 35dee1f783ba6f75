"""What the literature claims about Memformers and their neighbours, one experiment a file; and the main job.

Read `reports.protocol` (what an experiment is), `reports.results` and `reports.verdicts` (what it finds, and how that
is judged), `runs.fitting` and `solvers.judging` (how models are trained and scored), then any `e??_*.py`; `runner`
lists and runs them. `showcase` is the main job, of the parts in `contests`.
"""
