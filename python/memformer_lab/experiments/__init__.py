"""What the literature claims about Memformers and their neighbours, tested one experiment a file.

Read `protocol` (what an experiment is), `results` and `verdicts` (what it finds, and how that is judged), `fitting` and
`judging` (how models are trained and scored), then any `e??_*.py`; `registry` lists them and `runner` runs them.
"""
