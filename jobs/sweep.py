"""Sweep hyper-parameters: run trials side by side on Ray Tune, share their stages, and compare them on split val.

python jobs/sweep.py small --data.tables RUN/metadata.csv
python jobs/sweep.py synthetic --sweep.space model.mask_ratio=0.6,0.75,0.9 pseudo_label.coverage=0.3,0.5
python jobs/sweep.py synthetic --sweep.space finetune.lr=log:1e-4..1e-2 --sweep.search optuna --sweep.trials 20
ray job submit --working-dir . -- python jobs/sweep.py small --data.tables /mnt/clips.csv --storage /mnt/raymae
"""

from raymae.cli.main import main
from raymae.sweep.run import run_sweep

if __name__ == "__main__":
    main(run_sweep, __doc__)
