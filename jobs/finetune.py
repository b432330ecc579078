"""Fine-tune the pre-trained encoder on the labelled clips; run the stages before it if needed.

python jobs/finetune.py small --data.tables RUN/metadata.csv --finetune.epochs 50
ray job submit --working-dir . -- python jobs/finetune.py small --data.tables /mnt/clips.csv --storage /mnt/raymae
"""

from functools import partial

from raymae.cli.main import main
from raymae.pipeline.job import run_job

if __name__ == "__main__":
    main(partial(run_job, "finetune"), __doc__)
