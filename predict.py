"""Predict pictures: classes, objects and depth, each at the picture's own size.

    python predict.py photo.jpg holiday/ --output answers      # with runs/demo
    python predict.py runs/original street.png --camera 2262.52,0.209313

The story of a prediction is told in `mtl_keras/commands/predict.py`.
"""

from mtl_keras.__main__ import main

if __name__ == "__main__":
    main(command="predict")
