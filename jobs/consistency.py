"""Train the fine-tuned classifier on labelled and unlabelled clips at once; run the stages before it if needed.

python jobs/consistency.py small --data.tables RUN/metadata.csv --consistency.method softmatch
ray job submit --working-dir . -- python jobs/consistency.py small --data.tables /mnt/clips.csv --storage /mnt/raymae
"""

from functools import partial

from raymae.cli.main import main
from raymae.pipeline.job import run_job

if __name__ == "__main__":
    main(partial(run_job, "consistency"), __doc__)
