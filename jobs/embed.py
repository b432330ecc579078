"""Write vectors of every clip, or of every moment of it, from any layer of a pre-trained encoder.

python jobs/embed.py small --data.tables RUN/metadata.csv --embed.output vectors
python jobs/embed.py small --data.tables RUN/metadata.csv --embed.level frame --embed.layers 6 --embed.output frames
"""

from typing import Any

from raymae.cli.main import main
from raymae.config import Config


def run(config: Config) -> dict[str, Any]:
    """Run the job; its module imports Ray, which main has to prepare for."""
    from raymae.serving.embed import embed_clips

    return embed_clips(config)


if __name__ == "__main__":
    main(run, __doc__)
