"""The job evaluate: `python jobs/evaluate.py --help`; what it does is in raymae/jobs.py."""

from raymae.jobs import main

if __name__ == "__main__":
    main("evaluate")
