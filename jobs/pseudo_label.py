"""Label the unlabelled training clips with the fine-tuned classifier; run the stages before it if needed.

python jobs/pseudo_label.py small --data.tables RUN/metadata.csv --pseudo-label.coverage 0.3
ray job submit --working-dir . -- python jobs/pseudo_label.py small --data.tables /mnt/clips.csv --storage /mnt/raymae
"""

from functools import partial

from raymae.cli.main import main
from raymae.pipeline.job import run_job

if __name__ == "__main__":
    main(partial(run_job, "pseudo_label"), __doc__)
