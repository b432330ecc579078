"""Say what leaks between the training and the held-out clips of a table, and what its metadata alone give away.

python jobs/audit.py small --data.tables RUN/metadata.csv --data.split.kind session --json audit.json
python jobs/audit.py small --data.tables RUN/metadata.csv --audit.same_recording
"""

from raymae.cli.main import main
from raymae.evaluation.leaks.audit import audit_run

if __name__ == "__main__":
    main(audit_run, __doc__)
