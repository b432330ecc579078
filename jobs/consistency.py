"""Train the fine-tuned classifier on labelled and unlabelled clips at once; runs the stages before it if need be.

python jobs/consistency.py small --data.tables RUN/metadata.csv --consistency.method softmatch
ray job submit --working-dir . -- python jobs/consistency.py …
"""

from raymae.cli import main

if __name__ == "__main__":
    main("consistency", __doc__)
