"""Audio to log-mel feature store, in parallel CPU workers.

python jobs/prepare.py small --data.tables RUN/metadata.csv
ray job submit --working-dir . -- python jobs/prepare.py …
"""

from raymae.cli import main

if __name__ == "__main__":
    main("prepare", __doc__)
