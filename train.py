"""Train the three-task network, and export it; or all networks of a table.

    python train.py                                    # rendered streets, minutes
    python train.py --recipe original --data CITYSCAPES    # on a GPU
    python train.py --table A --seeds 3                # see docs/RESULTS.md

The story of a run is told in `mtl_keras/commands/train.py`.
"""

from mtl_keras.__main__ import main

if __name__ == "__main__":
    main(command="train")
