"""Label audio files with a finished or registered classifier.

python jobs/predict.py --predict.inputs recordings/ --predict.output scenes.csv
ray job submit --working-dir . -- python jobs/predict.py …
"""

from raymae.cli import main

if __name__ == "__main__":
    main("predict", __doc__)
