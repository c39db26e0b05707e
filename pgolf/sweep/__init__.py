"""How much quality each byte buys: many packs of one checkpoint, measured, compared and kept in one folder.

    plan (wanted.py) ──► executor (executors.py) ──► one point (measure.py) ──► folder (folder.py) ──► results.json
                                                                                  comparison.py, seeds.py: what follows

`run.sweep` is the whole story. Tables, plots and the page are drawn from results.json by `pgolf.report`.
"""
