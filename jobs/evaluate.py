"""Evaluate every classifier and the baselines on the held-out splits; runs the stages before it if need be.

python jobs/evaluate.py small --data.tables RUN/metadata.csv
ray job submit --working-dir . -- python jobs/evaluate.py …
"""

from functools import partial

from raymae.cli.main import main
from raymae.pipeline.job import run_job

if __name__ == "__main__":
    main(partial(run_job, "evaluate"), __doc__)
