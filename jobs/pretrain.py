"""Pre-train the masked autoencoder on all clips of train and pool; prepares the features if need be.

python jobs/pretrain.py small --data.tables RUN/metadata.csv --model.mask-ratio 0.8
ray job submit --working-dir . -- python jobs/pretrain.py …
"""

from raymae.cli import main

if __name__ == "__main__":
    main("pretrain", __doc__)
