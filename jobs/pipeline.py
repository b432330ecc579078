"""Run the whole pipeline, from audio files to a registered scene classifier.

python jobs/pipeline.py small --data.tables RUN/metadata.csv --data.pool-tables POOL/metadata.csv
ray job submit --working-dir . -- python jobs/pipeline.py small --data.tables /mnt/clips.csv --storage /mnt/raymae
"""

from functools import partial

from raymae.cli.main import main
from raymae.pipeline.job import run_job

if __name__ == "__main__":
    main(partial(run_job, "register"), __doc__)
