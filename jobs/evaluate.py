"""Evaluate every classifier and the rivals on the held-out splits; runs the stages before it if need be.

python jobs/evaluate.py small --data.tables RUN/metadata.csv
ray job submit --working-dir . -- python jobs/evaluate.py …
"""

from raymae.cli import main

if __name__ == "__main__":
    main("evaluate", __doc__)
