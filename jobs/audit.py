"""Find leaks between the training and held-out clips of a table, and score labels guessed from its metadata alone.

python jobs/audit.py small --data.tables RUN/metadata.csv --data.split.kind session --json audit.json
python jobs/audit.py small --data.tables RUN/metadata.csv --audit.same-recording
"""

from raymae.cli.main import main
from raymae.evaluation.leaks.audit import audit_run

if __name__ == "__main__":
    main(audit_run, __doc__)
