"""``python -m prismlab`` is ``prism``."""

from prismlab.cli import main

if __name__ == "__main__":
    main()
