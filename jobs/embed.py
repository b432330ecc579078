"""Write embeddings of every clip, or of every time column of it, from any layers of a pre-trained encoder.

python jobs/embed.py small --data.tables RUN/metadata.csv --embed.output vectors
python jobs/embed.py small --data.tables RUN/metadata.csv --embed.level frame --embed.layers 6 --embed.output frames
"""

from typing import Any

from raymae.cli.main import main
from raymae.config import Config


def run(config: Config) -> dict[str, Any]:
    """Run the job; its module imports Ray, so it is imported after main has prepared the environment."""
    from raymae.serving.embed import embed_clips

    return embed_clips(config)


if __name__ == "__main__":
    main(run, __doc__)
