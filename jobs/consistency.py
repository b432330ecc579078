"""Train the fine-tuned classifier on labelled and unlabelled clips at once; runs the stages before it if need be.

python jobs/consistency.py small --data.tables RUN/metadata.csv --consistency.method softmatch
ray job submit --working-dir . -- python jobs/consistency.py …
"""

from functools import partial

from raymae.cli.main import main
from raymae.pipeline.job import run_job

if __name__ == "__main__":
    main(partial(run_job, "consistency"), __doc__)
