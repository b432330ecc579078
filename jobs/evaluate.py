"""Evaluate every classifier and the baselines on the held-out splits; run the stages before it if needed.

python jobs/evaluate.py small --data.tables RUN/metadata.csv
ray job submit --working-dir . -- python jobs/evaluate.py small --data.tables /mnt/clips.csv --storage /mnt/raymae
"""

from functools import partial

from raymae.cli.main import main
from raymae.pipeline.job import run_job

if __name__ == "__main__":
    main(partial(run_job, "evaluate"), __doc__)
