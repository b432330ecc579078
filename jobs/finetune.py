"""Fine-tune the pre-trained encoder on the labelled clips; runs the stages before it if need be.

python jobs/finetune.py small --data.tables RUN/metadata.csv --finetune.epochs 50
ray job submit --working-dir . -- python jobs/finetune.py …
"""

from raymae.cli import main

if __name__ == "__main__":
    main("finetune", __doc__)
