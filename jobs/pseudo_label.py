"""Label the unlabelled training clips with the fine-tuned classifier; runs the stages before it if need be.

python jobs/pseudo_label.py small --data.tables RUN/metadata.csv --pseudo-label.coverage 0.3
ray job submit --working-dir . -- python jobs/pseudo_label.py …
"""

from raymae.cli import main

if __name__ == "__main__":
    main("pseudo_label", __doc__)
