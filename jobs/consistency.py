"""The job consistency: `python jobs/consistency.py --help`; what it does is in raymae/jobs.py."""

from raymae.jobs import main

if __name__ == "__main__":
    main("consistency")
