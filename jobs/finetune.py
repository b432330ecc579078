"""The job finetune: `python jobs/finetune.py --help`; what it does is in raymae/jobs.py."""

from raymae.jobs import main

if __name__ == "__main__":
    main("finetune")
