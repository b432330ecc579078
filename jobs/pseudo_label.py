"""The job pseudo_label: `python jobs/pseudo_label.py --help`; what it does is in raymae/jobs.py."""

from raymae.jobs import main

if __name__ == "__main__":
    main("pseudo_label")
