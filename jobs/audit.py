"""Say what leaks between the training and the held-out clips of a table, and what its metadata alone give away.

python jobs/audit.py small --data.tables RUN/metadata.csv --data.split.kind session --json audit.json
python jobs/audit.py small --data.tables RUN/metadata.csv --audit.listen
"""

from raymae.cli import main

if __name__ == "__main__":
    main("audit", __doc__)
