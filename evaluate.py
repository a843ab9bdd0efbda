"""Evaluate the best checkpoint of a run, or compare the runs of a table.

    python evaluate.py runs/demo
    python evaluate.py runs/demo --instances           # also objects and their AP
    python evaluate.py --table A                       # what train.py has trained

The story of an evaluation is told in `mtl_keras/commands/evaluate.py`.
"""

from mtl_keras.__main__ import main

if __name__ == "__main__":
    main(command="evaluate")
