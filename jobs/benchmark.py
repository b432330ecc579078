"""The job benchmark: `python jobs/benchmark.py --help`; what it does is in raymae/jobs.py."""

from raymae.jobs import main

if __name__ == "__main__":
    main("benchmark")
