"""The job pseudo_label: `python jobs/pseudo_label.py --help`; what it does is in raymae/cli/jobs.py."""

from raymae.cli.jobs import main

if __name__ == "__main__":
    main("pseudo_label")
