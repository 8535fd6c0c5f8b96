"""Experiments that show what makes gradients vanish or explode, and what helps: several arms, several seeds each.

adding.py, copying.py, ...   one module an experiment: its arms, and what their results show
experiment.py                what an experiment, an arm and a result are
fitting.py, synthetic.py     one arm with one seed: an ordinary training run, its curves recorded
results.py, runner.py        results as files, and what is still missing run in processes
report.py, plots.py          table, picture and conclusion of what is there
"""
