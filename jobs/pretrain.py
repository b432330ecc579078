"""Pre-train the masked autoencoder on all clips of train and pool; prepare the features if needed.

python jobs/pretrain.py small --data.tables RUN/metadata.csv --model.mask-ratio 0.8
ray job submit --working-dir . -- python jobs/pretrain.py small --data.tables /mnt/clips.csv --storage /mnt/raymae
"""

from functools import partial

from raymae.cli.main import main
from raymae.pipeline.job import run_job

if __name__ == "__main__":
    main(partial(run_job, "pretrain"), __doc__)
