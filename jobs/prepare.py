"""Compute the log-mel feature store from audio files, in parallel CPU workers.

python jobs/prepare.py small --data.tables RUN/metadata.csv
ray job submit --working-dir . -- python jobs/prepare.py small --data.tables /mnt/clips.csv --storage /mnt/raymae
"""

from functools import partial

from raymae.cli.main import main
from raymae.pipeline.job import run_job

if __name__ == "__main__":
    main(partial(run_job, "prepare"), __doc__)
