"""The whole way, from audio files to a registered scene classifier.

python jobs/pipeline.py small --data.tables RUN/metadata.csv --data.pool-tables POOL/metadata.csv
ray job submit --working-dir . -- python jobs/pipeline.py …
"""

from raymae.cli import main

if __name__ == "__main__":
    main("register", __doc__)
